"""The protocol as settings name it: how the data are split, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PROTOCOL = {
    "split": {"LS": "valid_and_test"},
    "order": "TO",
    "group_by": "user",
    "mode": {"valid": "full", "test": "full"},
}
"""The only ``eval_args``."""

PARTS = ("training", "validation", "test")
"""What a split's files are for, in the order in which ``benchmark_filename`` names them."""

NOBODY_TESTED = "no user has at least 3 interactions"
NOBODY_TRAINS = "no user has 2 interactions to train on"
"""Why a data set is refused whose every user is too short to be tested, or to train a model."""

RANK_METRICS = ("recall", "hit", "ndcg", "mrr", "precision", "map")
"""Metrics of one target's rank, by RecBole's names; ``fullmrr`` stands for the uncut ``mrr``."""

LIST_METRICS = ("coverage", "novelty", "average_popularity")
"""Metrics of what is recommended to all; they say nothing of targets and select no model."""


def split_names(value: Any) -> list[str] | None:
    """The names of a split's files, from ``[train, valid, test]`` or ``"train,valid,test"``.

    Raises:
        ValueError: unless there are three different ones that can be part of a file's name.
    """
    if value is None:
        return None
    names = value.split(",") if isinstance(value, str) else value
    whole = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    if not whole or len(names) != len(PARTS) or len({*names}) != len(PARTS):
        raise ValueError(
            f"benchmark_filename {value!r} must be three different names, of the {', '.join(PARTS)}"
            " file: train,valid,test for NAME.train.inter and so on"
        )
    for name in names:
        if not name or {*name} & {*"/\\\0"}:
            raise ValueError(f"benchmark_filename: {name!r} cannot be part of a file's name")
    return list(names)


def selecting_metrics(metrics: Sequence[str], topk: Sequence[int]) -> list[str]:
    """What may select a model: every metric of ranks at every cut-off, and the uncut ``mrr``.

    Args:
        metrics: names in any case.
        topk: cut-offs, in items.

    Raises:
        ValueError: for an unknown metric.
    """
    known = (*RANK_METRICS, "fullmrr", *LIST_METRICS)
    names = [name.lower() for name in metrics]
    for name in names:
        if name not in known:
            raise ValueError(f"metric {name!r} is unknown (allowed: {', '.join(known)})")
    return [*(f"{name}@{k}" for name in names if name in RANK_METRICS for k in topk), "mrr"]


def refuse_other_protocol(eval_args: dict[str, Any]) -> None:
    """Refuse another split or sampled candidates.

    Raises:
        ValueError: names the entry of ``eval_args``.
    """
    for key, allowed in PROTOCOL.items():
        if eval_args[key] not in (allowed, "full" if key == "mode" else allowed):
            raise ValueError(
                f"eval_args.{key} {eval_args[key]!r} is not supported ({allowed!r} is)"
            )
