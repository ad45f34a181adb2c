"""From a command line to a comparison: check, run what is missing, report after every run."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.base.stopping import ending_on_sigterm
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.data.item_files import refuse_without_text
from recbole_jepa4rec.study.cells import finished_runs
from recbole_jepa4rec.study.comparison import Row, compare
from recbole_jepa4rec.study.finished_run import FinishedRun
from recbole_jepa4rec.study.grid import Grid, Outcome, locked
from recbole_jepa4rec.study.report import write_report
from recbole_jepa4rec.study.request import Request, read_request


def main(command_line: Sequence[str]) -> int:
    """Compare as a script does; the last line on standard output is that of ``comparison.json``.

    Args:
        command_line: the words after the script's name.

    Returns:
        Exit status: 0, 1 if a run failed, 2 for wrong input, 130 when interrupted.

    Raises:
        SystemExit: with status 143, when the process is told to end (SIGTERM).
    """
    try:
        with ending_on_sigterm(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
            return _compare(read_request(command_line))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one ended", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _compare(request: Request) -> int:
    data = _read_data(request)
    with locked(request.folder) as lock:
        done = finished_runs(request.cells, data)
        del data  # it may be large, and every run reads its own
        board = _Board(request, done)
        missing = [cell for cell in request.cells if cell.key not in done]
        print(
            f"{len(request.cells)} runs in {request.folder}, {len(done)} of them finished before",
            file=sys.stderr,
        )
        if done:
            board.report()
        Grid(missing, request.jobs, lock).run(board.end)
    print(request.folder / "comparison.json")
    return 1 if board.errors else 0


def _read_data(request: Request) -> Any:
    """The data set, read before anything runs.

    Raises:
        ValueError: if they cannot be read, or lack the text that a model reads.
    """
    for cell in request.cells[: len(request.entries)]:
        refuse_without_text(cell.config)
    config = request.cells[0].config
    return find_dataset(config.model_class)(config)


class _Board:
    """What is finished so far.

    Args:
        request: what was asked for.
        done: runs that were finished before, by entry and seed.
    """

    def __init__(self, request: Request, done: Mapping[tuple[str, int], FinishedRun]) -> None:
        self.request = request
        self.runs = dict(done)
        self.errors: dict[tuple[str, int], str] = {}
        self._missing = len(request.cells) - len(done)
        self._seconds: list[float] = []

    def end(self, outcome: Outcome) -> None:
        """Take in how a cell ended, say so, and write every output again."""
        if outcome.run:
            self.runs[outcome.cell.key] = outcome.run
        else:
            self.errors[outcome.cell.key] = str(outcome.error)
        self._seconds.append(outcome.seconds)
        print(f"{self._says(outcome)}; {self._left()}", file=sys.stderr, flush=True)
        self.report()

    def report(self) -> None:
        """Write ``comparison.json`` and its views."""
        request = self.request
        rows = [
            Row(entry, request.seeds, _of(entry, self.runs), _of(entry, self.errors))
            for entry in request.entries
        ]
        dataset = request.cells[0].config["dataset"]
        comparison = compare(rows, request.reference, dataset, request.given, request.command)
        text = json.dumps(comparison, indent=2, allow_nan=False, default=str)
        with atomic_write(request.folder / "comparison.json", "w") as file:
            file.write(text + "\n")
        write_report(json.loads(text), request.folder)

    def _says(self, outcome: Outcome) -> str:
        cell, run = outcome.cell, outcome.run
        if run is None:
            return f"{cell}: failed: {outcome.error} (see {cell.output_file})"
        key = run.settings["valid_metric"].lower()
        valid, test = run.result["valid"][key], run.result["test"][key]
        return (
            f"{run.label}, seed {cell.seed}: {key} {valid:.4f} on validation, {test:.4f} on test, "
            f"{outcome.seconds:.0f} s"
        )

    def _left(self) -> str:
        left = self._missing - len(self._seconds)
        if not left:
            return "none left"
        mean = sum(self._seconds) / len(self._seconds)
        return f"{left} left, about {_duration(mean * left / self.request.jobs)}"


def _of(entry: str, by_cell: Mapping[tuple[str, int], Any]) -> dict[int, Any]:
    """The part of one entry, by seed."""
    return {seed: value for (name, seed), value in by_cell.items() if name == entry}


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
