"""Ranks of targets among all items, and metrics that are functions of such a rank.

The rank is ``1 + #greater + #ties / 2``, a float, so that a model that scores every item alike
never beats chance. With one target per user every metric here is a function of that rank alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from recbole.evaluator.base_metric import AbstractMetric
from recbole.utils import EvaluatorType
from torch import Tensor

SCORES_AT_ONCE = 1 << 20
"""Scores that are compared at once while counting: 4 MiB of outcomes, which a cache can hold."""

RankMetric = Callable[[np.ndarray, int], np.ndarray]


def target_ranks(scores: Tensor, target: Tensor) -> Tensor:
    """Rank of each row's target among all items; ties share their mean rank.

    Args:
        scores: score of every item, ``[B, N]``; column 0 is the padding item and is not looked at.
            Items that must not compete may hold ``-inf``.
        target: internal id of the target item, ``[B]``, in ``1 .. N - 1``.

    Returns:
        Ranks, ``[B]`` float64 on the CPU, each in ``1 .. N - 1``.

    Raises:
        ValueError: if a score is not a number or a target is not an item.
    """
    items, position = scores.detach()[:, 1:], target[:, None] - 1
    if bool(((position < 0) | (position >= items.shape[1])).any()):
        raise ValueError(f"targets must lie in 1 .. {items.shape[1]}")
    target_score = items.gather(1, position)
    width = max(1, SCORES_AT_ONCE // max(1, len(items)))
    # Floats, since a sum of bools copies them to int64 first.
    outcome = scores.new_empty(len(items), min(width, items.shape[1]), dtype=torch.float32)
    not_a_number = torch.zeros_like(target, dtype=torch.bool)
    beaten_by = torch.zeros_like(target, dtype=torch.float64)  # greater + greater or equal
    for chunk in items.split(width, dim=1):
        out = outcome[:, : chunk.shape[1]]
        not_a_number |= chunk.amax(dim=1).isnan()
        beaten_by += torch.gt(chunk, target_score, out=out).sum(dim=1)
        beaten_by += torch.ge(chunk, target_score, out=out).sum(dim=1)
    if rows := int(not_a_number.sum()):
        raise ValueError(f"scores hold NaN in {rows} of {len(items)} rows")
    return (beaten_by.cpu() + 1) / 2


def metric_values(
    ranks: np.ndarray | Tensor, metrics: Sequence[str], topk: Sequence[int]
) -> dict[str, np.ndarray]:
    """Every metric at every cut-off, and the uncut reciprocal rank, for each rank.

    Args:
        ranks: ranks of the targets, ``[B]``, each at least 1.
        metrics: names from ``RANK_METRICS`` in any case; ``FullMRR`` stands for
            ``mrr``, which is always there.
        topk: cut-offs, in items.

    Returns:
        ``{"recall@10": [B], ..., "mrr": [B]}``, float64.

    Raises:
        ValueError: for a metric that is no function of the rank, or a cut-off below 1.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    names = [name.lower() for name in metrics]
    for name in names:
        if name not in RANK_METRICS and name != "fullmrr":
            allowed = ", ".join([*RANK_METRICS, "fullmrr"])
            raise ValueError(
                f"metric {name!r} is no function of the target's rank (allowed: {allowed})"
            )
    for k in topk:
        if k < 1:
            raise ValueError(f"topk {k} is below 1")
    values = {
        f"{name}@{k}": RANK_METRICS[name](ranks, k)
        for name in names
        if name in RANK_METRICS
        for k in topk
    }
    return {**values, "mrr": 1 / ranks}


def mean_metrics(
    ranks: np.ndarray | Tensor, metrics: Sequence[str], topk: Sequence[int]
) -> dict[str, float]:
    """Means over users of ``metric_values``, which documents the arguments.

    Raises:
        ValueError: as ``metric_values``, and if there is no rank to average.
    """
    if len(ranks) == 0:
        raise ValueError("no targets to average over: no user has at least three interactions")
    return {key: float(value.mean()) for key, value in metric_values(ranks, metrics, topk).items()}


class FullMRR(AbstractMetric):
    """Mean reciprocal rank over the whole ranking, ``mrr``, for RecBole's own evaluator."""

    metric_type = EvaluatorType.RANKING
    metric_need = ["rec.meanrank"]

    def calculate_metric(self, dataobject: Any) -> dict[str, float]:
        """Average the reciprocals of the mean ranks that RecBole's collector has gathered.

        Args:
            dataobject: RecBole's ``DataStruct``; its ``rec.meanrank`` holds rows of
                ``[sum of target ranks, number of items, number of targets]``.

        Returns:
            ``{"mrr": value}``, rounded to ``metric_decimal_place``.

        Raises:
            ValueError: if a row has more than one target.
        """
        rank_sum, _, num_targets = dataobject.get("rec.meanrank").double().unbind(dim=1)
        if bool((num_targets != 1).any()):
            raise ValueError("metric 'FullMRR' needs exactly one target per row")
        return {"mrr": round(float((1 / rank_sum).mean()), self.decimal_place)}


def _hit(ranks: np.ndarray, k: int) -> np.ndarray:
    return (ranks <= k).astype(np.float64)


def _ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    return _hit(ranks, k) / np.log2(ranks + 1)


def _reciprocal_rank(ranks: np.ndarray, k: int) -> np.ndarray:
    return _hit(ranks, k) / ranks


def _precision(ranks: np.ndarray, k: int) -> np.ndarray:
    return _hit(ranks, k) / k


RANK_METRICS: dict[str, RankMetric] = {
    "recall": _hit,
    "hit": _hit,
    "ndcg": _ndcg,
    "mrr": _reciprocal_rank,
    "precision": _precision,
    "map": _reciprocal_rank,
}
"""Metrics of one target per user, by RecBole's names: ``fn(ranks [B], k) -> [B]``."""
