"""UCI's Online Retail: one table of invoice lines, whose items have no id of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from recbole_jepa4rec.convert import values
from recbole_jepa4rec.convert.interactions import Row
from recbole_jepa4rec.convert.lines import BadLines
from recbole_jepa4rec.convert.source import Text
from recbole_jepa4rec.convert.tables import open_table

_COLUMNS = (
    ("InvoiceNo", "Invoice"),
    ("StockCode",),
    ("Description",),
    ("Quantity",),
    ("InvoiceDate",),
    ("UnitPrice", "Price"),
    ("CustomerID", "Customer ID"),
    ("Country",),
)
_INVOICE, _CODE, _DESCRIPTION, _DATE, _CUSTOMER = 0, 1, 2, 4, 6
_DATES = ("%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M", "%m/%d/%Y %H:%M:%S")

USERS = {"customer": _CUSTOMER, "invoice": _INVOICE}
ITEMS = {"description": _DESCRIPTION, "code": _CODE}


class OnlineRetail:
    """Invoice lines; rows equal in all eight columns count once, rows without user or item never.

    Cancelled lines (negative quantities) and service codes such as POST stay: the published counts
    hold them. A description is an item as it stands, spaces at its ends included; its id is the
    stock code most often sold under it, with ``.2``, ``.3``, ... where several share a code,
    the one with most interactions first, then in alphabetical order.

    Args:
        path: the table, ``.xlsx``, ``.csv`` or another that ``open_table`` reads.
        bad: takes lines that cannot be used.
        user: ``customer`` or ``invoice``.
        item: ``description`` or ``code``.
        time_format: of InvoiceDate (``strptime``); by default ISO's, or the month first.

    Raises:
        ValueError: if a column is missing.
    """

    attributes: tuple[str, ...] = ("title",)

    def __init__(
        self,
        path: Path,
        bad: BadLines,
        user: str = "customer",
        item: str = "description",
        time_format: str | None = None,
    ) -> None:
        self._path, self.bad = path, bad
        self._forms = _DATES if time_format is None else (time_format,)
        self._user, self._item = USERS[user], ITEMS[item]
        self._table = open_table(path, bad, encodings=("utf-8", "latin-1"))
        there = self._table.columns
        self._names = [next((n for n in names if n in there), names[0]) for names in _COLUMNS]
        self._codes: dict[str, Counter[str]] = {}
        self._titles: dict[str, str] = {}

    def interactions(self) -> Iterator[Row]:
        """See ``Source``."""
        seen: set[bytes] = set()
        self._codes, self._titles = {}, {}
        for line, cells in self._table.rows(self._names):
            row = [_plain(cell) for cell in cells]
            if not (row[self._user] and row[self._item] and row[_DESCRIPTION]):
                continue
            digest = blake2b("\x1f".join(row).encode("utf-8", "replace"), digest_size=12).digest()
            if digest in seen:
                continue
            seen.add(digest)
            try:
                user = values.token(row[self._user], self._names[self._user])
                values.token(row[_CODE], "StockCode")
                moment = _moment(cells[_DATE], self._forms)
            except values.FaultError as fault:
                self.bad.add(self._path, line, str(fault))
                continue
            key = row[self._item]
            self._codes.setdefault(key, Counter())[row[_CODE]] += 1
            self._titles.setdefault(key, values.text(row[_DESCRIPTION]))
            yield user, key, moment

    def texts(self) -> Iterator[Text]:
        """The descriptions of the interactions that were read."""
        for key, title in self._titles.items():
            yield key, [title]

    def item_ids(self, keys: list[str], counts: np.ndarray) -> list[str]:
        """Stock codes, each with a suffix where it is not the code's first description."""
        ids = [""] * len(keys)
        used: Counter[str] = Counter()
        for place in sorted(range(len(keys)), key=lambda n: (-counts[n], keys[n])):
            ((code, _),) = self._codes[keys[place]].most_common(1)
            used[code] += 1
            ids[place] = code if used[code] == 1 else f"{code}.{used[code]}"
        return ids


def _plain(cell: Any) -> str:
    """A cell as text; a whole number that a table holds as a decimal (17850.0) without it."""
    if cell is None or cell != cell:
        return ""
    text = str(cell)
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def _moment(cell: Any, forms: Sequence[str]) -> float:
    return values.time(cell, "InvoiceDate") if isinstance(cell, date) else _parsed(str(cell), forms)


@lru_cache(1 << 16)
def _parsed(moment: str, forms: Sequence[str]) -> float:
    for form in forms:
        try:
            return values.time_in_format(moment, form, "InvoiceDate")
        except values.FaultError:
            continue
    raise values.FaultError(
        f"expected InvoiceDate as {' or '.join(forms[:2])}, found {values.shown(moment)}"
    )
