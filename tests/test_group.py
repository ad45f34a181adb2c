"""``run_recbole_group.py``: what it refuses, runs, skips and survives."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from recbole_jepa4rec.__main__ import main as package_main
from recbole_jepa4rec.experiment import grid
from recbole_jepa4rec.experiment.cell_folder import output_file
from recbole_jepa4rec.experiment.group import main
from recbole_jepa4rec.experiment.request import read_request
from tests.conftest import ROOT

BASE = ["--dataset=toy", f"--data_path={ROOT / 'dataset'}", "--show_progress=False"]
VIEWS = [f"comparison.{kind}" for kind in ("json", "md", "tex", "html")]


def script(*words, **options):
    """The script as a user runs it, in a process of its own."""
    command = [sys.executable, str(ROOT / "run_recbole_group.py"), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--model_list=Markof"], "unknown model 'Markof' (did you mean 'Markov'?)"),
            (["--model_list=Markov,,SASRec"], "model_list 'Markov,,SASRec' has no name"),
            ([], "model_list '' has no name (write --model_list=A,B,C)"),
            (["--model_list=A,A"], "model_list 'A,A' names 'A' twice"),
            (["--model_list=SASRec,SASRec-CE"], "'SASRec' and 'SASRec-CE', which are the same"),
            (["--model_list=Markov", "--seeds=1,2,1"], "seeds '1,2,1' names '1' twice"),
            (["--model_list=Markov", "--seeds=one"], "seeds 'one' must be a whole number from 0"),
            (["--model_list=Markov", "--jobs=0"], "jobs '0' must be a whole number from 1"),
            (
                ["--model_list=Markov", "--reference=SASRec"],
                "reference 'SASRec' is not in model_list (allowed: Markov)",
            ),
            (
                ["--model_list=Markov", "--seed=3"],
                "key 'seed' on the command line differs from run",
            ),
            (["--model_list=Markov", "--model=SASRec"], "key 'model' on the command line differs"),
            (["--model_list=Markov", "--sedes=1"], "unknown key 'sedes' (did you mean 'seeds'?)"),
            (["--model_list=Markov", "--epochs=-1"], "epochs -1 must be a whole number from 0"),
            (["--model_list=Markov,SASRec", "--topk=0"], "topk 0 is below 1"),
            (["--model_list=Markov", "--config_files=no.yaml"], "cannot read config file no.yaml"),
            (["--model_list=Markov", "--run_dir=file"], "run_dir 'file' is not a folder"),
        ],
    )
    def test_one_line_and_nothing_runs(self, workplace, words, message, capsys):
        (workplace / "file").write_text("")
        assert main([*BASE, *words]) == 2
        out, error = capsys.readouterr()
        assert error.startswith("error: ") and error.count("\n") == 1
        assert message in error and out == ""
        assert [path.name for path in workplace.iterdir()] == ["file"]

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("--dataset=tow", "no data set 'tow'"),
            ("--dataset=toy,toy2", "a comparison takes one data set"),
            ("--dataset=bare", "reads item text, which data set 'bare' lacks"),
        ],
    )
    def test_data_are_looked_at_before_anything_runs(self, workplace, word, message, capsys):
        (workplace / "bare").mkdir()
        inter = (ROOT / "dataset" / "toy" / "toy.inter").read_text()
        (workplace / "bare" / "bare.inter").write_text(inter)
        words = [word, "--data_path=.", "--model_list=Markov,JEPA4Rec", "--run_dir=out"]
        assert main(words) == 2
        assert message in capsys.readouterr().err
        assert not (workplace / "out").exists()

    def test_no_dataset(self, workplace, capsys):
        assert main(["--model_list=Markov"]) == 2
        assert "no dataset is named (write --dataset=NAME)" in capsys.readouterr().err

    @pytest.mark.parametrize("key", ["seed", "model", "run_dir"])
    def test_keys_of_single_runs_in_a_file(self, workplace, key, capsys):
        (workplace / "a.yaml").write_text(f"{key}: 3\n")
        assert main([*BASE, "--model_list=Markov", "--config_files=a.yaml"]) == 2
        assert f"key '{key}' in a.yaml differs from run to run" in capsys.readouterr().err

    def test_the_package_says_how_it_is_used(self, capsys):
        assert package_main(["nonsense"]) == 2
        assert "usage: python -m recbole_jepa4rec doctor" in capsys.readouterr().err


class TestRequest:
    def test_cells_and_their_command_lines(self):
        words = [*BASE, "--model_list=SASRec-BPR,Markov", "--seeds=3,1", "--run_dir=out"]
        request = read_request([*words, "--epochs=2"])
        assert [(c.entry, c.seed) for c in request.cells] == [
            ("SASRec-BPR", 3),
            ("Markov", 3),
            ("SASRec-BPR", 1),
            ("Markov", 1),
        ]
        cell = request.cells[0]
        assert str(cell.folder) == "out/SASRec-BPR/seed-3"
        assert set(cell.words) == {
            *BASE,
            "--model=SASRec-BPR",
            "--seed=3",
            "--epochs=2",
            "--run_dir=out/SASRec-BPR/seed-3",
        }
        assert cell.settings["loss_type"] == "BPR"
        assert request.reference == "SASRec-BPR"
        assert request.given["epochs"] == 2

    def test_jepa4rec_is_the_reference_where_it_is_listed(self):
        assert read_request([*BASE, "--model_list=Markov,JEPA4Rec"]).reference == "JEPA4Rec"
        words = ["--model_list=Markov,JEPA4Rec", "--reference=Markov"]
        assert read_request([*BASE, *words]).reference == "Markov"

    def test_the_folder_follows_what_is_asked_for(self):
        asked = ["--model_list=Markov,Popularity", "--seeds=1,2"]

        def folder(*words):
            return read_request([*BASE, *words]).folder

        assert folder(*asked) == folder(*reversed(asked), "--jobs=2", "--state=error")
        assert folder(*asked).parent.as_posix() == "runs/toy"
        others = [
            folder(asked[0], "--seeds=1,3"),
            folder("--model_list=Markov,SASRec", asked[1]),
            folder(*asked, "--topk=[5, 10]"),
        ]
        assert len({folder(*asked), *others}) == 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of two models, run as two jobs."""
    folder = tmp_path_factory.mktemp("finished")
    words = [*BASE, "--model_list=Popularity,Markov", "--seeds=1", "--run_dir=out"]
    process = script(*words, "--jobs=2", cwd=folder)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return folder, words, out, error


