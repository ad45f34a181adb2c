"""What a source of raw data offers to the conversion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from recbole_jepa4rec.convert.interactions import Row
from recbole_jepa4rec.convert.lines import BadLines

Text = tuple[str, Sequence[str]]
"""Key of an item, and its attributes' values in order; "" where it lacks one."""


class Source(Protocol):
    """Interactions and item text, read from files one row at a time, as often as asked for.

    Attributes:
        attributes: names of the item text's columns; empty if there is none.
        bad: the lines that were left out.
    """

    attributes: tuple[str, ...]
    bad: BadLines

    def interactions(self) -> Iterator[Row]:
        """User, item and time of each, in the order of the files.

        Raises:
            ValueError: naming file, line and what was expected.
        """
        ...

    def texts(self) -> Iterator[Text]:
        """Text of items, those without an interaction as well; the first of an item counts.

        Raises:
            ValueError: naming file, line and what was expected.
        """
        ...

    def item_ids(self, keys: list[str], counts: np.ndarray) -> list[str]:
        """The ids to write.

        Args:
            keys: of the items that stay, as ``interactions`` gave them.
            counts: interactions of each that stay.
        """
        ...


class KeysAreIds:
    """The part of most sources: an item's key is its id."""

    def item_ids(self, keys: list[str], counts: np.ndarray) -> list[str]:
        """The keys."""
        return keys


def check_attributes(names: Sequence[str]) -> tuple[str, ...]:
    """Refuse names that the header of an ``.item`` file cannot hold.

    Raises:
        ValueError: for the first such name.
    """
    for place, name in enumerate(names):
        if not name or any(c in name for c in "\t\n\r\0:") or name == "item_id":
            raise ValueError(f"attribute {name!r} cannot be a column of an .item file")
        if name in names[:place]:
            raise ValueError(f"attribute {name!r} is named twice")
    return tuple(names)
