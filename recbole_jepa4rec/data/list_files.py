"""Files of RecBole's benchmarks, whose rows hold an item and the list of the items before it.

A user's rows tell one history in pieces: each list holds what the rows before it have told, or the
end of that, and may go on from there. What they tell together is read once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


class UntoldError(ValueError):
    """A list that does not go on from the user's rows before.

    Attributes:
        row: number of the row that holds it.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"the list of row {row} does not go on from the rows before")
        self.row = row


def unrolled(
    rows: pd.DataFrame, lists: Sequence[np.ndarray], part: np.ndarray, fields: tuple[str, str, str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Interactions of rows that hold lists.

    Args:
        rows: user, item and time, ids as categories, ``[M]``.
        lists: raw ids of the items before each row's item, ``[M]`` of any length.
        part: number of the part of each, ``[M]``.
        fields: names of the three columns.

    Returns:
        Users, items and times, in order for each user, and for each interaction the number of the
        row that tells it. Items of a list that only it tells have the time of its row.

    Raises:
        UntoldError: for a list that does not go on from the user's rows before.
    """
    user, item, time = fields
    lengths = np.array([len(words) for words in lists])
    users, items = rows[user].cat.codes.to_numpy(), rows[item].to_numpy(object)
    told: list[str] = []
    told_by: list[int] = []
    begins, last = 0, -1
    for row in np.lexsort((lengths, rows[time], part, users)).tolist():
        if users[row] != last:
            begins, last = len(told), users[row]
        words = lists[row].tolist()
        new = words[_overlap(told[max(begins, len(told) - len(words)) :], words) :]
        if len(new) == len(words) > 0 and len(told) > begins:
            raise UntoldError(row)
        told += [*new, items[row]]
        told_by += [row] * (len(new) + 1)
    whose = np.array(told_by)
    table = rows[[user, item, time]].iloc[whose].reset_index(drop=True)
    table[item] = pd.Categorical(told, categories=pd.unique(np.array(told, object)))
    return table, whose


def _overlap(told: Sequence[str], words: Sequence[str]) -> int:
    """How many of the first words are the last ones told."""
    return next((n for n in range(len(told), 0, -1) if told[-n:] == words[:n]), 0)