class TestGrid:
    def test_every_cell_writes_its_folder_and_every_output_is_there(self, finished):
        folder, _, out, error = finished
        assert out == "out/comparison.json\n"
        cells = {str(path.parent.relative_to(folder / "out")) for path in stamps(folder)}
        assert cells == {"Popularity/seed-1", "Markov/seed-1"}
        assert {*VIEWS} <= {path.name for path in (folder / "out").iterdir()}
        comparison = json.loads((folder / "out" / "comparison.json").read_text())
        assert [(r["label"], r["seeds"]) for r in comparison["rows"]] == [
            ("Popularity", [1]),
            ("Markov", [1]),
        ]
        assert len(comparison["tests"]) == 4
        lines = error.splitlines()
        assert lines[0] == "2 runs in out, 0 of them finished before"
        assert len(lines) == 3
        assert "Markov, seed 1: ndcg@10 0." in error and "none left" in lines[-1]

    def test_finished_cells_are_not_run_again(self, finished, monkeypatch, capsys):
        folder, words, _, _ = finished
        before = stamps(folder)
        monkeypatch.chdir(folder)
        (folder / "out" / "comparison.md").unlink()
        assert main(words) == 0
        assert stamps(folder) == before
        assert (folder / "out" / "comparison.md").exists()
        assert "2 of them finished before" in capsys.readouterr().err

    def test_other_settings_are_refused_by_folder_and_key(self, finished, monkeypatch, capsys):
        folder, words, _, _ = finished
        before = stamps(folder)
        monkeypatch.chdir(folder)
        assert main([*words, "--topk=[5, 10]"]) == 2
        error = capsys.readouterr().err
        assert "out/Popularity/seed-1 holds a run with topk [10], not [5, 10]" in error
        assert stamps(folder) == before

    def test_other_data_are_refused(self, finished, monkeypatch, capsys, tmp_path):
        folder, words, _, _ = finished
        monkeypatch.chdir(folder)
        text = (ROOT / "dataset" / "toy" / "toy.inter").read_text().splitlines(keepends=True)
        (tmp_path / "toy").mkdir()
        (tmp_path / "toy" / "toy.inter").write_text("".join(text[:-1]))
        others = [word for word in words if not word.startswith("--data_path")]
        assert main([*others, f"--data_path={tmp_path}"]) == 2
        assert "seed-1 holds a run with data_fingerprint '" in capsys.readouterr().err

    def test_what_is_no_run_is_not_removed(self, workplace, capsys):
        foreign = workplace / "out" / "Markov" / "seed-2020" / "thesis.txt"
        foreign.parent.mkdir(parents=True)
        foreign.write_text("years of work")
        assert main([*BASE, "--model_list=Markov", "--run_dir=out"]) == 2
        assert "holds files that are not of a run" in capsys.readouterr().err
        assert foreign.read_text() == "years of work"

    @pytest.mark.slow
    def test_a_failed_cell_leaves_the_others(self, workplace, capsys):
        settings = {"learning_rate": 1e30, "epochs": 2, "hidden_size": 8, "inner_size": 8}
        (workplace / "a.yaml").write_text(yaml.safe_dump(settings))
        words = [*BASE, "--model_list=SASRec,Markov", "--run_dir=out", "--config_files=a.yaml"]
        assert main(words) == 1
        out, error = capsys.readouterr()
        assert out == "out/comparison.json\n"
        assert "SASRec, seed 2020: failed: " in error and "training diverged" in error
        for name in VIEWS:
            text = (workplace / "out" / name).read_text()
            assert "training diverged" in text and "failed" in text and "Markov" in text
        rows = json.loads((workplace / "out" / "comparison.json").read_text())["rows"]
        assert [each["status"] for each in rows] == ["failed", "finished"]
        before = stamps(workplace)
        assert main(words) == 1  # the failed one is run again, the other is not
        assert stamps(workplace) == before


