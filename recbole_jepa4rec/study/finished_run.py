"""A finished run, read from its folder and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from pyarrow import ArrowException

from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.evaluation.metrics import metric_values
from recbole_jepa4rec.runner.run_folder import RunFolder
from recbole_jepa4rec.study.result_shape import NUMBER, SHAPE, misfits

COLUMNS = ("user_id", "target_item", "rank", "target_train_count")
LEAST = {"rank": 1, "target_train_count": 0}
"""Columns of numbers, and the least that each may hold."""

FACTS = ("dataset", "protocol", "data_fingerprint")
"""Fields of ``result.json`` that must be equal in everything that is compared."""

ASKED = ("metrics", "topk", "valid_metric")
"""Settings for which the same holds."""


class DamagedRunError(ValueError):
    """A folder does not hold the whole of a finished run; one line says what is wrong with it."""


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
        return self.result["label"]

    @property
    def text_fingerprint(self) -> str | None:
        """Of the item text that the model read; ``None`` if it reads none."""
        return self.result.get("text_fingerprint")

    def values(self) -> dict[str, np.ndarray]:
        """Every configured metric of each user, ``{"recall@10": [U], ..., "mrr": [U]}``."""
        return _values(self.users["rank"].to_numpy(), self.settings)


def read_run(folder: Path) -> FinishedRun:
    """Read the files of a finished run.

    Raises:
        DamagedRunError: if one of them is missing or does not hold what it should.
    """
    files = RunFolder(folder)
    result = _read_result(files.result_file)
    settings = _read_settings(files.config_file)
    measured = [*_values(np.ones(1), settings)]
    shape = dict.fromkeys(("valid", "test"), dict.fromkeys(measured, NUMBER))
    for misfit in misfits(result, shape):
        raise DamagedRunError(f"{files.result_file}: {misfit}")
    for part in shape:
        for key in result[part]:
            if key not in measured:
                raise DamagedRunError(f"{files.result_file}: {part}.{key} was not asked for")
    return FinishedRun(folder, result, settings, _read_users(files.per_user_file))


def refuse_mixture(runs: Sequence[FinishedRun]) -> None:
    """Check that runs answer the same question about the same users.

    Raises:
        ValueError: naming two folders and the field in which they differ.
    """
    for other in runs[1:]:
        first = runs[0]
        both = _both(first, other)
        for key in FACTS:
            _refuse_different(both, key, first.result[key], other.result[key])
        for key in ASKED:
            _refuse_different(both, key, first.settings[key], other.settings[key])
        if not first.users.index.equals(other.users.index):
            alone = first.users.index.symmetric_difference(other.users.index)
            raise ValueError(f"{both}: user_id {alone[0]!r} is in one only ({len(alone)} such)")
        moved = first.users["target_item"] != other.users["target_item"]
        if moved.any():
            user = moved.index[moved][0]
            raise ValueError(f"{both}: target_item of user {user!r} differs ({moved.sum()} such)")
    with_text = [run for run in runs if run.text_fingerprint is not None]
    for other in with_text[1:]:
        prints = with_text[0].text_fingerprint, other.text_fingerprint
        _refuse_different(_both(with_text[0], other), "text_fingerprint", *prints)


def _read_result(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(result, allow_nan=False)  # refuses what could not be written again
    except OSError as error:
        raise DamagedRunError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(f"{file} is not json of finite numbers: {error}") from error
    for misfit in misfits(result, SHAPE):
        raise DamagedRunError(f"{file}: {misfit}")
    if result["status"] != "finished":
        raise DamagedRunError(f"{file}: status is {result['status']!r}, not 'finished'")
    return result


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = read_yaml(file)
        selecting = settings["valid_metric"].lower()
        measured = _values(np.ones(1), settings)
    except KeyError as error:
        raise DamagedRunError(f"{file} has no key {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedRunError(f"{file}: {error}") from error
    if selecting not in measured:
        raise DamagedRunError(f"{file}: valid_metric {selecting!r} is not among its metrics")
    return settings


def _read_users(file: Path) -> pd.DataFrame:
    try:
        users = pd.read_parquet(file)
    except (OSError, ValueError, ArrowException) as error:
        raise DamagedRunError(f"{file} cannot be read: {error}") from error
    for name in COLUMNS:
        if name not in users:
            raise DamagedRunError(f"{file} has no column {name!r}")
    if users.empty:
        raise DamagedRunError(f"{file} holds no user")
    users = users.set_index("user_id").sort_index()
    if users.index.has_duplicates:
        twice = users.index[users.index.duplicated()][0]
        raise DamagedRunError(f"{file} holds user {twice!r} twice")
    for name, least in LEAST.items():
        values = users[name]
        if not is_numeric_dtype(values):
            raise DamagedRunError(f"{file}: {name} holds no numbers")
        wrong = values[~(np.isfinite(values) & (values >= least))]
        if len(wrong):
            found = f"{name} of user {wrong.index[0]!r} is {wrong.iloc[0]}"
            raise DamagedRunError(f"{file}: {found}, and {least} is the least")
    return users


def _values(ranks: np.ndarray, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """The metrics that settings ask for, of each rank."""
    metrics, topk = (
        value if isinstance(value, list) else [value]
        for value in (settings["metrics"], settings["topk"])
    )
    return metric_values(ranks, metrics, topk)


def _both(first: FinishedRun, other: FinishedRun) -> str:
    return f"{first.folder} and {other.folder} cannot be compared"


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
