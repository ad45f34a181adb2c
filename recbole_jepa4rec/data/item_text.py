"""The attributes of items as text, taken raw from ``.item`` files (paper 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_jepa4rec.data.atomic_files import (
    AtomicFileError,
    Column,
    read_atomic,
    read_header,
    refuse_repeated,
)


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
        One row for each internal item id, ``[N, A]`` strings; row 0 (padding), items that are in no
        file and attributes that an item lacks hold "".

    Raises:
        AtomicFileError: if a file cannot be read, no file has a column asked for, or no item has
            text.
    """
    headers = [read_header(path) for path, _ in sources]
    names = _attributes([path for path, _ in sources], headers, item_field, fields)
    tables = []
    for (path, prefix), header in zip(sources, headers, strict=True):
        there = [column.name for column in header if column.name in names]
        table = read_atomic(path, {item_field, *there}, as_text=True)
        refuse_repeated(path, table[item_field])
        tables.append(table.set_index(prefix + table[item_field])[there])
    text = pd.concat(tables).reindex(items).fillna("")
    text = pd.DataFrame({name: ["", *(" ".join(v.split()) for v in text[name])] for name in names})
    if not text.to_numpy().astype(bool).any():
        files = ", ".join(str(path) for path, _ in sources)
        raise AtomicFileError(f"{files}: no item of the data set has text in {', '.join(names)}")
    return text


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
    return list(dict.fromkeys(fields))
