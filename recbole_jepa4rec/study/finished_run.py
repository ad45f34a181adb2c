"""A finished run: read from its folder, checked, and held against others."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from pydantic import TypeAdapter, ValidationError

from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.config.syntax import first_difference
from recbole_jepa4rec.evaluation.metrics import LIST_METRICS, metric_values
from recbole_jepa4rec.runner.result import Result, misfit
from recbole_jepa4rec.runner.run_folder import RunFolder

TEXTS = ("user_id", "target_item")
LEAST = {"rank": 1, "target_train_count": 0}
"""Columns of numbers, and the least that each may hold."""

FACTS = ("dataset", "protocol", "data_fingerprint", "text_fingerprint")
"""Fields of ``result.json`` that must be equal in everything that is compared."""

LARGEST = 2**53
"""Whole numbers beyond have no float of their own, in which all is averaged."""

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
    result: Result
    settings: dict[str, Any]
    users: pd.DataFrame

    @property
    def label(self) -> str:
        """What the run is called in tables."""
        return self.result["label"]

    def values(self) -> dict[str, np.ndarray]:
        """Every configured metric of a rank, for each user: ``{"recall@10": [U], ...}``."""
        metrics, topk = _asked(self.settings)
        return metric_values(self.users["rank"].to_numpy(), metrics, topk)


def read_run(folder: Path) -> FinishedRun:
    """Read the files of a finished run.

    Raises:
        DamagedRunError: if one of them is missing or does not hold what it should.
        ValueError: if they contradict each other, as after a change by hand.
    """
    files = RunFolder(folder)
    result = read_result(files.result_file)
    settings = _read_settings(files.config_file)
    measured = _measured(settings)
    for part, found in (("valid", result["valid"]), ("test", result["test"])):
        for key in dict.fromkeys([*measured, *found]):
            if key not in found:
                raise DamagedRunError(f"{files.result_file}: {part}.{key} is missing")
            if key not in measured:
                raise DamagedRunError(f"{files.result_file}: {part}.{key} was not asked for")
    run = FinishedRun(folder, result, settings, _read_users(files.per_user_file))
    if contradiction := _contradiction(run):
        raise ValueError(f"{files.result_file}: {contradiction}")
    return run


def _contradiction(run: FinishedRun) -> str:
    """In what the files of a run contradict each other; empty if they agree."""
    facts: Any = run.result
    for key in ("model", "seed"):
        if facts[key] != run.settings.get(key):
            return f"{key} is {facts[key]!r}, but config.yaml has {run.settings.get(key)!r}"
    ranks, items = run.users["rank"], facts["statistics"]["items"]
    if items < 1:
        return f"statistics.items is {items}"
    only_interactions = "item" not in (run.settings.get("load_col") or {"item": None})
    if only_interactions and ranks.max() > items:  # else items may count that nobody had
        user = ranks.index[ranks > items][0]
        return f"statistics.items is {items}, but the rank of user {user!r} is {ranks[user]}"
    for key, values in run.values().items():
        if not math.isclose(values.mean(), found := facts["test"][key], abs_tol=1e-12):
            mean = float(values.mean())
            return f"test.{key} is {found}, but the ranks in per_user.parquet give {mean}"
        if not 0 <= facts["valid"][key] <= 1:
            return f"valid.{key} is {facts['valid'][key]}, which no share is"
    return ""


def refuse_mixture(runs: Sequence[FinishedRun], varied: str | None = None) -> None:
    """Check that runs answer the same question about the same users.

    Args:
        runs: to be compared.
        varied: a part of the protocol that may differ.

    Raises:
        ValueError: naming two folders and the field in which they differ.
    """
    with_text = [run for run in runs if run.result["text_fingerprint"] is not None]
    for group in (runs, with_text):
        for other in group[1:]:
            if found := _difference(group[0], other, varied):
                both = f"{group[0].folder} and {other.folder} cannot be compared"
                raise ValueError(f"{both}: {found}")
    first: dict[tuple[str, Any], FinishedRun] = {}
    for run in runs:
        for key, digest in run.result.get("inputs", {}).items():
            other = first.setdefault((key, repr(run.settings.get(key))), run)
            if digest != other.result["inputs"][key]:
                both = f"{other.folder} and {run.folder} cannot be compared"
                raise ValueError(f"{both}: {key} {run.settings.get(key)!r} held other bytes")


def _difference(first: FinishedRun, other: FinishedRun, varied: str | None) -> str:
    """Why two runs cannot be compared; empty if they can."""
    one, two = _question(first, varied), _question(other, varied)
    if None in (one["text_fingerprint"], two["text_fingerprint"]):  # a run that reads no text
        two["text_fingerprint"] = one["text_fingerprint"]
    if different := first_difference(one, two):
        return "{} is {!r} in the first and {!r} in the second".format(*different)
    if not first.users.index.equals(other.users.index):
        alone = first.users.index.symmetric_difference(other.users.index)
        return f"user_id {alone[0]!r} is in one only ({len(alone)} such)"
    moved = first.users["target_item"] != other.users["target_item"]
    if moved.any():
        return f"target_item of user {moved.index[moved][0]!r} differs ({moved.sum()} such)"
    return ""


def _question(run: FinishedRun, varied: str | None) -> dict[str, Any]:
    """What must be equal in everything that is compared."""
    facts: Any = run.result
    protocol = {key: value for key, value in facts["protocol"].items() if key != varied}
    return {
        **{key: facts[key] for key in FACTS},
        "protocol": protocol,
        **{key: run.settings[key] for key in ASKED},
    }


def read_result(file: Path) -> Result:
    """What ``result.json`` of a finished run holds.

    Raises:
        DamagedRunError: if it cannot be read, or is none.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(result, allow_nan=False)  # refuses what could not be written again
    except OSError as error:
        raise DamagedRunError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(f"{file} is not json of finite numbers: {error}") from error
    _refuse_large(file, result)
    try:
        TypeAdapter(Result).validate_python(result, strict=True)
    except ValidationError as error:
        raise DamagedRunError(f"{file}: {misfit(error)}") from error
    if result["status"] != "finished":
        raise DamagedRunError(f"{file}: status is {result['status']!r}, not 'finished'")
    return result


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = read_yaml(file)
        _refuse_large(file, settings)
        selecting = settings["valid_metric"].lower()
        measured = _measured(settings)
    except KeyError as error:
        raise DamagedRunError(f"{file} has no key {error}") from error
    except DamagedRunError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedRunError(f"{file}: {error}") from error
    if selecting not in measured:
        raise DamagedRunError(f"{file}: valid_metric {selecting!r} is not among its metrics")
    return settings


