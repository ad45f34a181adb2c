"""Trials: what is known of each, in ``trial.json`` of its folder and as a row of ``trials.csv``."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from recbole_jepa4rec.base.files import RESULT_NAME, Layout, atomic_write, stranger
from recbole_jepa4rec.runner import run_folder
from recbole_jepa4rec.runner.result import misfit
from recbole_jepa4rec.study.study import Board
from recbole_jepa4rec.training.state import Validation

FINISHED: Literal["finished"] = "finished"
STOPPED: Literal["stopped early"] = "stopped early"
FAILED: Literal["failed"] = "failed"
Status = Literal["finished", "stopped early", "failed"]

RECORD_NAME = "trial.json"
FAILED_LOG = "run.failed.log"
"""What ``run.log`` of an attempt that failed is called afterwards."""

LAYOUT: Layout = {
    **{name: inside for name, inside in run_folder.LAYOUT.items() if name != RESULT_NAME},
    **dict.fromkeys((RECORD_NAME, FAILED_LOG)),
}
"""What a trial leaves in its folder."""

SCRATCH_MARK = ".of-a-search"
"""File that tells the folder in which Ray keeps its notes from another of that name."""

LONGEST_ERROR = 300
"""Characters of an error that are shown; the log in the trial's folder has all of it."""


