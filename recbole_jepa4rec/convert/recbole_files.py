"""Atomic files that others made, mended: encoding, order, ids without a row, repeated items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from recbole_jepa4rec.convert import values
from recbole_jepa4rec.convert.interactions import Row
from recbole_jepa4rec.convert.lines import BadLines
from recbole_jepa4rec.convert.source import KeysAreIds, Text, check_attributes
from recbole_jepa4rec.convert.tables import SeparatedTable, column_places
from recbole_jepa4rec.data.atomic_files import Column, read_header


class AtomicFiles(KeysAreIds):
    """``NAME/NAME.inter`` and, if there, ``NAME/NAME.item``.

    Lines that are no UTF-8 are read as Latin-1, NUL bytes become blanks; rows without id or time
    are bad lines.

    Args:
        folder: of the data set.
        bad: takes lines that cannot be used.
        attributes: columns of the ``.item`` file; by default its ``token`` and ``token_seq``
            columns but the id.
        decode_html: see ``values.text``.

    Raises:
        ValueError: if there is no such file or column.
    """

    def __init__(
        self,
        folder: Path,
        bad: BadLines,
        attributes: Sequence[str] | None = None,
        decode_html: bool = False,
    ) -> None:
        name = folder.resolve().name
        self._inter, self._item = folder / f"{name}.inter", folder / f"{name}.item"
        if not self._inter.is_file():
            raise ValueError(f"{folder}: expected a folder with {name}.inter")
        self.bad, self._decode_html = bad, decode_html
        header = read_header(self._item) if self._item.is_file() else []
        if attributes is None:
            attributes = [c.name for c in header if c.type.startswith("token")]
            attributes = [name for name in attributes if name != "item_id"]
        self.attributes = check_attributes(attributes)
        self._item_header = header
        if self.attributes:
            column_places(self._item, _names(header), ["item_id", *self.attributes])

    def interactions(self) -> Iterator[Row]:
        """See ``Source``."""
        names = ("user_id", "item_id", "timestamp")
        for line, fields in self._rows(self._inter, read_header(self._inter), names):
            try:
                yield (
                    values.token(fields[0], "user_id"),
                    values.token(fields[1], "item_id"),
                    values.number(fields[2], "timestamp"),
                )
            except values.FaultError as fault:
                self.bad.add(self._inter, line, str(fault))

    def texts(self) -> Iterator[Text]:
        """See ``Source``."""
        if not self.attributes:
            return
        names = ["item_id", *self.attributes]
        for _, (item, *fields) in self._rows(self._item, self._item_header, names):
            yield item, [values.text(field, decode_html=self._decode_html) for field in fields]

    def _rows(
        self, path: Path, header: Sequence[Column], names: Sequence[str]
    ) -> Iterator[tuple[int, Sequence[str]]]:
        table = SeparatedTable(
            path, self.bad, "\t", ("utf-8", "latin-1"), quotes=False, columns=_names(header)
        )
        rows = table.rows(names)
        next(rows, None)  # the header
        for line, fields in rows:
            yield line, [field.replace("\0", " ") for field in fields]


def _names(header: Sequence[Column]) -> list[str]:
    return [column.name for column in header]
