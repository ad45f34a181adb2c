"""How far rollouts drift from what users did next, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.data.histories import HistoryRows, PackedHistories
from recbole_jepa4rec.evaluation.metrics import numbers_alone, target_ranks
from recbole_jepa4rec.model.base import Model, RolloutStep
from recbole_jepa4rec.model.rollout import PROJECTIONS

WAYS = (*(f"latent, {name}" for name in PROJECTIONS), "text", "repeated")
"""What is fed back: the prediction itself, or as a projection pulls it back; the text of the item
that stands first; nothing, so that the first step's query is asked again."""

MEASURES = ("cosine", "recall@10")
"""Mean cosine of the query and the true item's vector, and the share of true items among ten."""

Drift = dict[str, dict[str, list[float]]]
"""By way and measure a number for each step."""


def held_back(rows: HistoryRows, steps: int, dataset: str) -> HistoryRows:
    """Rows of the first interaction that a split ``last_n`` holds back of each tested user.

    Args:
        rows: of the test.
        steps: interactions that are to be predicted.
        dataset: name of the data set.

    Raises:
        ValueError: if the split is another one, or holds back fewer.
    """
    part, users = rows.histories.part, rows.user_id
    counts = torch.ones_like(users)
    if part is not None:
        counts = torch.bincount(rows.histories.users[part == 2])[users]
        counts[counts != counts[0]] = 0  # of another split, which cuts anywhere
        before = rows.target[:, None] - torch.arange(max(1, int(counts[0])))
        counts[(part[before] != 2).any(dim=1)] = 0
    last = int(counts.min())
    if last < 2:
        raise ValueError(
            f"drift_steps is {steps}; allowed for data set {dataset!r}, which does not hold back "
            "the last items of each user (convert … --split last_n does): 0"
        )
    if steps > last:
        raise ValueError(
            f"drift_steps is {steps}; allowed for data set {dataset!r}, which holds back the last "
            f"{last} items of each user: 0 to {last}"
        )
    return rows.with_targets(rows.target - last + 1)


@torch.no_grad()
def measured_drift(
    model: Model,
    rows: HistoryRows,
    steps: int,
    batch_size: int,
    before_batch: Callable[[], None] = lambda: None,
) -> Drift:
    """Each way to feed back against the items that users had next; a collective.

    Args:
        model: that rolls out, in the mode in which it ranks.
        rows: whose targets are the first items to be predicted, others behind them.
        steps: 1 or more.
        batch_size: users ranked at once.
        before_batch: called before each batch.
    """
    model.item_vectors()  # together, before each process ranks users of its own
    sums = torch.zeros(len(WAYS), len(MEASURES), steps, dtype=torch.float64)
    for number, first in enumerate(rows.target.split(batch_size)):
        before_batch()
        if number % processes.world_size() != processes.rank():
            continue
        length, whole = model.max_seq_length, model.reads_whole_history
        histories = rows.histories.packed(first, length, whole)
        wanted = rows.histories.items[first + torch.arange(steps)[:, None]]
        wanted = sent(wanted, model.device)
        for way, name in enumerate(WAYS):
            for step, made in enumerate(_fed_back(model, histories, steps, name)):
                sums[way, :, step] += _measures(made, wanted[step])
    means = numbers_alone(processes.all_reduce(sums).flatten()).view_as(sums) / len(rows)
    return {
        way: dict(zip(MEASURES, of_way.tolist(), strict=True))
        for way, of_way in zip(WAYS, means, strict=True)
    }


def _fed_back(
    model: Model, histories: PackedHistories, steps: int, way: str
) -> Iterator[RolloutStep]:
    """What the model says at each step, if that way is fed back."""
    if way.startswith("latent, "):
        yield from model.rollout(histories, steps, way.removeprefix("latent, "))
        return
    made = next(model.rollout(histories, 1, "none"))
    for step in range(steps):
        if step and way == "text":
            histories = histories.followed_by(made.best, model.max_seq_length)
            made = next(model.rollout(histories, 1, "none"))
        yield made


def _measures(made: RolloutStep, wanted: Tensor) -> Tensor:
    """Sums of ``MEASURES`` over a batch, of true items ``[B]``; on the CPU."""
    ranks = target_ranks(made.scores, wanted)
    cosines = made.cosines.gather(1, wanted[:, None]).double()
    hits = torch.where(ranks.isnan(), ranks, (ranks <= 10).double())
    return torch.stack([cosines.sum(), hits.sum()]).cpu()
