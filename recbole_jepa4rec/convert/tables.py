"""Files of lines, and the tables they hold: separated values, JSON, Parquet, workbooks."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

MAX_LINE_BYTES = 1 << 24
"""The longest line: what ``atomic_files`` reads."""

_LINES_A_STEP = 4096  # of the bar
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_JSON = (".jsonl", ".json", ".ndjson")

Names = tuple[str, ...]
"""Names under which files know one column; the first counts that is there."""


class BadLines:
    """Lines that are left out; one more than allowed ends the reading.

    Args:
        allowed: how many lines may be left out.
    """

    def __init__(self, allowed: float = 0) -> None:
        self.allowed = allowed
        self.found: dict[tuple[Path, int], str] = {}

    def __len__(self) -> int:
        return len(self.found)

    def add(self, path: Path, line: int, expected: str) -> None:
        """Leave a line out; a second pass over the file finds it counted already.

        Raises:
            ValueError: naming file, line and what was expected, if that is one too many.
        """
        self.found[path, line] = expected
        if len(self.found) > self.allowed:
            reason = f"{path}, line {line}: {expected}"
            if self.allowed:
                reason += f" (bad line number {len(self.found)}; --max-bad allows {self.allowed})"
            raise ValueError(reason)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, counted from 1, and bytes of each line, without its line end.

    A file that is gzip is decompressed, whatever its name.

    Raises:
        ValueError: if there is no such file, it is no whole gzip file, or a line is too long.
    """
    number = 0
    try:
        with open(path, "rb") as raw, progress(path) as bar:
            is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
            file = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            for line in iter(partial(file.readline, MAX_LINE_BYTES + 1), b""):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    limit = f"{MAX_LINE_BYTES >> 20} MiB"
                    raise ValueError(f"{path}, line {number}: expected a line of at most {limit}")
                yield number, line.removesuffix(b"\n")
                if number % _LINES_A_STEP == 0:
                    bar.update(raw.tell() - bar.n)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = "it ends early" if isinstance(error, EOFError) else str(error)
        raise ValueError(
            f"{path}, line {number + 1}: expected a whole gzip file, found {reason}"
        ) from error
    except OSError as error:
        raise ValueError(f"{path}: expected a file to read, found: {error.strerror}") from error


def progress(path: Path) -> tqdm:
    """A bar of the bytes of a file, on standard error where that is a terminal."""
    size = path.stat().st_size
    return tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False)


