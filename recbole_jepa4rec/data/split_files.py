"""A split that stands in files: one part of the interactions in each.

Training reads the interactions of the first file and no other. In each of the other two the last
interaction of a user is his target; what he did before it, in the same file or in an earlier one,
is the history. So the test history holds what was validated, as in leave-one-out, and no target is
ever trained on. At equal times an earlier part comes first, and inside a file its order decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from recbole_jepa4rec.config.protocol import PARTS
from recbole_jepa4rec.data.atomic_files import (
    AtomicFileError,
    line_number,
    read_atomic,
    refuse_rows,
)


def split_title(names: Sequence[str], stats_file: Path, fingerprint: str) -> str:
    """What a split is called: its files, and its kind if the conversion that wrote them says so.

    Args:
        names: of the three files.
        stats_file: ``NAME.stats.json``, there or not.
        fingerprint: of the data as they were loaded; the kind counts for no others.
    """
    files = f"files {', '.join(names)}"
    try:
        split = json.loads(stats_file.read_text(encoding="utf-8"))["split"]
        return f"{split['kind']} {files}" if split["fingerprint"] == fingerprint else files
    except (OSError, ValueError, KeyError, TypeError):
        return files  # written elsewhere


def unread_split(stats_file: Path) -> str | None:
    """Say that a conversion wrote a split, to a run that leaves one out instead.

    Args:
        stats_file: ``NAME.stats.json``, there or not.

    Returns:
        A line, or ``None`` where no split was written, or leave-one-out.
    """
    try:
        split = json.loads(stats_file.read_text(encoding="utf-8"))["split"]
        kind, files = split["kind"], ",".join(split["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    reads = f"this run leaves one out; --benchmark_filename={files} reads it"
    return None if kind == "loo" else f"{stats_file} has the split {kind!r}, but {reads}"


def last_of_part(users: np.ndarray, part: np.ndarray, number: int) -> np.ndarray:
    """Positions of each user's last interaction of a part: the targets, if it is evaluated.

    Args:
        users: of each interaction, sorted by user, time and part, ``[M]``.
        part: number of the part of each, ``[M]``.
        number: of the part asked for.

    Returns:
        Positions, ``[U']``, one for each user who has such an interaction, sorted.
    """
    positions = np.flatnonzero(part == number)
    is_last = np.ones(len(positions), dtype=bool)
    is_last[:-1] = users[positions[1:]] != users[positions[:-1]]
    return positions[is_last]


def without_history(users: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Positions of the targets before which the user has no training interaction.

    Args:
        users: as ``last_of_part``.
        part: as ``last_of_part``.
    """
    trained = np.cumsum(part == 0)
    begins = np.searchsorted(users, users)
    before_user = np.where(begins > 0, trained[begins - 1], 0)
    targets = np.concatenate([last_of_part(users, part, 1), last_of_part(users, part, 2)])
    return np.sort(targets[trained[targets] == before_user[targets]])


def repeated_across_parts(
    users: np.ndarray, items: np.ndarray, times: np.ndarray, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Interactions of the same user, item and time in different parts, in pairs.

    Returns:
        Positions of the ones in the later part, and for each that of one in an earlier part.
    """
    order = np.lexsort((part, times, items, users))
    equal = part[order[1:]] != part[order[:-1]]
    for column in (users, items, times):
        equal &= column[order[1:]] == column[order[:-1]]
    return order[1:][equal], order[:-1][equal]


def checked_parts(
    paths: Sequence[Path],
    part_of_row: np.ndarray,
    rows: np.ndarray,
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Check that the files are a split and that every target has a history.

    Args:
        paths: the three files.
        part_of_row: number of the part of each row, the files read one after another, ``[M]``.
        rows: of each interaction, its row, ``[M]``.
        columns: users, items and times, sorted by user, time and part, ``[M]`` each.

    Returns:
        Number of the part of each interaction, ``[M]``.

    Raises:
        ValueError: naming the file and the line of the first interaction at fault.
    """
    begins = np.searchsorted(part_of_row, np.arange(len(PARTS)))
    part = part_of_row[rows]

    def refuse(position: int, expected: str) -> NoReturn:
        path = paths[part[position]]
        line = line_number(path, int(rows[position] - begins[part[position]]))
        raise AtomicFileError(f"{path}, line {line}: expected {expected}")

    later, earlier = repeated_across_parts(*columns, part)
    if len(later):
        first = np.argmin(rows[later])
        refuse(later[first], f"no row that {paths[part[earlier[first]]].name} holds as well")
    targets = without_history(columns[0], part)
    if len(targets):
        first = np.argmin(rows[targets])
        refuse(targets[first], f"an earlier row of the user in {paths[0].name}, found none")
    return part


def refuse_unknown_items(
    paths: Sequence[Path], item_file: Path, id_field: str, columns: Sequence[Any]
) -> None:
    """Check that what is evaluated occurs in training or is described.

    Args:
        paths: the three files.
        item_file: of the data set; without it every item passes.
        id_field: its column of ids.
        columns: raw item ids of each file as pandas columns of categories.

    Raises:
        ValueError: naming the file and the line of the first other item.
    """
    known = {*columns[0].cat.categories}
    if not item_file.is_file() or not any({*c.cat.categories} - known for c in columns[1:]):
        return
    known |= {*read_atomic(item_file, [id_field], as_text=True)[id_field]}
    for path, column in zip(paths[1:], columns[1:], strict=True):
        expected = f"an item that {paths[0].name} or {item_file.name} holds"
        refuse_rows(path, ~column.isin(known), expected)
