"""People's own tables: interactions, and items' text in the same or another file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_jepa4rec.convert import values
from recbole_jepa4rec.convert.interactions import Row
from recbole_jepa4rec.convert.lines import BadLines
from recbole_jepa4rec.convert.source import KeysAreIds, Text, check_attributes
from recbole_jepa4rec.convert.tables import open_table


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns.

    Attributes:
        user: of the users' ids.
        item: of the items' ids, in both files.
        time: of the times; without one, the order of the rows is the order in time.
        rating: of the ratings, if there is one.
        time_format: how times are written (``strptime``); without one they are numbers, or dates as
            ISO 8601 writes them.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = "timestamp"
    rating: str | None = None
    time_format: str | None = None


class GenericTables(KeysAreIds):
    """One or two tables whose columns have any name.

    Args:
        interactions: file of the interactions.
        items: file of the item text; by default it is looked for in the first.
        columns: names of the columns.
        bad: takes lines that cannot be used.
        attributes: columns of the item text. By default, all others of the items' file; none where
            there is no such file.
        encoding: of separated values.
        quotes: whether ``"`` quotes fields of separated values.
        decode_html: see ``values.text``.
        min_rating: rating below which an interaction is left out.

    Raises:
        ValueError: if a file has no such column, or attributes must be named.
    """

    def __init__(
        self,
        interactions: Path,
        items: Path | None,
        columns: Columns,
        bad: BadLines,
        attributes: Sequence[str] | None = None,
        encoding: str = "utf-8",
        quotes: bool = True,
        decode_html: bool = False,
        min_rating: float | None = None,
    ) -> None:
        if min_rating is not None and columns.rating is None:
            raise ValueError("min_rating: name the column of the ratings (--rating)")
        self._columns, self.bad, self._min_rating = columns, bad, min_rating
        self._decode_html = decode_html
        self._table = open_table(interactions, bad, (encoding,), quotes)
        self._items = self._table if items is None else open_table(items, bad, (encoding,), quotes)
        if attributes is None and items is not None:
            attributes = [name for name in self._items.columns if name != columns.item]
            if not attributes:
                raise ValueError(f"{items}: expected --attributes, the columns of the item text")
        self.attributes = check_attributes(attributes or ())

    def interactions(self) -> Iterator[Row]:
        """See ``Source``."""
        columns, path = self._columns, self._table.path
        names = [columns.user, columns.item]
        names += [name for name in (columns.time, columns.rating) if name is not None]
        for place, (line, cells) in enumerate(self._table.rows(names)):
            try:
                if values.is_below(self._min_rating, cells[-1], names[-1]):
                    continue
                moment = self._time(cells[2]) if columns.time is not None else place
                yield _id(cells[0], columns.user), _id(cells[1], columns.item), moment
            except values.FaultError as fault:
                self.bad.add(path, line, str(fault))

    def texts(self) -> Iterator[Text]:
        """See ``Source``."""
        if not self.attributes:
            return
        path, is_empty = self._items.path, True
        for line, (item, *cells) in self._items.rows([self._columns.item, *self.attributes]):
            try:
                key = _id(item, self._columns.item)
            except values.FaultError as fault:
                self.bad.add(path, line, str(fault))
                continue
            is_empty = False
            yield key, [values.text(cell, ", ", self._decode_html) for cell in cells]
        if is_empty:
            raise ValueError(
                f"{path}, line 2: expected a row with {self._columns.item}, found none"
            )

    def _time(self, cell: Any) -> float:
        name = self._columns.time or ""
        if self._columns.time_format is not None:
            return values.time_in_format(cell, self._columns.time_format, name)
        return values.time(cell, name)


def _id(cell: Any, name: str) -> str:
    """An id; a whole number that a table holds as a decimal (12.0) is written without it."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return values.token(cell, name)
