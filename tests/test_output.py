"""Where a log, events or the last line cannot be written: one line, and nothing is lost."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_jepa4rec.base.events import EventFile
from recbole_jepa4rec.runner.quick_start import main
from tests.conftest import ROOT

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")

SAY = """
import sys
from recbole_jepa4rec.base.command import run_command, say_last
sys.exit(run_command(lambda: say_last(sys.argv[1])))
"""


def say(line, **options):
    """Status, output and errors of a process whose last line this is."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    words = [sys.executable, "-c", SAY, line]
    done = subprocess.run(words, env=environment, check=False, **streams)
    return done.returncode, done.stdout, done.stderr


class TestLastLine:
    def test_a_path_that_ascii_cannot_write(self):
        status, out, errors = say("rün/result.json", env={"PYTHONIOENCODING": "ascii"})
        assert (status, out, errors) == (0, os.fsencode("rün/result.json\n"), b"")

    @needs_full
    def test_an_output_that_is_full(self):
        with open(FULL, "wb") as full:
            status, _, errors = say("result.json", stdout=full)
        expected = b"standard output: No space left on device; the result is result.json\n"
        assert (status, errors) == (0, expected)

    def test_a_reader_that_has_gone(self):
        reader, writer = os.pipe()
        os.close(reader)
        status, _, errors = say("result.json", stdout=writer)
        os.close(writer)
        assert (status, errors) == (0, b"standard output: Broken pipe; the result is result.json\n")

    @pytest.mark.parametrize("stream", [1, 2])
    def test_a_stream_that_is_closed(self, stream):
        status, out, errors = say("result.json", preexec_fn=lambda: os.close(stream))
        assert (status, out) == (0, b"result.json\n" if stream == 2 else b"")
        assert errors == b""


@needs_full
def test_a_log_that_cannot_be_written_ends_the_run_in_one_line(toy, workplace, capsys):
    (workplace / "run").mkdir()
    (workplace / "run" / "run.log").symlink_to(FULL)
    words = [f"--{key}={value}" for key, value in toy.items()]
    assert main(["--model=Markov", *words, "--run_dir=run"]) == 1
    expected = f"[Errno 28] cannot write: No space left on device: '{workplace}/run/run.log'"
    assert capsys.readouterr().err == f"error: {expected}\n"


class TestEvents:
    def test_they_are_on_disk_when_the_call_returns(self, tmp_path):
        file = EventFile(tmp_path / "run")
        for step, value in enumerate([0.5, 0.25]):
            file.add_scalar("loss", value, step)
        found = EventAccumulator(str(tmp_path / "run")).Reload()
        points = [(each.step, each.value) for each in found.Scalars("loss")]
        assert points == [(0, 0.5), (1, 0.25)]
        file.close()

    @needs_full
    def test_a_full_disk_is_told_with_the_name_of_the_file(self, tmp_path):
        file = EventFile(tmp_path)
        with open(FULL, "wb") as full:
            os.dup2(full.fileno(), file._file.fileno())
        with pytest.raises(OSError, match="cannot write: No space left on device") as error:
            file.add_scalar("loss", 1.0, 0)
        assert error.value.errno == errno.ENOSPC
        assert error.value.filename == str(file.path)
        assert file.path.parent == tmp_path


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("runner.run_folder", "pyarrow.parquet"),  # per_user.parquet
        ("runner.single_run", "psutil"),  # the hardware in result.json
    ],
)
def test_what_the_end_of_a_run_needs_is_looked_for_at_its_start(module, missing):
    script = f"import sys; sys.modules[{missing!r}] = None; import recbole_jepa4rec.{module}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False
    )
    assert done.returncode and missing.encode() in done.stderr.splitlines()[-1]
