"""Ranks of targets among all items; metrics of such a rank, and metrics of what is recommended.

The rank is ``1 + #greater + #ties / 2``, a float, so that a model that scores every item alike
never beats chance. With one target per user a metric of accuracy is a function of that rank alone.
What a list of k items is like beyond it, the metrics of ``LIST_METRICS`` say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_jepa4rec.base.device import numbers_at_once
from recbole_jepa4rec.config.protocol import NOBODY_TESTED, selecting_metrics
from recbole_jepa4rec.data.histories import Histories

SCORES_AT_ONCE = 1 << 20
"""Scores that are compared at once while counting: 4 MiB of outcomes, which a cache can hold."""

RankMetric = Callable[[np.ndarray, int], np.ndarray]


class NotNumbersError(ValueError):
    """Scores that hold NaN, which has no rank."""


def target_ranks(scores: Tensor, target: Tensor) -> Tensor:
    """Rank of each row's target among all items; ties share their mean rank.

    Args:
        scores: score of every item, ``[B, N]``; column 0 is the padding item and is not looked at.
            Items that must not compete may hold ``-inf``.
        target: internal id of the target item, ``[B]``, in ``1 .. N - 1``.

    Returns:
        Ranks, ``[B]`` float64 where the scores are, each in ``1 .. N - 1``. A GPU is not waited
        for, so that a row whose scores hold NaN has NaN, which ``numbers_alone`` refuses.
    """
    items, position = scores.detach()[:, 1:], target[:, None] - 1
    target_score = items.gather(1, position)
    width = max(1, numbers_at_once(scores.device, SCORES_AT_ONCE) // max(1, len(items)))
    # Floats, since a sum of bools copies them to int64 first.
    outcome = scores.new_empty(len(items), min(width, items.shape[1]), dtype=torch.float32)
    not_a_number = torch.zeros_like(target, dtype=torch.bool)
    beaten_by = torch.zeros_like(target, dtype=torch.float64)  # greater + greater or equal
    for chunk in items.split(width, dim=1):
        out = outcome[:, : chunk.shape[1]]
        not_a_number |= chunk.amax(dim=1).isnan()
        beaten_by += torch.gt(chunk, target_score, out=out).sum(dim=1)
        beaten_by += torch.ge(chunk, target_score, out=out).sum(dim=1)
    return ((beaten_by + 1) / 2).masked_fill(not_a_number, torch.nan)


def numbers_alone(ranks: Tensor) -> Tensor:
    """The ranks, if all are numbers.

    Raises:
        NotNumbersError: if scores had none.
    """
    if rows := int(ranks.isnan().sum()):
        raise NotNumbersError(f"scores hold NaN in {rows} of {len(ranks)} rows")
    return ranks


def metric_values(
    ranks: np.ndarray | Tensor, metrics: Sequence[str], topk: Sequence[int]
) -> dict[str, np.ndarray]:
    """Every metric at every cut-off, and the uncut reciprocal rank, for each rank.

    Args:
        ranks: ranks of the targets, ``[B]``, each at least 1.
        metrics: names in any case; ``FullMRR`` stands for ``mrr``, which is always there. Those
            of ``LIST_METRICS`` are passed over: the rank does not tell them.
        topk: cut-offs, in items.

    Returns:
        ``{"recall@10": [B], ..., "mrr": [B]}``, float64.

    Raises:
        ValueError: for an unknown metric, or a cut-off below 1.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    names = [name.lower() for name in metrics]
    selecting_metrics(names, topk)  # refuses an unknown one
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
        raise ValueError(f"no targets to average over: {NOBODY_TESTED}")
    return {key: float(value.mean()) for key, value in metric_values(ranks, metrics, topk).items()}


@dataclass(frozen=True)
class TrainingCounts:
    """How often items occur in the training part.

    Attributes:
        interactions: of each item, ``[N]``; the padding item has none.
        users: who had each item, ``[N]``.
        num_users: who had any.
    """

    interactions: Tensor
    users: Tensor
    num_users: int

    @classmethod
    def of(cls, histories: Histories, num_items: int) -> TrainingCounts:
        """Count; ``num_items`` is ``N``, padding included."""
        trained = histories.in_training_part
        items, users = histories.items[trained], histories.users[trained]
        pairs = torch.unique(users * num_items + items)
        return cls(
            torch.bincount(items, minlength=num_items),
            torch.bincount(pairs % num_items, minlength=num_items),
            len(torch.unique(users)),
        )


def depth_of(metrics: Sequence[str], topk: Sequence[int]) -> int:
    """How many of the best items the metrics look at: 0 where ranks tell them all."""
    return max(topk) if any(name.lower() in LIST_METRICS for name in metrics) else 0


def list_metrics(
    best: Tensor, metrics: Sequence[str], topk: Sequence[int], counts: TrainingCounts
) -> dict[str, float]:
    """What the lists of recommended items are like, at every cut-off.

    Args:
        best: the items that stand first, ``[R, k]`` with ``k`` as ``depth_of`` says.
        metrics: names in any case; those of ``RANK_METRICS`` are passed over.
        topk: cut-offs, in items.
        counts: of the training part.

    Returns:
        ``{"coverage@10": value, ...}``.
    """
    names = [name.lower() for name in metrics if name.lower() in LIST_METRICS]
    return {f"{name}@{k}": LIST_METRICS[name](best[:, :k], counts) for name in names for k in topk}


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


def _coverage(best: Tensor, counts: TrainingCounts) -> float:
    """Share of the catalogue that is recommended to anybody."""
    return len(torch.unique(best)) / (len(counts.interactions) - 1)


def _novelty(best: Tensor, counts: TrainingCounts) -> float:
    """Mean self-information log2(U / u_i) of what is recommended, in bits (Zhou et al. 2010).

    An item that nobody had in training counts as one that a single user had.
    """
    share = counts.users.clamp(min=1).double() / counts.num_users
    return float(-share.log2()[best].mean())


def _average_popularity(best: Tensor, counts: TrainingCounts) -> float:
    """Mean number of training interactions of what is recommended."""
    return float(counts.interactions[best].double().mean())


LIST_METRICS: dict[str, Callable[[Tensor, TrainingCounts], float]] = {
    "coverage": _coverage,
    "novelty": _novelty,
    "average_popularity": _average_popularity,
}
"""Metrics of what is recommended to all users together: ``fn(best [R, k], counts) -> float``."""
