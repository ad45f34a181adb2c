"""What is known of a search so far: every trial's record, and the outputs that show them."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.study.search.record import (
    FAILED,
    RECORD_NAME,
    Record,
    best_record,
    write_record,
    write_table,
)
from recbole_jepa4rec.study.search.request import Request

TABLE_NAME, BEST_NAME = "trials.csv", "best.yaml"
LONGEST_ERROR = 300
"""Characters of an error that are shown; the log in the trial's folder has all of it."""


class Board:
    """Records of a search; each end of a trial rewrites ``trials.csv`` and ``best.yaml``.

    Args:
        request: what was asked for.
        done: records of trials that ended before; failed ones are not among them.
    """

    def __init__(self, request: Request, done: Sequence[Record]) -> None:
        self.request = request
        self.metric = str(request.config["valid_metric"]).lower()
        self.records = {record.name: record for record in done}
        self._running: dict[str, Record] = {}

    @property
    def best(self) -> Record | None:
        """The trial that validated best so far."""
        return best_record([*self.records.values()])

    def is_under_way(self, name: str) -> bool:
        """Whether a trial has begun and not ended."""
        return name in self._running

    def begin(self, name: str, point: Mapping[str, Any], error: str | None) -> None:
        """Take in that a trial begins, or begins again after an error."""
        before = self._running.get(name)
        record = Record(name, dict(point))
        if before:
            record = replace(record, attempts=before.attempts + 1)
            _say(f"trial {name} failed and is tried again: {error or 'no reason is known'}")
        self._running[name] = record

    def measure(self, name: str, result: Mapping[str, Any]) -> None:
        """Take in a report of a trial under way; what it reported twice counts once."""
        record = self._running[name]
        keys = ("stage", "epoch", "seconds", "valid")
        point = {key: result[key] for key in keys if key in result}
        if len(point) == len(keys) and point not in record.learning_curve:
            record.learning_curve.append(point)
            record.node = result.get("node")

    def end(self, name: str, status: str, error: str | None = None) -> None:
        """Take in how a trial ended, say so, and write what shows it.

        Raises:
            OSError: if a file cannot be written.
        """
        record = replace(self._running.pop(name), status=status, error=error)
        self.records[name] = record
        write_record(self.request.folder / "trials" / name, record)
        self.write()
        _say(f"{self._says(record)}; {len(self.records)} of {self.request.num_samples} ended")

    def write(self) -> None:
        """Write ``trials.csv`` and, once there is a best trial, ``best.yaml``.

        Raises:
            OSError: if a file cannot be written.
        """
        folder = self.request.folder
        write_table(folder / TABLE_NAME, [*self.records.values()], self.metric)
        if not (best := self.best):
            return
        with atomic_write(folder / BEST_NAME, "w") as file:
            file.write(
                f"# Trial {best.name}, the best of {len(self.records)} by {self.metric} on "
                f"validation: {best.score:.4f}.\n"
            )
            settings = {**self.request.given, **best.point}
            yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)

    def _says(self, record: Record) -> str:
        point = ", ".join(f"{key} {value}" for key, value in record.point.items())
        if record.status == FAILED:
            return f"trial {record.name} failed, {record.attempts} attempts: {record.error}"
        return f"trial {record.name} {record.status}: {self.metric} {record.score:.4f} ({point})"


def clear_unfinished(request: Request, done: Sequence[Record]) -> None:
    """Remove what trials that did not end left in the folder of the trials.

    Raises:
        ValueError: if something else stands there.
    """
    kept = {record.name for record in done}
    trials = request.folder / "trials"
    for folder in trials.iterdir() if trials.is_dir() else ():
        if folder.name in kept:
            continue
        names = {RECORD_NAME, "run.log", "run.failed.log", "config.yaml"}
        inside = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
        if inside and not inside & names:
            raise ValueError(f"{folder} is not of a trial; move it away")
        shutil.rmtree(folder)


def in_one_line(text: str) -> str:
    """The last error in Ray's report of one, without the trace before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.()]*(Error|Exception|Interrupt)\b.*: ", line)]
    dead = [line for line in lines if line.startswith("The actor is dead")]
    line = (dead[-1:] or named[-1:] or lines[-1:] or ["no reason is known"])[0]
    return line if len(line) <= LONGEST_ERROR else line[:LONGEST_ERROR] + "…"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
