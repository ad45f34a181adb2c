"""The attributes of items as text, taken raw from ``.item`` files (paper 3.1)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recbole_jepa4rec.data.atomic_files import (
    AtomicFileError,
    Column,
    read_header,
    read_text,
    refuse_repeated,
    refuse_rows,
)

pc: Any = importlib.import_module("pyarrow.compute")  # made at run time; no type checker knows it

TEXT = pa.large_string()
"""Arrow's type of all item text: a string takes its bytes and eight more, not a Python object."""

_ID = ""  # no column of a file has this name
_ROWS_AT_ONCE = 65_536


def read_item_text(
    sources: Sequence[tuple[Path, str]],
    item_field: str,
    fields: Sequence[str] | None,
    items: Sequence[str] | np.ndarray,
) -> pd.DataFrame:
    """Read and align the attributes of items.

    White space inside a value is reduced to single blanks; nothing else is changed.

    Args:
        sources: item files, each with the prefix that its ids carry in ``items``.
        item_field: name of the id column.
        fields: columns to take, of any type, in this order; ``None`` takes every ``token`` and
            ``token_seq`` column but the id, in file order.
        items: raw ids of items ``1 .. N - 1``.

    Returns:
        One row for each internal item id, ``[N, A]`` strings of type ``TEXT``; row 0 (padding),
        items that are in no file and attributes that an item lacks hold "".

    Raises:
        AtomicFileError: if a file cannot be read, no file has a column asked for, or no item has
            text.
    """
    paths = [path for path, _ in sources]
    headers = [read_header(path, {item_field: "token"}) for path in paths]
    names = _attributes(paths, headers, item_field, fields)
    table = pa.concat_tables(_read(path, prefix, item_field, names) for path, prefix in sources)
    rows = pc.index_in(pa.array(items, TEXT), value_set=table[_ID])
    text: dict[str, pa.ChunkedArray] = {}
    for name in names:
        text[name] = _aligned(table[name], rows)
        table = table.drop([name])  # its memory is free for the next
    pa.default_memory_pool().release_unused()
    if not holds_text(pa.table(text)):
        files = ", ".join(map(str, paths))
        raise AtomicFileError(f"{files}: no item of the data set has text in {', '.join(names)}")
    return pd.DataFrame({n: pd.arrays.ArrowExtensionArray(v) for n, v in text.items()})


def holds_text(table: pa.Table) -> bool:
    """Whether a value of a table of strings has more than white space."""
    return any(
        pc.any(pc.not_equal(pc.utf8_trim_whitespace(values), "")).as_py()
        for column in table.columns
        for values in column.chunks
    )


def _read(path: Path, prefix: str, item_field: str, names: Sequence[str]) -> pa.Table:
    """Attributes of a file's rows, null where it lacks one, and in ``_ID`` their prefixed ids."""
    there = [column.name for column in read_header(path) if column.name in (item_field, *names)]
    table = read_text(path, there)
    ids = table[item_field].cast(TEXT)
    if pc.any(pc.equal(ids, "")).as_py():
        refuse_rows(path, ids.to_pandas() == "", f"a {item_field}, found none")
    if pc.count_distinct(ids).as_py() < len(ids):
        refuse_repeated(path, ids.to_pandas().rename(item_field))
    columns = {_ID: pc.binary_join_element_wise(pa.scalar(prefix, TEXT), ids, pa.scalar("", TEXT))}
    for name in names:
        columns[name] = table[name].cast(TEXT) if name in there else pa.nulls(len(ids), TEXT)
    return pa.table(columns)


def _aligned(column: pa.ChunkedArray, rows: pa.Array) -> pa.ChunkedArray:
    """Values at the rows behind an empty one, white space folded; "" where the row is null."""
    whole = pa.concat_arrays([pa.array([], TEXT), *column.chunks])
    parts = [pa.array([""], TEXT)]
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        values = whole.take(rows[first : first + _ROWS_AT_ONCE]).fill_null("").to_pylist()
        parts.append(pa.array([" ".join(value.split()) for value in values], TEXT))
    return pa.chunked_array(parts)


def _attributes(
    paths: list[Path],
    headers: list[list[Column]],
    item_field: str,
    fields: Sequence[str] | None,
) -> list[str]:
    """Names of the columns to read, in order."""
    files = ", ".join(map(str, paths))
    columns = [column for header in headers for column in header if column.name != item_field]
    there = list(dict.fromkeys(column.name for column in columns))
    if fields is None:
        text = [column.name for column in columns if column.type.startswith("token")]
        if not text:
            raise AtomicFileError(f"{files}: no text column beside {item_field!r}")
        return list(dict.fromkeys(text))
    for name in fields:
        if name not in there:
            raise AtomicFileError(
                f"item_text_fields: no column {name!r} in {files} (there are: {', '.join(there)})"
            )
    if twice := next((name for name in fields if list(fields).count(name) > 1), None):
        raise AtomicFileError(f"item_text_fields: {twice!r} is there twice (allowed: once)")
    return list(fields)
