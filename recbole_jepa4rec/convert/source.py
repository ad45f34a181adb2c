"""Interactions and item text of any source: rows of its tables as ids, times and text."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from functools import lru_cache
from typing import Any

import numpy as np

from recbole_jepa4rec.convert.settings import Reading
from recbole_jepa4rec.convert.tables import BadLines, Names, Table
from recbole_jepa4rec.data.atomic_files import is_number

Row = tuple[str, str, float]
"""User, item and time of an interaction."""

Text = tuple[str, Sequence[str]]
"""Key of an item, and its attributes' values in order; "" where it lacks one."""

_UNFIT = re.compile(r"[\t\n\r\0\ud800-\udfff]")
_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
_TOO_FINE = re.compile(r"\.\d{6}0*[1-9]")  # past what a date of Python tells apart
_LARGEST_TIME = 2**63
_DIGITS = 20  # of the largest, with its sign
_EXACT_DIGITS = 17  # that a float64 tells apart


class FaultError(ValueError):
    """What a line should have had."""


@dataclass(frozen=True)
class Layout:
    """Names of what the tables hold; of several the first counts that is there.

    Attributes:
        user: of an interaction.
        item: of an interaction.
        time: of an interaction; without one, the order of the rows is the order in time.
        described: id of the item that a row of the items' table describes.
        rating: of an interaction, if there is one.
        attributes: names of the item text's columns, each with those that the table may have.
        commas: attributes whose lists are joined by commas; blanks join others.
        literals: whether lines may be Python literals instead of JSON.
        csv: columns of a ratings file without header.
    """

    user: Names
    item: Names
    time: Names
    described: Names
    rating: Names = ()
    attributes: Mapping[str, Names] = field(default_factory=dict)
    commas: Collection[str] = ("categories", "genres", "tags", "developer")
    literals: bool = False
    csv: Names = ()


