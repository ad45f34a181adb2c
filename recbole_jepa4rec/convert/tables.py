"""Tables with named columns: csv, tsv, other separated values, JSON lines, Parquet, workbooks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import parquet

from recbole_jepa4rec.convert.lines import MAX_LINE_BYTES, BadLines, numbered_lines, progress

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_JSON = (".jsonl", ".json", ".ndjson")


class Table(Protocol):
    """A file of rows.

    Attributes:
        columns: their names; empty where each row names its own (JSON lines).
    """

    path: Path
    columns: list[str]

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Line (or row) number and the values of the named columns, one row after another.

        Raises:
            ValueError: if the file cannot be read or has no such column.
        """
        ...


def open_table(
    path: Path, bad: BadLines, encodings: Sequence[str] = ("utf-8",), quotes: bool = True
) -> Table:
    """The table that a file holds, by its suffix (``.gz`` aside).

    Args:
        path: of the file.
        bad: takes lines that cannot be read.
        encodings: each line is text in the first of these that fits.
        quotes: whether ``"`` quotes fields of separated values.

    Raises:
        ValueError: for another suffix.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _SEPARATORS:
        return SeparatedTable(path, bad, _SEPARATORS[suffix], encodings, quotes)
    if suffix in _JSON:
        return JsonTable(path, bad)
    if suffix == ".parquet":
        return ParquetTable(path)
    if suffix == ".xlsx":
        return Workbook(path)
    allowed = ", ".join([*_SEPARATORS, *_JSON, ".parquet", ".xlsx"])
    raise ValueError(f"{path}: expected a file that ends in one of {allowed} (.gz may follow)")


class SeparatedTable:
    """Separated values, with a header line or given column names.

    Args:
        path: of the file.
        bad: takes lines that are not text or lack columns.
        separator: between the fields; longer than one character only without quotes.
        encodings: each line is text in the first of these that fits.
        quotes: whether ``"`` quotes fields, which may then hold separators and line ends.
        columns: names, if the first line is no header.
    """

    def __init__(
        self,
        path: Path,
        bad: BadLines,
        separator: str,
        encodings: Sequence[str] = ("utf-8",),
        quotes: bool = True,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.path, self._bad, self._separator, self._quotes = path, bad, separator, quotes
        self._encodings = encodings
        self._has_header = columns is None
        self._undecodable = 0
        self.columns = list(columns) if columns is not None else self._read_header()

    def _read_header(self) -> list[str]:
        for _, fields in self._all_rows():
            return [name.strip() for name in (fields[0].removeprefix("\ufeff"), *fields[1:])]
        raise ValueError(f"{self.path}, line 1: expected a header, found an empty file")

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table``."""
        where = column_places(self.path, self.columns, names)
        width, rows = len(self.columns), self._all_rows()
        if self._has_header:
            next(rows, None)
        for line, fields in rows:
            if self._undecodable:
                self._bad.add(
                    self.path, self._undecodable, f"expected {' or '.join(self._encodings)} text"
                )
                self._undecodable = 0
            elif len(fields) != width:
                self._bad.add(
                    self.path,
                    line,
                    f"expected {width} columns ({', '.join(self.columns)[:200]}), "
                    f"found {len(fields)}",
                )
            else:
                yield line, [fields[place] for place in where]

    def _all_rows(self) -> Iterator[tuple[int, list[str]]]:
        lines = (
            (line, self._decoded(line, content)) for line, content in numbered_lines(self.path)
        )
        if not self._quotes:
            for line, text in lines:
                if text.strip("\r"):
                    yield line, text.rstrip("\r").split(self._separator)
            return
        csv.field_size_limit(MAX_LINE_BYTES)
        reader = csv.reader((f"{text}\n" for _, text in lines), delimiter=self._separator)
        begun = 1
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                self._bad.add(self.path, begun, f"expected separated values, found {error}")
                fields = []
            if fields is None:
                return
            if fields:
                yield begun, fields
            begun = reader.line_num + 1

    def _decoded(self, line: int, content: bytes) -> str:
        for encoding in self._encodings:
            try:
                return content.decode(encoding)
            except UnicodeDecodeError:
                continue
        self._undecodable = line
        return content.decode("utf-8", "replace")


class JsonTable:
    """One JSON object a line; a column that an object lacks is None."""

    columns: list[str] = []

    def __init__(self, path: Path, bad: BadLines) -> None:
        self.path, self._bad = path, bad

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table``."""
        for line, record in json_records(self.path, self._bad):
            yield line, [record.get(name) for name in names]


class ParquetTable:
    """A Parquet file, read a batch at a time; rows count from 1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.columns = list(parquet.read_schema(path).names)
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path}: expected a Parquet file, found: {error}") from error

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table``."""
        column_places(self.path, self.columns, names)
        row = 0
        with parquet.ParquetFile(self.path) as file, progress(self.path) as bar:
            for batch in file.iter_batches(1 << 16, columns=list(dict.fromkeys(names))):
                columns = [batch.column(name).to_pylist() for name in names]
                for values in zip(*columns, strict=True):
                    row += 1
                    yield row, values
                bar.update(bar.total * batch.num_rows // max(1, file.metadata.num_rows))


class Workbook:
    """The first sheet of an Excel workbook, read a row at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = [str(cell) for cell in next(self._cells(), ())]

    def rows(self, names: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table``."""
        where = column_places(self.path, self.columns, names)
        rows = enumerate(self._cells(), start=1)
        next(rows, None)
        for row, cells in rows:
            if any(cell is not None for cell in cells):
                yield row, [cells[place] for place in where]

    def _cells(self) -> Iterator[tuple[Any, ...]]:
        try:
            from openpyxl import load_workbook
        except ImportError as error:
            raise ValueError(
                f"{self.path}: expected openpyxl to be installed (pip install openpyxl), "
                "or the same table as .csv"
            ) from error
        width = len(self.columns) if hasattr(self, "columns") else 0
        try:
            with closing(load_workbook(self.path, read_only=True, data_only=True)) as book:
                for cells in book.worksheets[0].iter_rows(values_only=True):
                    yield cells + (None,) * (width - len(cells))
        except Exception as error:  # the library raises whatever its parsers do
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.path}: expected a workbook, found: {reason}") from error


def json_records(path: Path, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not blank."""
    loads = json.loads
    for line, content in numbered_lines(path):
        if not content or content.isspace():
            continue
        try:
            record = loads(content.decode())
        except UnicodeDecodeError:
            bad.add(path, line, "expected UTF-8 text")
            continue
        except (ValueError, RecursionError) as error:
            bad.add(path, line, f"expected a JSON object, found {error}")
            continue
        if type(record) is dict:
            yield line, record
        else:
            bad.add(path, line, f"expected a JSON object, found {str(record)[:40]!r}")


def column_places(path: Path, columns: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the named columns stand.

    Raises:
        ValueError: for a name that no column has.
    """
    for name in names:
        if name not in columns:
            there = ", ".join(columns)
            raise ValueError(f"{path}, line 1: expected a column {name!r} (there are: {there})")
    return [columns.index(name) for name in names]
