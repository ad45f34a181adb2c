"""The names that Ray 2.6.3, which RecBole pins, and today's Ray have for the same things."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

tune: Any = importlib.import_module("ray.tune")  # of either version; no type checker knows both

IS_CURRENT = hasattr(tune, "get_context")
"""Whether ``ray.tune`` speaks for itself; in 2.6.3 ``ray.air`` did."""


def report(metrics: Mapping[str, Any]) -> None:
    """Report one set of metrics from inside a trial."""
    (tune if IS_CURRENT else importlib.import_module("ray.air.session")).report(dict(metrics))


def trial_id() -> str:
    """Ray's name for the trial that asks."""
    if IS_CURRENT:
        return tune.get_context().get_trial_id()
    return importlib.import_module("ray.air.session").get_trial_id()


def run_config(storage_path: str, name: str, max_failures: int, callback: Any) -> Any:
    """``RunConfig`` of a silent run."""
    names = tune if IS_CURRENT else importlib.import_module("ray.air")
    return names.RunConfig(
        name=name,
        storage_path=storage_path,
        failure_config=names.FailureConfig(max_failures=max_failures),
        callbacks=[callback],
        verbose=0,
    )