class Source:
    """Interactions and item text, read from tables one row at a time, as often as asked for.

    An item's key is what the tables call it; most sources take it for its id.

    Args:
        layout: names of what the tables hold.
        reading: how they are read; by default all attributes of the layout are.
        bad: takes the lines that cannot be used.
        interactions: one row for each.
        items: one row for each item described, if there is such a table.

    Raises:
        ValueError: for an attribute that cannot be a column, or if it lacks the ratings asked for.

    Attributes:
        attributes: names of the item text's columns; empty if there is none.
        bad: the lines that were left out.
    """

    def __init__(
        self,
        layout: Layout,
        reading: Reading,
        bad: BadLines,
        interactions: Table,
        items: Table | None,
    ) -> None:
        if reading.min_rating is not None and not layout.rating:
            raise ValueError("min_rating: this source has no ratings")
        self.bad = bad
        self._layout, self._reading = layout, reading
        self._interactions, self._items = interactions, items
        wanted = layout.attributes if reading.attributes is None else reading.attributes
        self.attributes = tuple(wanted if items is not None else ())
        for place, name in enumerate(self.attributes):
            if not name or any(c in name for c in "\t\n\r\0:") or name == "item_id":
                raise ValueError(f"attribute {name!r} cannot be a column of an .item file")
            if name in self.attributes[:place]:
                raise ValueError(f"attribute {name!r} is named twice")

    def interactions(self) -> Iterator[Row]:
        """User, item and time of each, in the order of the files.

        Raises:
            ValueError: naming file, line and what was expected.
        """
        layout, least = self._layout, self._reading.min_rating
        forms = (self._reading.time_format,) if self._reading.time_format else ()
        user, item, time, rating = (
            " or ".join(names) for names in (layout.user, layout.item, layout.time, layout.rating)
        )
        wanted = [layout.user, layout.item]
        wanted += [layout.time] if time else []
        wanted += [layout.rating] if least is not None else []
        for place, (line, cells) in enumerate(self._interactions.rows(wanted)):
            try:
                if least is not None and number(cells[-1], rating) < least:
                    continue
                row = (
                    token(cells[0], user),
                    token(cells[1], item),
                    moment_of(cells[2], time, forms) if time else place,
                )
            except FaultError as fault:
                self.bad.add(self._interactions.path, line, str(fault))
            else:
                yield row

    def texts(self) -> Iterator[Text]:
        """Text of items, those without an interaction as well; the first of an item counts.

        Raises:
            ValueError: naming file, line and what was expected.
        """
        if self._items is None or not self.attributes:
            return
        layout, decode = self._layout, self._reading.decode_html
        described, is_empty = " or ".join(layout.described), True
        separators = [", " if name in layout.commas else " " for name in self.attributes]
        wanted = [layout.attributes.get(name, (name,)) for name in self.attributes]
        for line, (item, *cells) in self._item_rows([layout.described, *wanted]):
            try:
                key = token(item, described)
            except FaultError as fault:
                self.bad.add(self._items.path, line, str(fault))
                continue
            is_empty = False
            pairs = zip(cells, separators, strict=True)
            yield key, [text(cell, separator, decode) for cell, separator in pairs]
        if is_empty:
            where = f"{self._items.path}, line {self._items.first}"
            raise ValueError(f"{where}: expected a record with {described}, found none")

    def _item_rows(self, names: Sequence[Names]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table.rows``."""
        return iter(()) if self._items is None else self._items.rows(names)

    def item_ids(self, keys: list[str], counts: np.ndarray) -> list[str]:
        """The ids to write.

        Args:
            keys: of the items that stay, as ``interactions`` gave them.
            counts: interactions of each that stay.
        """
        return keys


def token(value: Any, name: str) -> str:
    """An id, as it stands; a whole number that a table holds as a decimal (12.0) without it.

    Raises:
        FaultError: if there is none, or a file of tab-separated lines cannot hold it.
    """
    if type(value) is str and value.isalnum():
        return value
    if type(value) is int or (type(value) is float and value.is_integer()):
        return str(int(value))
    if not isinstance(value, str) or not value:
        raise FaultError(f"expected {name} to be an id, found {shown(value)}")
    if _UNFIT.search(value):
        raise FaultError(
            f"expected {name} without tabs, line ends and control bytes, found {shown(value)}"
        )
    return value


def number(value: Any, name: str) -> float:
    """A finite number, from a number or its decimal notation; whole ones are integers.

    Raises:
        FaultError: for anything else.
    """
    if isinstance(value, str) and is_number(value):
        is_whole = value.removeprefix("-").isdecimal() and len(value) <= _DIGITS
        if not is_whole and len(value) > _EXACT_DIGITS and "." in value:
            digits = value.partition("e")[0].strip("-0 ").rstrip("0").replace(".", "")
            if len(digits) > _EXACT_DIGITS:  # two of them could be one number to a computer
                raise FaultError(
                    f"expected {name} of at most {_EXACT_DIGITS} digits, or a whole number, "
                    f"found {shown(value)}"
                )
        value = int(value) if is_whole else float(value)
    if type(value) not in (int, float) or not abs(value) < _LARGEST_TIME:  # NaN is not, either
        raise FaultError(f"expected {name} to be a number, found {shown(value)}")
    return int(value) if value == int(value) else value


def moment_of(value: Any, name: str, forms: tuple[str, ...] = ()) -> float:
    """A time: a number as it stands, or the Unix seconds of a date (UTC unless it says else).

    Args:
        value: a number, its decimal notation, a date, or text as ISO 8601 writes dates.
        name: of the column.
        forms: how text is read instead (``strptime``); the first that fits counts.

    Raises:
        FaultError: for anything else.
    """
    is_date = isinstance(value, date)
    if not is_date and not forms and (not isinstance(value, str) or is_number(value)):
        return number(value, name)
    if _TOO_FINE.search(str(value)):
        expected = f"expected {name} to the microsecond, or as a whole number"
        raise FaultError(f"{expected}, found {shown(str(value))}")
    try:
        return _seconds(value) if is_date else _seconds_of(str(value), forms)
    except ValueError:
        dates = "to be a number or a date such as 2011-12-09 12:50:00"
        expected = f"expected {name} {'as ' + ' or '.join(forms) if forms else dates}"
        hint = " (generic and online-retail read other forms by --time-format)" if value else ""
        raise FaultError(f"{expected}, found {shown(value)}{hint}") from None


@lru_cache(1 << 16)
def _seconds_of(text: str, forms: tuple[str, ...]) -> float:
    if not forms:
        return _seconds(datetime.fromisoformat(text.strip().replace("Z", "+00:00")))
    for form in forms:
        with suppress(ValueError):
            return _seconds(datetime.strptime(text, form))
    raise ValueError(text)


def _seconds(moment: date) -> float:
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    seconds = moment.timestamp()
    return int(seconds) if seconds == int(seconds) else seconds


def text(value: Any, separator: str = " ", decode_html: bool = False) -> str:
    """Text on one line: white space folded to single blanks, nothing else changed.

    Args:
        value: a string, a number, None, or lists of these, which are joined; of nested lists
            (several category paths) each member counts once.
        separator: put between the members of a list.
        decode_html: write HTML's entities as characters, and drop its tags.
    """
    if not isinstance(value, str):
        members = _members(value)
        if isinstance(value, list) and any(isinstance(member, list) for member in value):
            members = list(dict.fromkeys(members))
        value = separator.join(filter(None, (" ".join(member.split()) for member in members)))
    if decode_html and ("&" in value or "<" in value):
        value = _TAG.sub(" ", html.unescape(value))
    if not value.isascii():
        # pairs of surrogates become the characters they stand for; halves, no text, are replaced
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(value.replace("\0", " ").split())


def _members(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return [text for member in value for text in _members(member)]
    if isinstance(value, dict):
        return [f"{name}: {' '.join(_members(member))}" for name, member in value.items()]
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return [] if is_missing else [str(value)]


def shown(value: Any) -> str:
    """A value as a message shows it."""
    return "none" if value in (None, "") else repr(value)[:60]