def _read_users(file: Path) -> pd.DataFrame:
    try:
        users = pd.read_parquet(file)
    except Exception as error:  # of many types
        raise DamagedRunError(f"{file} cannot be read: {error}") from error
    for name in (*TEXTS, *LEAST):
        if name not in users:
            raise DamagedRunError(f"{file} has no column {name!r}")
    if users.empty:
        raise DamagedRunError(f"{file} holds no user")
    for name in TEXTS:
        if not all(isinstance(value, str) for value in users[name]):
            raise DamagedRunError(f"{file}: {name} holds more than texts")
    users = users.set_index("user_id").sort_index()
    if users.index.has_duplicates:
        twice = users.index[users.index.duplicated()][0]
        raise DamagedRunError(f"{file} holds user {twice!r} twice")
    for name, least in LEAST.items():
        if wrong := _no_count(users[name], least):
            raise DamagedRunError(f"{file}: {name} {wrong}")
    return users


def _no_count(values: pd.Series, least: int) -> str:
    """Why a column holds no numbers from ``least`` on; empty if it does."""
    if not is_numeric_dtype(values):
        return "holds no numbers"
    wrong = values[~(np.isfinite(values) & (values >= least))]
    if wrong.empty:
        return ""
    return f"of user {wrong.index[0]!r} is {wrong.iloc[0]}, and {least} is the least"


def _refuse_large(file: Path, value: Any, name: str = "") -> None:
    """Refuse whole numbers beyond ``LARGEST``, wherever they stand in a json or yaml file."""
    if isinstance(value, int) and abs(value) > LARGEST:
        raise DamagedRunError(f"{file}: {name} is beyond 2^53")
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_large(file, part, f"{name}.{key}" if name else str(key))


def _asked(settings: Mapping[str, Any]) -> list[list[Any]]:
    """The metrics and the cut-offs that settings ask for, each as a list."""
    values = settings["metrics"], settings["topk"]
    return [value if isinstance(value, list) else [value] for value in values]


def _measured(settings: Mapping[str, Any]) -> list[str]:
    """Keys of everything that is measured under settings."""
    metrics, topk = _asked(settings)
    of_lists = [name.lower() for name in metrics if name.lower() in LIST_METRICS]
    of_ranks = metric_values(np.ones(1), metrics, topk)
    return [*of_ranks, *(f"{name}@{k}" for name in of_lists for k in topk)]
