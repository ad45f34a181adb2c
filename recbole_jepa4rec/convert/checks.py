"""Every problem of a data set of atomic files, by file and line."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recbole_jepa4rec.convert.split_checks import Rows, split_faults, split_paths
from recbole_jepa4rec.convert.tables import numbered_lines
from recbole_jepa4rec.data.atomic_files import AtomicFileError, Column, is_number, read_header

SUFFIXES = ("inter", "item", "user", "kg", "link", "net")

PANDAS_MISSING = frozenset(
    [
        "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
        "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
    ]
)  # fmt: skip
"""Words that ``pandas.read_csv``, and so RecBole, takes for «missing»."""

_INTER = {"user_id": "token", "item_id": "token", "timestamp": "float"}


class Problem(NamedTuple):
    """What is wrong with a line.

    Attributes:
        path: the file.
        line: its number, counted from 1.
        fatal: whether the data set cannot be loaded with it; other problems change results, or
            hurt readers less careful than this package's.
        what: one line.
    """

    path: Path
    line: int
    fatal: bool
    what: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {'error' if self.fatal else 'warning'}: {self.what}"


@dataclass
class _Ids:
    """Ids of a column in order of first appearance, with the line of each."""

    number_of: dict[str, int] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)

    def number(self, value: str, line: int) -> int:
        number = self.number_of.setdefault(value, len(self.lines))
        if number == len(self.lines):
            self.lines.append(line)
        return number


def problems(folder: Path) -> list[Problem]:
    """All problems of the data set in a folder, file by file in the order of the lines.

    Raises:
        ValueError: if the folder holds no ``NAME.inter``.
    """
    name = folder.resolve().name
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in SUFFIXES}
    if not paths["inter"].is_file():
        raise ValueError(f"{folder}: expected a folder with {name}.inter")
    found: list[Problem] = []
    users, bought = _Ids(), _Ids()
    whole = _read_interactions(paths["inter"], found, users, bought)
    found += _check_interactions(whole, users, bought)
    if paths["item"].is_file():
        found += _check_items(paths["item"], paths["inter"], bought)
    for suffix in SUFFIXES[2:]:
        if paths[suffix].is_file():
            others: list[Problem] = []
            for _ in _rows(paths[suffix], others, {}):
                pass
            found += others
    splits = split_paths(folder, name)
    found += _check_split(splits, paths["item"], whole, users, bought)
    order = {path: place for place, path in enumerate([*paths.values(), *splits])}
    return sorted(found, key=lambda problem: (order[problem.path], problem.line))


def _read_interactions(path: Path, found: list[Problem], users: _Ids, items: _Ids) -> Rows:
    """The rows of a file that are as they should be; the others are problems."""
    user_numbers, item_numbers, times, lines = array("i"), array("i"), array("d"), array("q")
    for line, (user, item, time) in _rows(path, found, _INTER):
        missing = [n for n, v in zip(_INTER, (user, item, time), strict=True) if not v]
        if missing:
            found.append(Problem(path, line, True, f"expected a {missing[0]}, found none"))
        elif not math.isfinite(float(time)):
            found.append(Problem(path, line, True, f"expected a finite timestamp, found {time!r}"))
        else:
            user_numbers.append(users.number(user, line))
            item_numbers.append(items.number(item, line))
            times.append(float(time))
            lines.append(line)
    if not lines:
        found.append(Problem(path, 1, True, "expected rows below the header"))
    return Rows(path, *map(np.array, (lines, user_numbers, item_numbers, times)))


def _check_interactions(rows: Rows, users: _Ids, items: _Ids) -> list[Problem]:
    found = _swallowed(rows.path, "user_id", users) + _swallowed(rows.path, "item_id", items)
    found += _duplicates(*rows)
    return found + _unsorted(rows.path, rows.lines, list(users.number_of), rows.users, rows.times)


def _check_split(
    paths: Sequence[Path], item_file: Path, whole: Rows, users: _Ids, items: _Ids
) -> list[Problem]:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        return [Problem(path, 1, True, "expected this file of the split") for path in missing]
    found: list[Problem] = []
    parts = [_read_interactions(path, found, users, items) for path in paths]
    if not parts or not all(len(rows.lines) for rows in parts):
        return found
    described = np.arange(len(items.lines))
    if item_file.is_file():
        ids = (item for _, (item,) in _rows(item_file, [], {"item_id": None}))
        described = np.array([items.number_of[item] for item in ids if item in items.number_of])
    return found + [Problem(*fault) for fault in split_faults(whole, parts, described)]


def _duplicates(
    path: Path, lines: np.ndarray, users: np.ndarray, items: np.ndarray, times: np.ndarray
) -> list[Problem]:
    order = np.lexsort((times, items, users))
    equal = np.ones(max(0, len(order) - 1), dtype=bool)
    for column in (users, items, times):
        equal &= np.diff(column[order]) == 0
    first = np.arange(len(order))
    first[1:][equal] = 0
    first = np.maximum.accumulate(first)  # of each run of equal rows
    return [
        Problem(path, line, False, f"same user, item and time as line {earlier}")
        for line, earlier in zip(
            lines[order[1:]][equal].tolist(), lines[order[first[1:]]][equal].tolist(), strict=True
        )
    ]


def _unsorted(
    path: Path,
    lines: np.ndarray,
    names: Sequence[str],
    users: np.ndarray,
    times: np.ndarray,
) -> list[Problem]:
    """Users whose rows are not in order of time; each at the first row that goes back."""
    order = np.argsort(users, kind="stable")
    back = (np.diff(users[order]) == 0) & (np.diff(times[order]) < 0)
    places = order[1:][back]
    _, firsts = np.unique(users[places], return_index=True)
    return [
        Problem(
            path, int(lines[p]), False, f"user {names[users[p]]!r} is not sorted by time from here"
        )
        for p in places[firsts].tolist()
    ]


def _check_items(path: Path, inter: Path, bought: _Ids) -> list[Problem]:
    found: list[Problem] = []
    try:
        header = read_header(path)
    except AtomicFileError:
        header = []  # reported below
    attributes = [c.name for c in header if c.type.startswith("token") and c.name != "item_id"]
    if header and not attributes:
        found.append(Problem(path, 1, False, "expected a token or token_seq column of item text"))
    described = _Ids()
    for line, (item, *texts) in _rows(path, found, dict.fromkeys(["item_id", *attributes])):
        if not item:
            found.append(Problem(path, line, True, "expected an item_id, found none"))
            continue
        first = described.lines[described.number(item, line)]
        if first != line:
            found.append(Problem(path, line, True, f"item {item!r} stands in line {first} already"))
        if item not in bought.number_of:
            found.append(Problem(path, line, False, f"item {item!r} has no interaction"))
        if attributes and not any(text.strip() for text in texts):
            found.append(Problem(path, line, False, f"item {item!r} has no text"))
    found += _swallowed(path, "item_id", described)
    return found if not header else found + _undescribed(path, inter, bought, described)


def _undescribed(path: Path, inter: Path, bought: _Ids, described: _Ids) -> list[Problem]:
    """Items that occur and have no row; each at its first interaction."""
    return [
        Problem(inter, line, False, f"item {item!r} has no row in {path.name}, so no text")
        for item, line in zip(bought.number_of, bought.lines, strict=True)
        if item not in described.number_of
    ]


def _swallowed(path: Path, column: str, ids: _Ids) -> list[Problem]:
    """Ids that pandas' defaults lose: words for «missing», and quotes."""
    found = []
    for value, line in zip(ids.number_of, ids.lines, strict=True):
        if value in PANDAS_MISSING:
            found.append(
                Problem(path, line, False, f"pandas takes {column} {value!r} for a missing value")
            )
        elif value.startswith('"'):
            found.append(
                Problem(
                    path, line, False, f"pandas takes the quote of {column} {value!r} for its own"
                )
            )
    return found


