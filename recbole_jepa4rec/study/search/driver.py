"""From a command line to the best settings: check, run what is missing, test the winner."""

from __future__ import annotations

import fcntl
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.base.stopping import ending_on_sigterm
from recbole_jepa4rec.study.search.board import Board, clear_unfinished
from recbole_jepa4rec.study.search.job import job_of
from recbole_jepa4rec.study.search.record import FAILED, Record, read_records
from recbole_jepa4rec.study.search.report import write_report
from recbole_jepa4rec.study.search.request import Request, read_request
from recbole_jepa4rec.study.search.shared_data import data_keys, read_data
from recbole_jepa4rec.study.search.winner import run_winner

IDENTITY_NAME, LOCK_NAME = "search.json", ".lock"


def main(command_line: Sequence[str]) -> int:
    """Search as a script does; the last line on standard output is the winner's ``result.json``.

    Args:
        command_line: the words after the script's name.

    Returns:
        Exit status: 0, 1 if no trial finished or the winner failed, 2 for wrong input, 130 when
        interrupted.

    Raises:
        SystemExit: with status 143, when the process is told to end (SIGTERM).
    """
    try:
        with ending_on_sigterm(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
            warnings.filterwarnings("ignore", module=r"ray\.")
            if not find_spec("ray"):
                raise ValueError("the search needs Ray: pip install '.[tune]'")
            print(_search(read_request(command_line)))
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _search(request: Request) -> Path:
    """Run the search; returns the path of the winner's ``result.json``."""
    keys = data_keys(request)
    _refuse_state(request)
    data, fingerprint = read_data(request, keys)
    with _locked(request.folder):
        identity = _identity(request, fingerprint)
        done = _finished_before(request, identity)
        clear_unfinished(request, done)
        board = Board(request, done)
        print(
            f"{request.num_samples} trials in {request.folder}, {len(done)} of them ended before",
            file=sys.stderr,
        )
        try:
            _run_missing(request, keys, data, board, identity)
        finally:
            if board.records:
                board.write()
                write_report(request, board)
        path = run_winner(request, board)
        write_report(request, board)
        return path


def _run_missing(
    request: Request,
    keys: tuple[str, ...],
    data: Mapping[str, Any],
    board: Board,
    identity: Mapping[str, Any],
) -> None:
    if len(board.records) >= request.num_samples:
        return
    from recbole_jepa4rec.study.search.cluster import cluster
    from recbole_jepa4rec.study.search.tuning import tune_trials

    points = {name: point for name, point in _named(request) if name not in board.records}
    with cluster(request):  # one that is not there leaves no search behind
        _write_identity(request.folder, identity)
        tune_trials(request, job_of(request, points, keys), data, [*points], board)


def _named(request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each point that is known beforehand, with the name of its trial."""
    for number, point in enumerate(request.points):
        yield f"{number:04d}", point


def _refuse_state(request: Request) -> None:
    """Refuse to start where a search stands, to go on where none does, or what cannot go on."""
    folder, there = request.folder, (request.folder / IDENTITY_NAME).exists()
    if there and not request.resume:
        raise ValueError(f"{folder} holds a search (write --resume, or another --run_dir)")
    if request.resume and not there:
        raise ValueError(f"nothing to resume in {folder}: there is no {IDENTITY_NAME}")
    if request.resume and request.algorithm == "hyperopt":
        raise ValueError("algorithm 'hyperopt' cannot go on with --resume (optuna can)")


def _identity(request: Request, fingerprint: str) -> dict[str, Any]:
    """What must be the same when a search goes on, as json gives it back."""
    asked = {**request.identity(), "data_fingerprint": fingerprint}
    return json.loads(json.dumps(asked, default=str))


def _write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    with atomic_write(folder / IDENTITY_NAME, "w") as file:
        json.dump(identity, file, indent=2)


def _finished_before(request: Request, identity: Mapping[str, Any]) -> list[Record]:
    """Records of an earlier start that count; failed trials are run anew.

    Raises:
        ValueError: if the folder holds another search.
    """
    path = request.folder / IDENTITY_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not describe a search")
    for key, value in identity.items():
        if found.get(key) != value:
            raise ValueError(f"{path} is of another search: {_difference(key, found, value)}")
    done = [each for each in read_records(request.folder / "trials") if each.status != FAILED]
    known = dict(_named(request))
    for record in done:
        if known and record.name in known and record.point != known[record.name]:
            raise ValueError(f"{request.folder}/trials/{record.name} is not of this search")
    return [each for each in done if not known or each.name in known]


def _difference(key: str, found: Mapping[str, Any], asked: Any) -> str:
    """The first part in which two searches differ."""
    old = found.get(key)
    if isinstance(old, dict) and isinstance(asked, dict):
        for name in [*asked, *old]:
            if old.get(name) != asked.get(name):
                return f"{key}.{name} is {old.get(name)!r} there and {asked.get(name)!r} here"
    return f"{key} is {old!r} there and {asked!r} here"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder and hold it alone.

    Raises:
        ValueError: if another search holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK_NAME, "w", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ValueError(f"run_dir {str(folder)!r} cannot be made: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"run_dir {str(folder)!r} is in use by another search") from None
        yield