@dataclass
class Record:
    """How a trial went, by what it reported.

    Attributes:
        name: of the trial and its folder.
        point: the searched settings it was given.
        status: how it ended.
        learning_curve: every validation.
        error: what went wrong at last, in one line.
        attempts: how often it was begun.
        node: address of the machine that ran it.
    """

    name: str
    point: dict[str, Any]
    status: Status = FAILED
    learning_curve: list[Validation] = field(default_factory=list)
    error: str | None = None
    attempts: int = 1
    node: str | None = None

    @property
    def best(self) -> Validation | None:
        """The best validation, the first of equal ones."""
        return max(self.learning_curve, key=lambda each: each["valid"], default=None)

    @property
    def score(self) -> float | None:
        """The valid metric of the best epoch; ``None`` without a validation."""
        return self.best["valid"] if self.best else None

    def row(self, metric: str) -> dict[str, Any]:
        """The row of ``trials.csv``."""
        last = self.learning_curve[-1] if self.learning_curve else None
        point = {
            key: json.dumps(value) if isinstance(value, (list, dict)) else value
            for key, value in self.point.items()
        }
        return {
            "trial": self.name,
            "status": self.status,
            metric: self.score,
            **point,
            "best_epoch": self.best["epoch"] if self.best else None,
            "last_epoch": last["epoch"] if last else None,
            "seconds": last["seconds"] if last else None,
            "attempts": self.attempts,
            "node": self.node,
            "error": self.error,
        }

    def says(self, metric: str) -> str:
        """How it ended, in one line."""
        if self.status == FAILED:
            return f"trial {self.name} failed, {self.attempts} attempts: {self.error}"
        point = ", ".join(f"{key} {value}" for key, value in self.point.items())
        return f"trial {self.name} {self.status}: {metric} {self.score:.4f} ({point})"

    def write(self, folder: Path) -> None:
        """Write ``trial.json`` in the trial's folder, whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        with atomic_write(folder / RECORD_NAME, "w") as file:
            file.write(text + "\n")


def read_records(trials: Path) -> list[Record]:
    """All records in the folder of the trials, by name.

    Raises:
        ValueError: if a file is not that of a trial.
    """
    found = []
    for path in sorted(trials.glob(f"*/{RECORD_NAME}")):
        try:
            text = path.read_text(encoding="utf-8")
            found.append(TypeAdapter(Record).validate_json(text, strict=True))
        except (OSError, ValueError) as error:
            reason = misfit(error) if isinstance(error, ValidationError) else error
            raise ValueError(f"{path} is not the record of a trial: {reason}") from None
    return found


def best_of(records: Mapping[str, Record]) -> Record | None:
    """The trial that validated best, the first of equal ones; a failed one never wins."""
    able = [each for each in records.values() if each.status != FAILED and each.score is not None]
    return max(able, key=lambda each: each.score or 0.0, default=None)


def write_table(path: Path, records: Mapping[str, Record], metric: str) -> None:
    """Write ``trials.csv``, the best trial first, those without a score last.

    Raises:
        OSError: if it cannot be written.
    """
    ordered = sorted(records.values(), key=lambda each: (-_or_worst(each.score), each.name))
    table = pd.DataFrame([each.row(metric) for each in ordered])
    with atomic_write(path, "w") as file:
        table.to_csv(file, index=False)


def clear_unfinished(search: Path, kept: Collection[str]) -> None:
    """Remove what trials that did not end left, and Ray's notes, whose pickles nobody reads.

    Args:
        search: the folder of the search.
        kept: names of trials that ended.

    Raises:
        ValueError: if something else stands there; then nothing is removed.
    """
    trials, scratch = search / "trials", search / "ray"
    left = [path for path in _inside(trials) if path.name not in kept]
    notes = _inside(scratch)
    names = {path.name for path in notes}
    if notes and not {SCRATCH_MARK} <= names <= {SCRATCH_MARK, "trials"}:
        raise ValueError(f"{scratch} holds more than notes of Ray's; move it away")
    for folder in left:
        refuse_no_trial(folder)
    for folder in (*left, *([scratch] if scratch.is_dir() else [])):
        shutil.rmtree(folder)


def refuse_no_trial(folder: Path) -> None:
    """Refuse what is more than a trial left, or something else.

    Raises:
        ValueError: names it.
    """
    found = folder if not folder.is_dir() or folder.is_symlink() else stranger(folder, LAYOUT)
    if found:
        raise ValueError(f"{found} is not of a trial; move it away")


def _inside(folder: Path) -> list[Path]:
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of this search; move it away")
    return [*folder.iterdir()]


class UnderWay:
    """Trials that have begun and not ended.

    Args:
        board: is told of every end.
        trials: folder in which each trial that ends leaves its record.
        metric: name of the score.
    """

    def __init__(self, board: Board[str, Record], trials: Path, metric: str) -> None:
        self._board, self._trials, self._metric = board, trials, metric
        self._records: dict[str, Record] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def begin(self, name: str, point: Mapping[str, Any], error: str | None) -> None:
        """Take in that a trial begins, or begins again after an error."""
        before = self._records.get(name)
        self._records[name] = Record(name, dict(point))
        if before:
            self._records[name].attempts = before.attempts + 1
            reason = error or "no reason is known"
            says = f"trial {name} failed and is tried again: {reason}"
            print(says, file=sys.stderr, flush=True)

    def measure(self, name: str, result: Mapping[str, Any]) -> None:
        """Take in a report of a trial; what it reported twice counts once."""
        record = self._records[name]
        point: Any = {key: result[key] for key in Validation.__annotations__ if key in result}
        if len(point) == len(Validation.__annotations__) and point not in record.learning_curve:
            record.learning_curve.append(point)
            record.node = result.get("node")

    def end(self, name: str, status: Status, error: str | None = None) -> None:
        """Take in how a trial ended.

        Raises:
            OSError: if a file cannot be written.
        """
        record = replace(self._records.pop(name), status=status, error=error)
        record.write(self._trials / name)
        self._board.end(name, record, record.says(self._metric))


def in_one_line(text: str) -> str:
    """The last error in Ray's report of one, without the trace before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.()]*(Error|Exception|Interrupt)\b.*: ", line)]
    dead = [line for line in lines if line.startswith("The actor is dead")]
    line = (dead[-1:] or named[-1:] or lines[-1:] or ["no reason is known"])[0]
    return line if len(line) <= LONGEST_ERROR else line[:LONGEST_ERROR] + "…"


def _or_worst(score: float | None) -> float:
    return -math.inf if score is None else score