class TestProcesses:
    def test_several_jobs_share_the_cores(self, monkeypatch):
        monkeypatch.setattr(grid, "_cores", lambda: 8)
        monkeypatch.delenv("OMP_NUM_THREADS")
        threads = [grid._environment(jobs).get("OMP_NUM_THREADS") for jobs in (1, 3, 20)]
        assert threads == [None, "2", "1"]
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        assert grid._environment(3)["OMP_NUM_THREADS"] == "5"

    def test_a_folder_in_use_is_refused(self, workplace, monkeypatch, capsys):
        monkeypatch.setattr(grid, "PATIENCE", 0.2)
        with grid.locked(workplace / "out"):
            assert main([*BASE, "--model_list=Markov", "--run_dir=out"]) == 2
        error = capsys.readouterr().err.splitlines()
        assert error == [
            "waiting for the runs under way in out to end",
            "error: run_dir 'out' is in use by another comparison",
        ]

    @pytest.mark.parametrize(
        ("status", "output", "error"),
        [
            (2, "12:00 step\nerror: first\nerror: \x1b[31mlast\x1b[0m\nnoise\n", "last"),
            (1, "Traceback\nKeyError: 'x'\n\n", "KeyError: 'x'"),
            (1, "", "ended with status 1"),
            (0, "", "ended with status 0"),
            (-9, "error: nothing", "ended by signal 9 (out of memory?)"),
            (-11, "", "ended by signal 11"),
        ],
    )
    def test_what_went_wrong_is_the_last_error(self, workplace, status, output, error):
        (cell,) = read_request([*BASE, "--model_list=Markov", "--run_dir=out"]).cells
        cell.folder.parent.mkdir(parents=True)
        output_file(cell).write_text(output)
        assert grid._error(cell, status) == error


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs_in(folder):
    """Process ids of runs that write below a folder."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().decode().split("\0")
            except OSError:
                continue
            if f"--run_dir={folder}" in "\n".join(words) and "run" in words:
                found.append(int(entry))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
class TestEnds:
    @pytest.fixture
    def words(self, tmp_path):
        models, slow = "--model_list=Markov,SASRec", ["--epochs=100", "--train_batch_size=1"]
        return [*BASE, models, *slow, f"--run_dir={tmp_path / 'out'}"]

    @pytest.fixture
    def in_the_second(self, words, tmp_path):
        """A comparison whose second run is under way."""
        process = script(*words, cwd=tmp_path)
        log = tmp_path / "out" / "SASRec" / "seed-2020" / "run.log"
        wait_for(lambda: log.exists())
        yield process
        process.kill()
        process.communicate()

    def test_sigkill_ends_the_run_under_way_and_loses_no_other(
        self, in_the_second, words, tmp_path
    ):
        in_the_second.kill()
        in_the_second.wait()
        before = stamps(tmp_path)
        assert len(before) == 1
        comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert [each["status"] for each in comparison["rows"]] == ["finished", "waiting"]
        left = tmp_path / "out" / "SASRec" / "seed-2020" / "left.txt"
        left.write_text("half a run")
        again = script(*words, cwd=tmp_path)
        try:
            wait_for(lambda: not left.exists())
            wait_for(lambda: left.with_name("run.log").exists())
            assert len(runs_in(tmp_path)) == 1  # the orphan has ended
            assert stamps(tmp_path) == before
            again.terminate()
            _, error = again.communicate(timeout=30)
            assert again.returncode == 143
            assert "2 runs in" in error and "1 of them finished before" in error
        finally:
            again.kill()
            again.communicate()

    def test_ctrl_c_ends_the_runs(self, in_the_second, tmp_path):
        in_the_second.send_signal(signal.SIGINT)
        _, error = in_the_second.communicate(timeout=30)
        assert in_the_second.returncode == 130
        assert error.splitlines()[-1].startswith("interrupted; the same command goes on")
        assert runs_in(tmp_path) == []
        assert len(stamps(tmp_path)) == 1
