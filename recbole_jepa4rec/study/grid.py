"""Runs the cells, each as a process of its own, several at once where asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from recbole_jepa4rec.base.command import python_path
from recbole_jepa4rec.config.syntax import deciding
from recbole_jepa4rec.runner.run_folder import COLOR
from recbole_jepa4rec.study.cells import Cell
from recbole_jepa4rec.study.finished_run import FinishedRun, read_run

GRACE = 15
"""Seconds that a run told to end may take; more than it takes where this process is gone."""

POLL = 0.1
"""Seconds between looks at the runs under way."""


@dataclass
class Outcome:
    """How a cell ended: its seconds here, and what it left or else what went wrong."""

    cell: Cell
    seconds: float = 0.0
    run: FinishedRun | None = None
    error: str | None = None

    def __str__(self) -> str:
        cell, run = self.cell, self.run
        if run is None:
            return f"{cell}: failed: {self.error} (see {cell.output_file})"
        key = run.settings["valid_metric"].lower()
        valid, test = run.result["valid"][key], run.result["test"][key]
        return f"{cell}: {key} {valid:.4f} on validation, {test:.4f} on test, {self.seconds:.0f} s"


@dataclass
class Grid:
    """Runs cells in order.

    Args:
        cells: to run.
        jobs: runs at once.
        lock: descriptor that every run holds open; see ``files.locked``.
    """

    cells: Sequence[Cell]
    jobs: int
    lock: int
    _running: list[tuple[Cell, subprocess.Popen[bytes], float]] = field(default_factory=list)

    def run(self, on_end: Callable[[Outcome], None]) -> None:
        """Run every cell; an exception, an interruption too, ends the runs under way.

        Args:
            on_end: called after each cell, before the next one starts.

        Raises:
            ValueError: if a cell's folder holds something that is not a run.
            OSError: if a process cannot be started.
        """
        waiting = [*self.cells]
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.jobs:
                    self._start(waiting.pop(0))
                self._collect(on_end)
        finally:
            self._end_all()

    def _start(self, cell: Cell) -> None:
        words = cell.words_to_run()
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(cell.output_file, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "recbole_jepa4rec", "child", *words],
                stdin=subprocess.PIPE,  # closes when this process ends; see run_as_child
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(self.jobs),
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
                pass_fds=[self.lock],
            )
        self._running.append((cell, process, time.monotonic()))

    def _collect(self, on_end: Callable[[Outcome], None]) -> None:
        """Report the runs that have ended, or wait a moment."""
        ended = [each for each in self._running if each[1].poll() is not None]
        if not ended:
            time.sleep(POLL)
        for each in ended:
            self._running.remove(each)
            cell, process, started = each
            process.communicate()  # closes its standard input
            on_end(_outcome(cell, process.returncode, time.monotonic() - started))

    def _end_all(self) -> None:
        for _, process, _ in self._running:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for _, process, _ in self._running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()


def _environment(jobs: int) -> dict[str, str]:
    """This process's, with a fair share of the cores for each of several runs."""
    environment = {**os.environ, "PYTHONPATH": python_path()}
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // jobs)))
    return environment


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _outcome(cell: Cell, status: int, seconds: float) -> Outcome:
    if status:
        return Outcome(cell, seconds, error=_error(cell, status))
    try:
        run = read_run(cell.folder)
        # A yaml file may hold other settings than when the comparison began.
        cell.refuse_difference(deciding(run.settings), cell.settings)
        return Outcome(cell, seconds, run=run)
    except ValueError as error:
        return Outcome(cell, seconds, error=" ".join(str(error).split()))


def _error(cell: Cell, status: int) -> str:
    """What went wrong in a process that ended with this status, in one line."""
    if status < 0:
        return f"ended by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    text = COLOR.sub("", cell.output_file.read_text(encoding="utf-8", errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"ended with status {status}"])[-1]
