"""The attribute column that S3Rec, FDSA, SASRecF and GRU4RecF read, from whatever the data has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_jepa4rec.data.atomic_files import Column, read_atomic, read_header

KEYS = ("item_attribute", "selected_features")
"""Settings that name attribute columns: one, or a list."""


def find_attributes(
    settings: Mapping[str, Any], key: str, path: Path, model: str, dataset: str
) -> list[str]:
    """The columns that a setting names, or the one to take where it names none.

    By default that is the ``token`` or ``token_seq`` column with the fewest distinct values (words,
    for ``token_seq``), of those with two or more: genres and categories rather than titles.

    Args:
        settings: of the run, with ``ITEM_ID_FIELD`` and ``seq_separator``.
        key: one of ``KEYS``.
        path: the ``.item`` file.
        model: its name, for messages.
        dataset: its name, for messages.

    Returns:
        Names of columns, one at least.

    Raises:
        ValueError: if there is no such file or column, or nothing to choose; names what there is.
    """
    if not path.is_file():
        raise ValueError(
            f"{key}: model {model!r} needs an item attribute, and data set {dataset!r} has no file "
            f"{path}"
        )
    columns = _attribute_columns(path, settings["ITEM_ID_FIELD"])
    if (given := settings[key]) is not None:
        named = [given] if isinstance(given, str) else list(given)
        _refuse_missing(key, named, columns, path)
        return named
    counts = _distinct(path, columns, settings["seq_separator"])
    usable = {name: count for name, count in counts.items() if count >= 2}
    if not usable:
        raise ValueError(
            f"{key}: model {model!r} needs an item attribute, and {path} has no token or token_seq "
            "column with at least 2 values beside the id"
        )
    return [min(usable, key=usable.__getitem__)]  # the first of equals


def with_item_columns(load_col: Mapping[str, Any] | None, names: list[str]) -> dict | None:
    """``load_col`` that loads these item columns as well; None, which loads everything, stays."""
    if load_col is None:
        return None
    loaded = load_col.get("item") or []
    if loaded == "*":
        return dict(load_col)
    return {**load_col, "item": list(dict.fromkeys([*loaded, *names]))}


def _attribute_columns(path: Path, item_field: str) -> list[Column]:
    """Columns of text beside the id, in file order."""
    return [
        column
        for column in read_header(path)
        if column.type.startswith("token") and column.name != item_field
    ]


def _refuse_missing(key: str, named: list[str], columns: list[Column], path: Path) -> None:
    there = [column.name for column in columns]
    for name in named:
        if name not in there:
            raise ValueError(
                f"{key} {name!r} is no token or token_seq column of {path} "
                f"(there are: {', '.join(there) or 'none'})"
            )
    if not named:
        raise ValueError(f"{key} names no column of {path} (there are: {', '.join(there)})")


def _distinct(path: Path, columns: list[Column], separator: str) -> dict[str, int]:
    """Distinct values or words of each column, the empty one not counted."""
    table = read_atomic(path, [column.name for column in columns], as_text=True)
    counts = {}
    for name, kind in columns:
        values = pd.Series(table[name].unique())
        if kind == "token_seq":
            values = values.str.split(separator).explode()
        counts[name] = int(values[values != ""].nunique())
    return counts
