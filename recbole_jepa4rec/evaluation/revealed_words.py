"""Words of the next item that a model is shown when it ranks (paper, appendix D and Figure 7).

The paper does not say how they are shown. Here they are an item of their own behind the history,
whose text has those words alone: what every model that knows items by their text can read. All it
ranks is the catalogue as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.data.histories import HistoryRows, PackedHistories
from recbole_jepa4rec.model.base import Model


@contextmanager
def words_revealed(
    model: Model, item_text: pd.DataFrame, rows: HistoryRows, ratio: float, seed: int
) -> Iterator[Callable[[PackedHistories], Tensor]]:
    """A model that is shown a share of the words of each row's target.

    Args:
        model: that ``fits_any_catalogue``; meanwhile it has the revealed texts for items.
        item_text: one row an item, row 0 (the padding item) empty; one column an attribute.
        rows: to be ranked, one a user.
        ratio: share of the words.
        seed: of the draw.

    Yields:
        In place of ``model.scores``; also ``[B, N]``.
    """
    known = model.n_items
    users, targets = rows.user_id, rows.histories.items[rows.target]
    text = revealed_text(item_text, users, targets, ratio, seed)
    shown = torch.from_numpy((text != "").any(axis=1).to_numpy())
    item_of_user = torch.zeros(len(rows.histories.lengths), dtype=torch.int64)

    def scores(histories: PackedHistories) -> Tensor:
        behind = histories.followed_by(item_of_user[histories.users], model.max_seq_length)
        return model.scores(behind)[:, :known]

    try:
        if shown.any():
            item_of_user[users[shown]] = model.add_items(text[shown.numpy()])
        yield scores
    finally:
        model.drop_items(known)


def revealed_text(
    item_text: pd.DataFrame, users: Tensor, items: Tensor, ratio: float, seed: int
) -> pd.DataFrame:
    """What is left of items' texts where some words are kept, in their order.

    Each word is kept with probability ``ratio``, by seed, user, item and its place alone, so that
    the words of a smaller share are among those of a larger one.

    Args:
        item_text: one row an item; one column an attribute.
        users: to whom each is shown, ``[R]``.
        items: that are shown, ``[R]``.
        ratio: share of the words.
        seed: of the draw.

    Returns:
        One row for each, with the columns of ``item_text``.
    """
    keys = derive(seed, users, items, Draw.REVEALED_WORD)
    left = []
    for key, values in zip(
        keys, item_text.iloc[items.numpy()].itertuples(index=False), strict=True
    ):
        words = [value.split() for value in values]
        place = torch.arange(sum(map(len, words)))
        kept = iter((uniform(derive(key, place)) < ratio).tolist())
        left.append([" ".join(word for word in part if next(kept)) for part in words])
    return pd.DataFrame(left, columns=item_text.columns, dtype=object)
