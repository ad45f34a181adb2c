"""What is known of a trial, in ``trial.json`` of its folder and as a row of ``trials.csv``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_jepa4rec.base.files import atomic_write

FINISHED, STOPPED, FAILED = "finished", "stopped early", "failed"
STATUSES = (FINISHED, STOPPED, FAILED)
RECORD_NAME = "trial.json"


@dataclass
class Record:
    """How a trial went, by what it reported.

    Attributes:
        name: of the trial and its folder.
        point: the searched settings it was given.
        status: of ``STATUSES``.
        learning_curve: ``stage``, ``epoch``, ``seconds`` and ``valid`` of each validation.
        error: what went wrong at last, in one line.
        attempts: how often it was begun.
        node: address of the machine that ran it.
    """

    name: str
    point: dict[str, Any]
    status: str = FAILED
    learning_curve: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    attempts: int = 1
    node: str | None = None

    @property
    def best(self) -> dict[str, Any] | None:
        """The best validation, the first of equal ones."""
        return max(self.learning_curve, key=lambda each: each["valid"], default=None)

    @property
    def score(self) -> float | None:
        """The valid metric of the best epoch; ``None`` without a validation."""
        return self.best["valid"] if self.best else None

    def row(self, metric: str) -> dict[str, Any]:
        """The row of ``trials.csv``."""
        best = self.best or {"valid": None, "epoch": None}
        last = self.learning_curve[-1] if self.learning_curve else {"epoch": None, "seconds": None}
        point = {
            key: json.dumps(value) if isinstance(value, (list, dict)) else value
            for key, value in self.point.items()
        }
        return {
            "trial": self.name,
            "status": self.status,
            metric: best["valid"],
            **point,
            "best_epoch": best["epoch"],
            "last_epoch": last["epoch"],
            "seconds": last["seconds"],
            "attempts": self.attempts,
            "node": self.node,
            "error": self.error,
        }


def write_record(folder: Path, record: Record) -> None:
    """Write ``trial.json``, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(record), indent=2, allow_nan=False)
    with atomic_write(folder / RECORD_NAME, "w") as file:
        file.write(text + "\n")


def read_record(folder: Path) -> Record | None:
    """The record in a trial's folder; ``None`` if there is none.

    Raises:
        ValueError: if the file is not that of a trial.
    """
    path = folder / RECORD_NAME
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a trial: {error}") from None
    if not _is_whole(record):
        raise ValueError(f"{path} is not the record of a trial")
    return record


def read_records(trials: Path) -> list[Record]:
    """All records in the folder of the trials, by name.

    Raises:
        ValueError: as ``read_record``.
    """
    folders = sorted(trials.iterdir()) if trials.is_dir() else []
    return [record for folder in folders if (record := read_record(folder))]


def best_record(records: Sequence[Record]) -> Record | None:
    """The trial that validated best, the first of equal ones; a failed one never wins."""
    able = [each for each in records if each.status != FAILED and each.score is not None]
    return max(able, key=lambda each: each.score or 0.0, default=None)


def write_table(path: Path, records: Sequence[Record], metric: str) -> None:
    """Write ``trials.csv``, the best trial first, those without a score last.

    Raises:
        OSError: if it cannot be written.
    """
    ordered = sorted(records, key=lambda each: (-_or_worst(each.score), each.name))
    table = pd.DataFrame([each.row(metric) for each in ordered])
    with atomic_write(path, "w") as file:
        table.to_csv(file, index=False)


def _or_worst(score: float | None) -> float:
    return -math.inf if score is None else score


def _is_whole(record: Record) -> bool:
    """Whether the fields hold what they should, as a file edited by hand may not."""
    curve = record.learning_curve
    return (
        isinstance(record.name, str)
        and isinstance(record.point, Mapping)
        and record.status in STATUSES
        and isinstance(curve, list)
        and all(
            isinstance(point, Mapping)
            and all(type(point.get(key)) in (int, float) for key in ("epoch", "seconds", "valid"))
            for point in curve
        )
    )