def _rows(
    path: Path, found: list[Problem], wanted: dict[str, str] | dict[str, None]
) -> Iterator[tuple[int, list[str]]]:
    """Line number and wanted fields of each row that is as the header says; others are problems."""
    try:
        header = read_header(path)
        places = _places(path, header, wanted)
    except AtomicFileError as error:
        found.append(Problem(path, 1, True, _without_place(path, error)))
        return
    numbers = [(n, c.name, c.type) for n, c in enumerate(header) if c.type.startswith("float")]
    for line, content in numbered_lines(path):
        content = content.removesuffix(b"\r")
        if line == 1 or not content:
            continue
        fault = None
        try:
            fields = content.decode().split("\t")
        except UnicodeDecodeError as error:
            found.append(Problem(path, line, True, f"expected UTF-8 text, found {error.reason}"))
            continue
        if b"\0" in content:
            fault = "expected text without NUL bytes"
        elif len(fields) != len(header):
            names = ", ".join(column.name for column in header)
            fault = f"expected {len(header)} columns ({names}), found {len(fields)}"
        else:
            fault = _no_number(fields, numbers)
        if fault:
            found.append(Problem(path, line, True, fault))
        else:
            yield line, [fields[place] for place in places]


def _places(path: Path, header: Sequence[Column], wanted: dict) -> list[int]:
    columns = {column.name: (place, column.type) for place, column in enumerate(header)}
    places = []
    for name, kind in wanted.items():
        if name not in columns:
            raise AtomicFileError(f"{path}, line 1: expected a column {name!r}, found none")
        place, actual = columns[name]
        if kind is not None and actual != kind:
            raise AtomicFileError(
                f"{path}, line 1: expected column {name!r} of type {kind}, found {actual}"
            )
        places.append(place)
    return places


def _no_number(fields: Sequence[str], numbers: Sequence[tuple[int, str, str]]) -> str | None:
    for place, name, kind in numbers:
        values = fields[place].split(" ") if kind == "float_seq" else [fields[place]]
        for value in values:
            if value and not is_number(value):
                return f"expected a number for {name!r}, found {value[:60]!r}"
    return None


def _without_place(path: Path, error: AtomicFileError) -> str:
    return str(error).removeprefix(f"{path}").removeprefix(", line 1").removeprefix(": ")
