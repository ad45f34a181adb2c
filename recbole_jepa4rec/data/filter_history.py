"""Rankings without the items that a user has had already."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_jepa4rec.data.histories import HistoryRows


def drop_history(scores: Tensor, target: Tensor, rows: HistoryRows, batch: slice) -> None:
    """Take the items of each row's uncut history out of the ranking, but for the target itself.

    Args:
        scores: of every item, ``[B, N]``; changed in place.
        target: internal item id, ``[B]``.
        rows: of the evaluated data.
        batch: which rows these are.

    Raises:
        ValueError: if the rows do not know the histories.
    """
    if not isinstance(rows, HistoryRows):
        raise ValueError("filter_history needs rows that know the whole histories")
    position = rows.target[batch]
    length = position - rows.histories.offsets[rows.histories.users[position]]
    row = torch.repeat_interleave(torch.arange(len(position)), length)
    before = (torch.arange(len(row)) - (length.cumsum(0) - length)[row]) + (position - length)[row]
    target_score = scores.gather(1, target[:, None])
    items = rows.histories.items[before]
    scores[row.to(scores.device), items.to(scores.device)] = -torch.inf
    scores.scatter_(1, target[:, None], target_score)
