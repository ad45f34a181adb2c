"""The frame around a command: SIGTERM, one line for an error and its words, the exit status."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from recbole_jepa4rec.base.stopping import ending_on_sigterm

FAILED = 1
WRONG_INPUT = 2
RESUMABLE = 75
"""Of a run that was told to end and can be resumed; EX_TEMPFAIL of sysexits.h."""
INTERRUPTED = 130

FORESEEN = (ValueError, OSError, RuntimeError, MemoryError, ImportError)
"""Errors whose message says what to do; of any other the trace is wanted as well."""


def run_command(
    work: Callable[[], int | None], *, after_interrupt: str = "", quiet: Sequence[str] = ()
) -> int:
    """Do what a command is for, and return its exit status.

    An error becomes one line on standard error. One that nobody foresaw tells by its note where
    its trace is (:func:`add_note`); without a note the trace goes before the line.

    Args:
        work: all of the command, the understanding of its words included. It may return a status;
            none is 0.
        after_interrupt: what Ctrl-C is answered with, unless the interruption has a note.
        quiet: names of packages whose warnings are left out, besides RecBole's FutureWarnings.

    Returns:
        What ``work`` returned, 1 for a failure, 2 for wrong input (ValueError), 130 when
        interrupted.

    Raises:
        SystemExit: as ``work`` does; with status 143, when the process is told to end (SIGTERM).
    """
    if sys.stderr is None:  # closed, and print would take standard output for it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        with ending_on_sigterm(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
            for package in quiet:
                warnings.filterwarnings("ignore", module=rf"{package}\.")
            return work() or 0
    except KeyboardInterrupt as error:
        advice = _note(error) or after_interrupt
        print(f"interrupted; {advice}" if advice else "interrupted", file=sys.stderr)
        return INTERRUPTED
    except FORESEEN as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return WRONG_INPUT if isinstance(error, ValueError) else FAILED
    except Exception as error:
        note = _note(error)
        if not note:
            traceback.print_exc()
        message = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"error: {message}{f' ({note})' if note else ''}", file=sys.stderr)
        return FAILED


def say_last(line: Path | str) -> None:
    """Print where the result stands, whatever has become of standard output.

    What is finished is no failure because the reader has gone, or reads ASCII alone: then the
    bytes of the path are written as the file system has them.
    """
    try:
        try:
            print(line, flush=True)
        except UnicodeEncodeError:
            sys.stdout.buffer.write(os.fsencode(f"{line}\n"))
            sys.stdout.flush()
    except OSError as error:
        print(f"standard output: {error.strerror}; the result is {line}", file=sys.stderr)
        _turn_from_output()


def say_all(text: str) -> None:
    """Print a list, of which a reader may have seen enough before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _turn_from_output()


def _turn_from_output() -> None:
    """Let what is flushed at the end go nowhere."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and knows no option by its beginning alone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            **settings,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )

    def error(self, message: str) -> NoReturn:
        """Say it as other errors are said."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def did_you_mean(word: str, known: Iterable[Any]) -> str:
    """`` (did you mean 'x'?)`` for the nearest known word, else nothing.

    About two letters may be wrong, and of a short word two in five.
    """
    by_lower = {str(name).lower(): str(name) for name in known}
    least = max(0.6, 1 - 2.5 / max(1, len(word)))
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=least)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def python_path() -> str:
    """``PYTHONPATH`` with which another process finds this package, installed or not."""
    package = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])


def add_note(error: BaseException, note: str) -> None:
    """Have an error say what comes next or where more is told; Python 3.10 lacks its ``add_note``.

    Of several notes a command shows the last.
    """
    vars(error).setdefault("__notes__", []).append(note)


def _note(error: BaseException) -> str:
    return vars(error).get("__notes__", [""])[-1]
