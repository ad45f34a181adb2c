"""Ranks of targets among all items, and metrics that are functions of such a rank.

The rank is ``1 + #greater + #ties / 2``, a float, so that a model that scores every item alike
never beats chance. With one target per user every metric here is a function of that rank alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from recbole.evaluator.base_metric import AbstractMetric
from recbole.utils import EvaluatorType
from torch import Tensor

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
    items, position = scores[:, 1:], target[:, None] - 1
    if bool(((position < 0) | (position >= items.shape[1])).any()):
        raise ValueError(f"targets must lie in 1 .. {items.shape[1]}")
    if not_a_number := int(items.isnan().any(dim=1).sum()):
        raise ValueError(f"scores hold NaN in {not_a_number} of {len(items)} rows")
    target_score = items.gather(1, position)
    greater = (items > target_score).sum(dim=1)
    ties = (items == target_score).sum(dim=1) - 1
    return 1 + greater.cpu().double() + ties.cpu().double() / 2


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
