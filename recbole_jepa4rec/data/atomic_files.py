"""RecBole's atomic files, read as they are written: no quoting rules and no words for «missing»."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

TYPES = ("token", "token_seq", "float", "float_seq")

_BLOCK_BYTES = 1 << 24  # no line may be longer


class AtomicFileError(ValueError):
    """An atomic file that cannot be read; the message names file, line and what was expected."""


class Column(NamedTuple):
    """One column of an atomic file, as its header ``name:type`` declares it."""

    name: str
    type: str


def read_header(path: str | Path, wanted: Mapping[str, str | None] | None = None) -> list[Column]:
    """Columns of an atomic file in file order.

    Args:
        path: the file.
        wanted: names of columns that must be there, each with the type that it must have, if any.

    Raises:
        AtomicFileError: if the file is missing or empty, its first line is no header, or a column
            is not as it must be.
    """
    try:
        with open(path, "rb") as file:
            header = _parse_header(path, file.readline())
    except OSError as error:
        raise AtomicFileError(f"{path}: {error.strerror}") from error
    types = dict(header)
    for name, kind in (wanted or {}).items():
        if name not in types:
            there = ", ".join(types)
            raise AtomicFileError(f"{path}, line 1: no column {name!r} (there are: {there})")
        if kind not in (None, types[name]):
            raise AtomicFileError(
                f"{path}, line 1: expected column {name!r} of type {kind}, found {types[name]}"
            )
    return header


def read_atomic(
    path: str | Path,
    columns: Collection[str] | None = None,
    as_text: bool = False,
    whole: str | None = None,
) -> pd.DataFrame:
    r"""Read an atomic file: UTF-8, one tab between fields, one row a line, blank lines skipped.

    ``\r\n`` ends a line as ``\n`` does; any other ``\r`` is a space.

    Args:
        path: the file.
        columns: names to read; all by default. The result is in file order.
        as_text: give ``float`` and ``token`` columns as strings, too.
        whole: a ``float`` column to give as int64 if all its fields are whole numbers, which
            float64 may not tell apart.

    Returns:
        One column per name: ``float`` as float64 with NaN for an empty field, ``token`` as
        categories numbered in the order of their first rows, every other type as the string that
        stands in the file ("" when empty).

    Raises:
        AtomicFileError: naming file, line and what was expected.
    """
    header = read_header(path, dict.fromkeys(columns or ()))
    wanted = [column for column in header if columns is None or column.name in columns]
    numbers = {column.name for column in header if column.type == "float" and not as_text}
    tokens = [column.name for column in wanted if column.type == "token" and not as_text]
    table = _read_table(path, header, [column.name for column in wanted], numbers, whole)
    if table is None:
        return pd.DataFrame({c.name: [] for c in wanted}).astype(
            {c.name: np.float64 if c.name in numbers else object for c in wanted}
        )
    return _to_frame(table, tokens)


def read_text(path: str | Path, columns: Collection[str]) -> pa.Table:
    """Read columns of an atomic file as strings that take no more memory than in the file.

    Args:
        path: the file.
        columns: names to read.

    Returns:
        The columns in file order, each string as it stands in the file ("" when empty).

    Raises:
        AtomicFileError: as ``read_atomic``.
    """
    header = read_header(path, dict.fromkeys(columns))
    wanted = [column.name for column in header if column.name in columns]
    table = _read_table(path, header, wanted, set())
    return (
        pa.table({name: pa.array([], pa.string()) for name in wanted}) if table is None else table
    )


def line_number(path: str | Path, row: int) -> int:
    """Line of the file, counted from 1, that holds a row of ``read_atomic``, counted from 0."""
    for index, (number, _) in enumerate(_lines(_read_body(path))):
        if index == row:
            return number
    raise IndexError(f"{path} has no row {row}")


def refuse_rows(path: str | Path, faulty: pd.Series, expected: str) -> None:
    """Raise an ``AtomicFileError`` for the first faulty row of what ``read_atomic`` returned.

    Args:
        path: the file that was read.
        faulty: whether a row is faulty, one bool per row.
        expected: what each row must have.
    """
    if faulty.any():
        line = line_number(path, int(faulty.to_numpy().argmax()))
        raise AtomicFileError(f"{path}, line {line}: expected {expected}")


def refuse_repeated(path: str | Path, ids: pd.Series) -> None:
    """Raise an ``AtomicFileError`` if a column of ids that ``read_atomic`` returned repeats one."""
    repeated = ids.duplicated().to_numpy()
    if repeated.any():
        second = int(repeated.argmax())
        first = int((ids == ids.iloc[second]).to_numpy().argmax())
        lines = line_number(path, first), line_number(path, second)
        raise AtomicFileError(
            f"{path}, lines {lines[0]} and {lines[1]}: both have {ids.name} {ids.iloc[second]!r}"
        )


def refuse_rounded(path: str | Path, numbers: pd.Series) -> None:
    """Refuse whole numbers among decimals that these, as float64, cannot tell apart.

    Args:
        path: the file that was read.
        numbers: its column, as ``read_atomic`` returned it.

    Raises:
        AtomicFileError: for the first such number.
    """
    if numbers.dtype == np.float64 and numbers.abs().max() > 2**53:
        fields = read_text(path, [str(numbers.name)])[numbers.name].to_pylist()
        rounded = [
            field.removeprefix("-").isdecimal() and int(field) != float(field) for field in fields
        ]
        expected = f"a {numbers.name} up to 2^53, or whole numbers below 2^63 in every row"
        refuse_rows(path, pd.Series(rounded), expected)


def is_number(field: str) -> bool:
    """Tell whether the fast reader takes a field for a number."""
    try:
        float(field)
    except ValueError:
        return False
    return not field.lstrip().startswith("+") and "_" not in field


def _parse_header(path: str | Path, line: bytes) -> list[Column]:
    if not line.strip():
        raise AtomicFileError(f"{path}, line 1: expected a header of name:type columns, found none")
    try:
        fields = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise AtomicFileError(f"{path}, line 1: not UTF-8 text") from error
    if b"\0" in line:
        raise AtomicFileError(f"{path}, line 1: expected text without NUL bytes")
    columns: list[Column] = []
    for field in fields:
        name, _, kind = field.rpartition(":")
        if not name:
            raise AtomicFileError(f"{path}, line 1: expected name:type, found {field[:80]!r}")
        if kind not in TYPES:
            allowed = ", ".join(TYPES)
            raise AtomicFileError(f"{path}, line 1: type {kind!r} of {name!r} is not in {allowed}")
        if any(name == column.name for column in columns):
            raise AtomicFileError(f"{path}, line 1: column {name!r} stands there twice")
        columns.append(Column(name, kind))
    return columns


def _read_body(path: str | Path) -> bytes:
    """Everything below the header, every line ending in a bare newline."""
    with open(path, "rb") as file:
        file.readline()
        body = file.read()
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if (place := body.find(b"\0")) >= 0:  # pandas would take ids for equal that agree up to it
        line = body.count(b"\n", 0, place) + 2
        raise AtomicFileError(f"{path}, line {line}: expected text without NUL bytes")
    return body


def _lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank."""
    return ((n, line) for n, line in enumerate(body.split(b"\n"), start=2) if line)


