"""The one ranking loop: exact ranks of targets among all items, and the best k where asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.base.progress import shows_bars
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.evaluation.metrics import numbers_alone, target_ranks

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
    quiet = not (show_progress and shows_bars() and processes.is_main())
    own, ranks, best, end = [], list[Tensor](), list[Tensor](), 0
    for number, batch in enumerate(tqdm(batches, desc="Evaluate", ncols=100, disable=quiet)):
        before_batch()
        these = slice(end, end := end + len(batch))
        if number % processes.world_size() != processes.rank():
            continue
        table = scores(batch).view(len(batch), -1)
        had = history_places(rows, these) if filter_history else ()
        target, had = sent((rows.histories.items[rows.target[these]], had), table.device)
        if filter_history:
            table[had] = -torch.inf
        own.append(torch.arange(these.start, these.stop))
        ranks.append(target_ranks(table, target))
        if depth:
            best.append(1 + table[:, 1:].topk(depth, dim=1).indices)
    whole = Ranking(
        _whole(ranks, own, torch.zeros(len(rows), dtype=torch.float64)),
        _whole(best, own, torch.zeros(len(rows), depth, dtype=torch.int64)),
    )
    numbers_alone(whole.ranks)
    return whole


def _whole(parts: list[Tensor], own: list[Tensor], table: Tensor) -> Tensor:
    """A table of all rows, of the rows that each process has; read once, when all is ranked."""
    if parts:
        table[torch.cat(own)] = torch.cat(parts).cpu()
    return processes.all_reduce(table)


def history_places(rows: HistoryRows, batch: slice) -> tuple[Tensor, Tensor]:
    """Where scores stand of each row's uncut history, but for the target itself, on the CPU.

    Args:
        rows: of the evaluated data.
        batch: which rows these are.

    Returns:
        Row within the batch and item, ``[K]`` each.
    """
    position = rows.target[batch]
    length = position - rows.histories.offsets[rows.histories.users[position]]
    row = torch.repeat_interleave(torch.arange(len(position)), length)
    before = (torch.arange(len(row)) - (length.cumsum(0) - length)[row]) + (position - length)[row]
    items = rows.histories.items[before]
    others = items != rows.histories.items[position][row]
    return row[others], items[others]
