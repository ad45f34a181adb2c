"""The lines of ``.inter`` and ``.item``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from recbole_jepa4rec.convert.folder import writing
from recbole_jepa4rec.convert.interactions import Interactions
from recbole_jepa4rec.convert.source import Text
from recbole_jepa4rec.convert.tables import MAX_LINE_BYTES

_ROWS_AT_ONCE = 1 << 17
_EXACT = 2.0**53


def write_interactions(path: Path, rows: Interactions, item_ids: Sequence[str]) -> None:
    """Write ``user_id``, ``item_id`` and ``timestamp`` of each; times in all their digits.

    Args:
        path: the file.
        rows: in the order to write.
        item_ids: id to write of each item number.

    Raises:
        OSError: if the file cannot be written.
    """
    user_names, item_names = np.array(rows.user_ids, object), np.array(item_ids, object)
    with writing(path) as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(begin, begin + _ROWS_AT_ONCE)
            columns = (
                user_names[rows.users[part]].tolist(),
                item_names[rows.items[part]].tolist(),
                _decimals(rows.times[part]),
            )
            file.writelines(map("{}\t{}\t{}\n".format, *columns))


def write_items(
    path: Path,
    attributes: Sequence[str],
    texts: Iterator[Text],
    keys: Sequence[str],
    ids: Sequence[str],
) -> Iterator[tuple[int, Sequence[str]]]:
    """Write one row for each item; one without text has empty fields.

    Args:
        path: the file.
        attributes: names of the columns after ``item_id``.
        texts: of items by key, those that are not written as well; the first text of a key counts.
        keys: of the items to write.
        ids: of the items to write.

    Yields:
        The number of each item and its values, as it is written.

    Raises:
        ValueError: if a row is longer than can be read again.
        OSError: if the file cannot be written.
    """
    number_of = {key: number for number, key in enumerate(keys)}
    with writing(path) as file:
        file.write("\t".join(["item_id:token", *(f"{name}:token_seq" for name in attributes)]))
        file.write("\n")
        for key, values in texts:
            if key in number_of and any(values):
                number = number_of.pop(key)
                row = "\t".join([ids[number], *values])
                if 4 * len(row) > MAX_LINE_BYTES and len(row.encode()) > MAX_LINE_BYTES - 2:
                    raise ValueError(f"item {ids[number]!r}: expected less text than 16 MiB")
                file.write(f"{row}\n")
                yield number, values
        empty = [""] * len(attributes)
        for number in number_of.values():
            file.write("\t".join([ids[number], *empty]) + "\n")
            yield number, empty


def _decimals(times: np.ndarray) -> list[str]:
    """Each time as the shortest text that reads as the same number."""
    if (np.abs(times) < _EXACT).all() and (times == np.floor(times)).all():
        return list(map(str, times.astype(np.int64).tolist()))
    return [str(int(t)) if t.is_integer() else repr(t) for t in times.tolist()]