def _read_table(
    path: str | Path,
    header: list[Column],
    wanted: list[str],
    numbers: set[str],
    whole: str | None = None,
) -> pa.Table | None:
    """The columns, ``numbers`` as float64 and the others as strings; ``None`` where no row is.

    The number ``whole`` is int64 if all its fields are whole numbers.
    """
    types = {c.name: pa.float64() if c.name in numbers else pa.string() for c in header}
    if whole in numbers:
        types[whole] = pa.int64()
    body = _open_body(path)
    if body is None:
        return None
    try:
        with body:
            return csv.read_csv(
                body,
                read_options=csv.ReadOptions(column_names=list(types), block_size=_BLOCK_BYTES),
                parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False),
                convert_options=csv.ConvertOptions(
                    column_types=types,
                    include_columns=wanted,
                    null_values=[""],
                    strings_can_be_null=False,
                ),
            )
    except pa.ArrowInvalid as error:
        if whole in numbers:
            return _read_table(path, header, wanted, numbers)
        _raise_first_fault(path, header, numbers, _read_body(path), error)


def _open_body(path: str | Path) -> pa.NativeFile | None:
    r"""What ``_read_body`` reads, as a file; ``None`` where it is blank.

    Only a file that holds ``\r`` is read into memory for it.
    """
    is_plain = is_blank = True
    with open(path, "rb") as file:
        begin = len(file.readline())
        while block := file.read(_BLOCK_BYTES):
            is_plain = is_plain and b"\r" not in block and b"\0" not in block
            is_blank = is_blank and not block.strip(b"\n")
    if is_plain and not is_blank:
        plain = pa.OSFile(str(path))
        plain.seek(begin)
        return plain
    body = _read_body(path)
    return pa.BufferReader(body) if body.strip(b"\n") else None


def _to_frame(table: pa.Table, tokens: list[str]) -> pd.DataFrame:
    """The table, which is spent afterwards, with some columns as categories."""
    frame = table.to_pandas(categories=tokens, self_destruct=True)
    pa.default_memory_pool().release_unused()  # it would keep as much as the file is long
    return frame


def _raise_first_fault(
    path: str | Path, header: list[Column], numbers: set[str], body: bytes, error: pa.ArrowInvalid
) -> NoReturn:
    """Find the first line that is not as the header says; the fast reader cannot name it."""
    for number, line in _lines(body):
        where = f"{path}, line {number}"
        try:
            fields = line.decode().split("\t")
        except UnicodeDecodeError:
            raise AtomicFileError(f"{where}: not UTF-8 text") from error
        if len(fields) != len(header):
            names = ", ".join(column.name for column in header)
            raise AtomicFileError(
                f"{where}: expected {len(header)} columns ({names}), found {len(fields)}"
            ) from error
        for column, field in zip(header, fields, strict=True):
            if column.name in numbers and field and not is_number(field):
                raise AtomicFileError(
                    f"{where}: expected a number for {column.name!r}, found {field[:80]!r}"
                ) from error
    raise AtomicFileError(f"{path}: {str(error).splitlines()[0][:200]}") from error
