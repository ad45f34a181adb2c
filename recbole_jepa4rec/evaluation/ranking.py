"""The one ranking loop: exact ranks of targets among all items, and the best k where asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.evaluation.metrics import target_ranks

Batch = TypeVar("Batch", bound=Sized)


@dataclass(frozen=True)
class Ranking:
    """What a model makes of rows, in their order.

    Attributes:
        ranks: of each row's target among all items, ``[R]`` float64; see ``metrics.target_ranks``.
        best: the items that stand first, ``[R, k]``; ``k`` is 0 where nobody asked for them.
    """

    ranks: Tensor
    best: Tensor


@torch.no_grad()
def rank_targets(
    rows: HistoryRows,
    batches: Iterable[Batch],
    scores: Callable[[Batch], Tensor],
    *,
    filter_history: bool,
    depth: int = 0,
    before_batch: Callable[[], None] = lambda: None,
    show_progress: bool = False,
) -> Ranking:
    """Rank every row's target; each process ranks batches of its own, and all know the whole.

    Args:
        rows: to be ranked.
        batches: these rows in their order, cut anyhow.
        scores: of all items for the rows of a batch, padding item included, ``[B, N]``.
        filter_history: whether the items of a row's uncut history, but for the target, leave the
            ranking.
        depth: how many of the best items to keep.
        before_batch: called before each batch.
        show_progress: whether to draw a bar, where standard error is a terminal.

    Raises:
        NotNumbersError: if scores hold NaN.
    """
    ranks = torch.zeros(len(rows), dtype=torch.float64)
    best = torch.zeros(len(rows), depth, dtype=torch.int64)
    quiet = not (show_progress and sys.stderr.isatty() and processes.is_main())
    end = 0
    for number, batch in enumerate(tqdm(batches, desc="Evaluate", ncols=100, disable=quiet)):
        before_batch()
        these = slice(end, end := end + len(batch))
        if number % processes.world_size() != processes.rank():
            continue
        table = scores(batch).view(len(batch), -1)
        target = rows.histories.items[rows.target[these]].to(table.device)
        if filter_history:
            drop_history(table, target, rows, these)
        ranks[these] = target_ranks(table, target)
        if depth:
            best[these] = 1 + table[:, 1:].topk(depth, dim=1).indices.cpu()
    return Ranking(processes.all_reduce(ranks), processes.all_reduce(best))


def drop_history(scores: Tensor, target: Tensor, rows: HistoryRows, batch: slice) -> None:
    """Take the items of each row's uncut history out of the ranking, but for the target itself.

    Args:
        scores: of every item, ``[B, N]``; changed in place.
        target: internal item id, ``[B]``.
        rows: of the evaluated data.
        batch: which rows these are.
    """
    position = rows.target[batch]
    length = position - rows.histories.offsets[rows.histories.users[position]]
    row = torch.repeat_interleave(torch.arange(len(position)), length)
    before = (torch.arange(len(row)) - (length.cumsum(0) - length)[row]) + (position - length)[row]
    target_score = scores.gather(1, target[:, None])
    items = rows.histories.items[before]
    scores[row.to(scores.device), items.to(scores.device)] = -torch.inf
    scores.scatter_(1, target[:, None], target_score)
