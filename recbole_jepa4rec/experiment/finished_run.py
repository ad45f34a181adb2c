"""A finished run, read from its folder and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import ArrowInvalid

from recbole_jepa4rec.metrics import metric_values
from recbole_jepa4rec.run_folder import RunFolder
from recbole_jepa4rec.settings import read_yaml

COLUMNS = ("user_id", "target_item", "rank", "target_train_count")
FACTS = ("dataset", "protocol", "data_fingerprint")
"""Fields of ``result.json`` that must be equal in everything that is compared."""

READ = {
    *FACTS,
    *("label", "model", "status", "valid", "test", "statistics", "learning_curve"),
    *("seconds", "tokens_per_second", "peak_memory_gib", "parameters", "hardware", "versions"),
}
"""All fields of ``result.json`` that a comparison reads."""

ASKED = ("metrics", "topk", "valid_metric")
"""Settings for which the same holds."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run left.

    Attributes:
        folder: where it stands.
        result: of ``result.json``.
        settings: of ``config.yaml``.
        users: of ``per_user.parquet``, sorted by ``user_id``, which is the index.
    """

    folder: Path
    result: dict[str, Any]
    settings: dict[str, Any]
    users: pd.DataFrame

    @property
    def label(self) -> str:
        """What the run is called in tables."""
        return str(self.result["label"])

    def values(self) -> dict[str, np.ndarray]:
        """Every configured metric of each user, ``{"recall@10": [U], ..., "mrr": [U]}``."""
        metrics, topk = (as_list(self.settings[key]) for key in ("metrics", "topk"))
        return metric_values(self.users["rank"].to_numpy(), metrics, topk)


def as_list(value: Any) -> list[Any]:
    """A list as it is, and one value as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def read_result(folder: Path) -> dict[str, Any] | None:
    """``result.json`` of a run; ``None`` if there is none, or none that is whole."""
    try:
        result = json.loads(RunFolder(folder).result_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(result, dict) and set(result) >= READ and result["status"] == "finished"
    return result if whole and RunFolder(folder).per_user_file.is_file() else None


def read_run(folder: Path) -> FinishedRun:
    """Read the files of a finished run.

    Raises:
        ValueError: if one of them is missing or does not hold what it should.
    """
    files = RunFolder(folder)
    result = read_result(folder)
    if result is None:
        raise ValueError(f"{files.result_file} is missing or is not that of a finished run")
    try:
        users = pd.read_parquet(files.per_user_file)
    except (OSError, ArrowInvalid) as error:
        raise ValueError(f"cannot read {files.per_user_file}: {error}") from error
    for name in COLUMNS:
        if name not in users:
            raise ValueError(f"{files.per_user_file} has no column {name!r}")
    users = users.set_index("user_id").sort_index()
    if users.index.has_duplicates:
        twice = users.index[users.index.duplicated()][0]
        raise ValueError(f"{files.per_user_file} holds user {twice!r} twice")
    return FinishedRun(folder, result, read_yaml(files.config_file), users)


def refuse_mixture(runs: Sequence[FinishedRun]) -> None:
    """Check that runs answer the same question about the same users.

    Raises:
        ValueError: naming two folders and the field in which they differ.
    """
    for other in runs[1:]:
        first = runs[0]
        both = f"{first.folder} and {other.folder} cannot be compared"
        for key in FACTS:
            _refuse_different(both, key, first.result[key], other.result[key])
        for key in ASKED:
            _refuse_different(both, key, first.settings.get(key), other.settings.get(key))
        if not first.users.index.equals(other.users.index):
            alone = first.users.index.symmetric_difference(other.users.index)
            raise ValueError(f"{both}: user_id {alone[0]!r} is in one only ({len(alone)} such)")
        moved = first.users["target_item"] != other.users["target_item"]
        if moved.any():
            user = moved.index[moved][0]
            raise ValueError(f"{both}: target_item of user {user!r} differs ({moved.sum()} such)")


def _refuse_different(both: str, key: str, one: Any, other: Any) -> None:
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        key, one, other = next(
            (f"{key}.{name}", one.get(name), other.get(name))
            for name in [*one, *other]
            if one.get(name) != other.get(name)
        )
    raise ValueError(f"{both}: {key} is {one!r} in the first and {other!r} in the second")
