"""Problems of the files of a split, by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recbole_jepa4rec.convert.split import NAMES
from recbole_jepa4rec.data.split_files import repeated_across_parts, without_history


class Rows(NamedTuple):
    """The rows of a file that could be read.

    Attributes:
        path: the file.
        lines: of each row, ``[M]``.
        users: numbers that all files share, ``[M]``.
        items: numbers that all files share, ``[M]``.
        times: ``[M]``.
    """

    path: Path
    lines: np.ndarray
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray


Fault = tuple[Path, int, bool, str]
"""File, line, whether a run ends with it, and what is wrong."""


def split_paths(folder: Path, name: str) -> list[Path]:
    """The files of the split that ``convert`` writes; empty if none of them is there."""
    paths = [folder / f"{name}.{part}.inter" for part in NAMES]
    return paths if any(path.is_file() for path in paths) else []


def split_faults(whole: Rows, parts: Sequence[Rows], described: np.ndarray) -> Iterator[Fault]:
    """What is wrong with a split.

    Args:
        whole: of ``NAME.inter``.
        parts: of the three files.
        described: numbers of the items that ``NAME.item`` holds; of all items if there is no such
            file.

    Yields:
        Faults, in no order.
    """
    part = np.repeat(np.arange(len(parts)), [len(rows.lines) for rows in parts])
    lines, users, items, times = (
        np.concatenate([rows[column] for rows in parts]) for column in range(1, 5)
    )
    order = np.lexsort((part, times, users))
    part, lines, users, items, times = (x[order] for x in (part, lines, users, items, times))

    def place(position: int) -> tuple[Path, int]:
        return parts[part[position]].path, int(lines[position])

    for later, earlier in zip(*repeated_across_parts(users, items, times, part), strict=True):
        path, line = place(earlier)
        yield (*place(later), True, f"stands in {path.name}, line {line} as well")
    for target in without_history(users, part):
        first = parts[0].path.name
        yield (*place(target), True, f"expected an earlier row of the user in {first}, found none")
    known = np.union1d(described, parts[0].items)
    for row in np.flatnonzero((part > 0) & ~np.isin(items, known)):
        what = f"expected an item that {parts[0].path.name} or the .item file holds"
        yield (*place(row), True, what)
    for row in np.flatnonzero(~_held_by(whole, users, items, times)):
        yield (*place(row), False, f"{whole.path.name} has no such row")


def _held_by(whole: Rows, users: np.ndarray, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Which rows stand in the whole file as well, bool ``[M]``."""
    columns = [
        np.concatenate(pair)
        for pair in ((whole.users, users), (whole.items, items), (whole.times, times))
    ]
    is_part = np.arange(len(columns[0])) >= len(whole.lines)
    order = np.lexsort((is_part, *columns))
    begins = np.zeros(len(order), dtype=bool)  # of equal rows, those of the whole file first
    begins[:1] = True
    for column in columns:
        begins[1:] |= column[order[1:]] != column[order[:-1]]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    held = np.empty(len(order), dtype=bool)
    held[order] = ~is_part[order[first]]
    return held[len(whole.lines) :]
