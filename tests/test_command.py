"""How a command ends: its status, and one line for what went wrong."""

import os
import signal
import warnings

import pytest

from recbole_jepa4rec.base.command import INTERRUPTED, add_note, run_command
from recbole_jepa4rec.base.stopping import TERMINATED, ending_on_sigterm


def raising(error, *notes):
    def work():
        for note in notes:
            add_note(error, note)
        raise error

    return work


def test_the_status_is_that_of_the_work():
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("no such\nkey"), 2, "error: no such key\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "error: [Errno 2] No such file: 'x'\n"),
        (RuntimeError(), 1, "error: RuntimeError\n"),
        (MemoryError(), 1, "error: MemoryError\n"),
        (ImportError("no peft"), 1, "error: no peft\n"),
    ],
)
def test_a_foreseen_error_is_one_line(error, status, said, capsys):
    assert run_command(raising(error)) == status
    assert capsys.readouterr() == ("", said)


def test_another_error_says_where_its_trace_is_or_shows_it(capsys):
    assert run_command(raising(KeyError("x"), "of a run within", "details in run.log")) == 1
    assert capsys.readouterr().err == "error: KeyError: 'x' (details in run.log)\n"
    assert run_command(raising(KeyError("x"))) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback") and last == "error: KeyError: 'x'"


def test_an_interruption_says_what_comes_next(capsys):
    assert run_command(raising(KeyboardInterrupt())) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    run_command(raising(KeyboardInterrupt()), after_interrupt="start it again")
    assert capsys.readouterr().err == "interrupted; start it again\n"
    run_command(raising(KeyboardInterrupt(), "go on"), after_interrupt="start it again")
    assert capsys.readouterr().err == "interrupted; go on\n"


def test_sigterm_ends_the_process_with_its_status():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert ended.value.code == TERMINATED
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_a_library_puts_in_goes_with_the_block_within():
    before = signal.getsignal(signal.SIGTERM)
    with ending_on_sigterm():
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does when it starts
        with ending_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is ours
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is before


def test_warnings_of_quiet_packages_are_left_out(recwarn):
    def warn():
        warnings.warn_explicit("x", UserWarning, "worker.py", 1, module="ray.worker")
        warnings.warn_explicit("y", FutureWarning, "data.py", 1, module="recbole.data")

    run_command(warn, quiet=["ray"])
    assert not recwarn
    run_command(warn)
    assert [str(warning.message) for warning in recwarn] == ["x"]