class Table(ABC):
    """A file of rows.

    Attributes:
        path: of the file.
        columns: their names; empty where each row names its own.
        first: number of the first row, as ``rows`` counts.
    """

    path: Path
    columns: Sequence[str] = ()
    first = 1

    @abstractmethod
    def rows(self, names: Sequence[Names]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Number of the line (or row) and the values of the named columns of each row.

        Raises:
            ValueError: if the file cannot be read or has no such column.
        """

    def _places(self, names: Sequence[Names]) -> list[int]:
        """Where the named columns stand."""
        places = []
        for some in names:
            name = next((name for name in some if name in self.columns), None)
            if name is None or self.columns.count(name) > 1:
                found = "expected a column" if name is None else "expected only one column"
                there = ", ".join(self.columns)
                raise ValueError(f"{self.path}, line 1: {found} {some[0]!r} (there are: {there})")
            places.append(self.columns.index(name))
        return places


def open_table(
    path: Path, bad: BadLines, encodings: Sequence[str] = ("utf-8",), quotes: bool = True
) -> Table:
    """The table that a file holds, by its suffix (``.gz`` aside).

    Args:
        path: of the file.
        bad: takes lines that cannot be read.
        encodings: see ``SeparatedTable``.
        quotes: see ``SeparatedTable``.

    Raises:
        ValueError: for another suffix, or a file without columns.
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


class SeparatedTable(Table):
    """Separated values.

    Args:
        path: of the file.
        bad: takes lines that are not text or lack columns.
        separator: between the fields; longer than one character only without quotes.
        encodings: each line is text in the first of these that fits.
        quotes: whether ``"`` quotes fields, which may then hold separators and line ends.
        columns: their names; by default those of the first line.
        has_header: whether the first line holds names.

    Raises:
        ValueError: if there is no first line to hold names.
    """

    def __init__(
        self,
        path: Path,
        bad: BadLines,
        separator: str,
        encodings: Sequence[str] = ("utf-8",),
        quotes: bool = True,
        columns: Sequence[str] | None = None,
        has_header: bool = True,
    ) -> None:
        self.path, self._bad, self._separator, self._quotes = path, bad, separator, quotes
        self._encodings, self.first = encodings, 1 + has_header
        self._undecodable = 0
        if columns is None:
            header = next(self._all_rows(), None)
            if header is None:
                raise ValueError(f"{path}, line 1: expected a header, found an empty file")
            columns = [name.removeprefix("\ufeff").strip() for name in header[1]]
        self.columns = columns

    def rows(self, names: Sequence[Names]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table``."""
        where, width = self._places(names), len(self.columns)
        for line, fields in islice(self._all_rows(), self.first - 1, None):
            if self._undecodable:
                text = f"expected {' or '.join(self._encodings)} text"
                self._bad.add(self.path, self._undecodable, text)
                self._undecodable = 0
            elif len(fields) != width:
                columns = f"{width} columns ({', '.join(self.columns)[:200]})"
                self._bad.add(self.path, line, f"expected {columns}, found {len(fields)}")
            else:
                yield line, [fields[place] for place in where]

    def _all_rows(self) -> Iterator[tuple[int, list[str]]]:
        lines = ((n, self._decoded(n, content)) for n, content in numbered_lines(self.path))
        if not self._quotes:
            for line, text in lines:
                if text := text.rstrip("\r"):
                    yield line, text.split(self._separator)
            return
        csv.field_size_limit(MAX_LINE_BYTES)
        reader = csv.reader((f"{text}\n" for _, text in lines), delimiter=self._separator)
        while True:
            begun = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                self._bad.add(self.path, begun, f"expected separated values, found {error}")
                continue
            if fields is None:
                return
            if fields:
                yield begun, fields

    def _decoded(self, line: int, content: bytes) -> str:
        for encoding in self._encodings:
            try:
                return content.decode(encoding)
            except UnicodeDecodeError:
                continue
        self._undecodable = line
        return content.decode("utf-8", "replace")


class JsonTable(Table):
    """One JSON object a line; a column that an object lacks is None.

    Args:
        path: of the file.
        bad: takes lines that hold none.
        literals: whether a line may be a dict of Python literals, which are parsed, never
            evaluated.
    """

    def __init__(self, path: Path, bad: BadLines, literals: bool = False) -> None:
        self.path, self._bad, self._literals = path, bad, literals

    def rows(self, names: Sequence[Names]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table``."""
        parse = _json_or_literal if self._literals else json.loads
        expected = "expected a JSON object" + " or a dict of literals" * self._literals
        for line, content in numbered_lines(self.path):
            if not content or content.isspace():
                continue
            try:
                record = parse(content.decode())
            except UnicodeDecodeError:
                self._bad.add(self.path, line, "expected UTF-8 text")
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
                reason = str(error).split("\n")[0][:80] or type(error).__name__
                self._bad.add(self.path, line, f"{expected}, found {reason}")
            else:
                if type(record) is dict:
                    yield line, [_first(record, some) for some in names]
                else:
                    self._bad.add(self.path, line, f"{expected}, found {str(record)[:40]!r}")


def _json_or_literal(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line.strip())


def _first(record: Mapping[str, Any], names: Names) -> Any:
    """The first value that is there."""
    for name in names:
        if (value := record.get(name)) not in (None, "", []):
            return value
    return None


class ParquetTable(Table):
    """A Parquet file, read a batch at a time; rows count from 1, times with a zone are UTC."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._naming_faults("expected a Parquet file"):
            self.columns = parquet.read_schema(path).names

    def rows(self, names: Sequence[Names]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table``."""
        wanted = [self.columns[place] for place in self._places(names)]
        row = 0
        with (
            self._naming_faults("expected a Parquet file"),
            parquet.ParquetFile(self.path) as file,
            progress(self.path) as bar,
        ):
            for batch in file.iter_batches(1 << 16, columns=list(dict.fromkeys(wanted))):
                columns = [self._values(name, batch.column(name)) for name in wanted]
                yield from enumerate(zip(*columns, strict=True), start=row + 1)
                row += batch.num_rows
                bar.update(bar.total * batch.num_rows // max(1, file.metadata.num_rows))

    def _values(self, name: str, column: pa.Array) -> list[Any]:
        if pa.types.is_timestamp(column.type):  # whose zone Python may not know
            column = column.cast(pa.timestamp(column.type.unit))
        with self._naming_faults(f"expected values that Python can hold in column {name!r}"):
            return column.to_pylist()

    @contextmanager
    def _naming_faults(self, expected: str) -> Iterator[None]:
        try:
            yield
        except (
            OSError,
            OverflowError,
            LookupError,
            UnicodeDecodeError,
            pa.ArrowException,
        ) as error:
            raise ValueError(f"{self.path}: {expected}, found: {error}") from error


class Workbook(Table):
    """The first sheet of an Excel workbook, read a row at a time."""

    first = 2

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = [str(cell) for cell in next(self._cells(), ())]

    def rows(self, names: Sequence[Names]) -> Iterator[tuple[int, Sequence[Any]]]:
        """See ``Table``."""
        where = self._places(names)
        for row, cells in enumerate(islice(self._cells(), 1, None), start=2):
            if any(cell is not None for cell in cells):
                yield row, [cells[place] if place < len(cells) else None for place in where]

    def _cells(self) -> Iterator[tuple[Any, ...]]:
        try:
            from openpyxl import load_workbook
        except ImportError as error:
            raise ValueError(
                f"{self.path}: expected openpyxl to be installed (pip install openpyxl), "
                "or the same table as .csv"
            ) from error
        try:
            with closing(load_workbook(self.path, read_only=True, data_only=True)) as book:
                yield from book.worksheets[0].iter_rows(values_only=True)
        except Exception as error:  # the library raises whatever its parsers do
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.path}: expected a workbook, found: {reason}") from error
