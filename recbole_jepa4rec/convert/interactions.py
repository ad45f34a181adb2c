"""Interactions as three columns of numbers, whatever their ids look like."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Row = tuple[str, str, float]
"""User, item and time of one interaction."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions in the order of the source, ids as numbers in the order of first appearance.

    Attributes:
        user_ids: raw id of each user number, ``[U]``.
        item_ids: raw id of each item number, ``[I]``.
        users: int32 ``[M]``.
        items: int32 ``[M]``.
        times: float64 ``[M]``, in the unit of the source.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def read(cls, rows: Iterable[Row]) -> Interactions:
        """Take rows one at a time; 16 bytes of each are kept, and every id once."""
        user_codes: dict[str, int] = {}
        item_codes: dict[str, int] = {}
        users, items, times = array("i"), array("i"), array("d")
        for user, item, time in rows:
            users.append(user_codes.setdefault(user, len(user_codes)))
            items.append(item_codes.setdefault(item, len(item_codes)))
            times.append(time)
        return cls(
            list(user_codes),
            list(item_codes),
            np.frombuffer(users, np.int32),
            np.frombuffer(items, np.int32),
            np.frombuffer(times, np.float64),
        )

    def where(self, kept: np.ndarray) -> Interactions:
        """Those at the positions that a mask or indices name; the numbers of ids stay."""
        columns = (self.users[kept], self.items[kept], self.times[kept])
        return Interactions(self.user_ids, self.item_ids, *columns)

    def in_order(self) -> Interactions:
        """Sorted by user and time; interactions of one time stay in the order of the source."""
        return self.where(np.lexsort((self.times, self.users)))

    def renumbered(self) -> Interactions:
        """Numbers for the ids that occur alone, still in the order of first appearance."""
        user_numbers, users = np.unique(self.users, return_inverse=True)
        item_numbers, items = np.unique(self.items, return_inverse=True)
        return Interactions(
            [self.user_ids[n] for n in user_numbers.tolist()],
            [self.item_ids[n] for n in item_numbers.tolist()],
            users.astype(np.int32),
            items.astype(np.int32),
            self.times,
        )

    def counts(self) -> dict[str, int]:
        """Users and items that occur, and interactions."""
        return {
            "users": int(np.count_nonzero(np.bincount(self.users))),
            "items": int(np.count_nonzero(np.bincount(self.items))),
            "interactions": len(self),
        }
