"""Every problem of a data set of atomic files, by file and line."""

from __future__ import annotations

import math
from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recbole_jepa4rec.convert.filters import codes, read_interactions
from recbole_jepa4rec.convert.source import Row
from recbole_jepa4rec.convert.split import NAMES
from recbole_jepa4rec.convert.tables import BadLines, SeparatedTable
from recbole_jepa4rec.data.atomic_files import AtomicFileError, Column, is_number, read_header
from recbole_jepa4rec.data.split_files import repeated_across_parts, without_history

SUFFIXES = ("inter", "item", "user", "kg", "link", "net")

PANDAS_MISSING = frozenset(
    [
        "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
        "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
    ]
)  # fmt: skip
"""Words that ``pandas.read_csv``, and so RecBole, takes for «missing»."""

_INTER = {"user_id": "token", "item_id": "token", "timestamp": "float"}
_KEY = ["user", "item", "time"]


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


def problems(folder: Path) -> list[Problem]:
    """All problems of the data set in a folder, file by file in the order of the lines.

    Raises:
        ValueError: if the folder holds no ``NAME.inter``.
    """
    name = folder.resolve().name
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in SUFFIXES}
    inter, item = paths["inter"], paths["item"]
    if not inter.is_file():
        raise ValueError(f"{folder}: expected a folder with {inter.name}")
    found: list[Problem] = []
    split = [folder / f"{name}.{part}.inter" for part in NAMES]
    missing = [path for path in split if not path.is_file()]
    if len(missing) < len(split):
        found += [Problem(path, 1, True, "expected this file of the split") for path in missing]
    rows = _read_interactions([inter] if missing else [inter, *split], found)
    whole = rows[rows["file"] == 0]
    bought = _first_lines(whole, "item")
    found += _swallowed(inter, "user_id", _first_lines(whole, "user"))
    found += _swallowed(inter, "item_id", bought)
    found += [*_duplicates(inter, whole), *_unsorted(inter, whole)]
    described: Container[str] = bought
    if item.is_file():
        described = _check_items(item, inter, bought, found)
    for suffix in SUFFIXES[2:]:
        if paths[suffix].is_file():
            for _ in _rows(paths[suffix], found, {}):
                pass
    if rows["file"].nunique() == 1 + len(split):
        found += _check_split([inter, *split], rows, described)
    order = {path: place for place, path in enumerate([*paths.values(), *split])}
    return sorted(found, key=lambda problem: (order[problem.path], problem.line))


def _read_interactions(paths: Sequence[Path], found: list[Problem]) -> pd.DataFrame:
    """The rows that are as they should be, with place of the ``file`` and ``line``."""
    files, lines = array("b"), array("q")

    def rows() -> Iterator[Row]:
        for number, path in enumerate(paths):
            faults, before = len(found), len(lines)
            for line, (user, item, time) in _rows(path, found, _INTER):
                missing = [n for n, v in zip(_INTER, (user, item, time), strict=True) if not v]
                if missing:
                    found.append(Problem(path, line, True, f"expected a {missing[0]}, found none"))
                elif not math.isfinite(float(time)):
                    what = f"expected a finite timestamp, found {time!r}"
                    found.append(Problem(path, line, True, what))
                else:
                    files.append(number)
                    lines.append(line)
                    yield user, item, int(time) if time.isdecimal() else float(time)
            if len(lines) == before and len(found) == faults:
                found.append(Problem(path, 1, True, "expected rows below the header"))

    return read_interactions(rows()).assign(file=np.array(files), line=np.array(lines))


def _first_lines(rows: pd.DataFrame, column: str) -> dict[str, int]:
    """Ids of a column in order of first appearance, with the line of each."""
    first = rows.drop_duplicates(column)
    return dict(zip(first[column], first["line"], strict=True))


def _swallowed(path: Path, column: str, lines: Mapping[str, int]) -> Iterator[Problem]:
    """Ids that pandas' defaults lose: words for «missing», and quotes."""
    for value, line in lines.items():
        if value in PANDAS_MISSING:
            what = f"pandas takes {column} {value!r} for a missing value"
            yield Problem(path, line, False, what)
        elif value.startswith('"'):
            what = f"pandas takes the quote of {column} {value!r} for its own"
            yield Problem(path, line, False, what)


def _duplicates(path: Path, rows: pd.DataFrame) -> Iterator[Problem]:
    first = rows.groupby(_KEY, observed=True, sort=False)["line"].transform("first")
    is_again = first != rows["line"]
    for line, earlier in zip(rows["line"][is_again], first[is_again], strict=True):
        yield Problem(path, line, False, f"same user, item and time as line {earlier}")


def _unsorted(path: Path, rows: pd.DataFrame) -> Iterator[Problem]:
    """Users whose rows are not in order of time; each at the first row that goes back."""
    least = rows["time"].min()
    before = rows.groupby("user", observed=True)["time"].shift(fill_value=least)
    back = rows[rows["time"] < before].drop_duplicates("user")
    for user, line in zip(back["user"], back["line"], strict=True):
        yield Problem(path, line, False, f"user {user!r} is not sorted by time from here")


def _check_items(
    path: Path, inter: Path, bought: Mapping[str, int], found: list[Problem]
) -> dict[str, int]:
    """Find problems of the item file; give the items that it describes, with the line of each."""
    try:
        header = read_header(path)
    except AtomicFileError:
        header = []  # ``_rows`` reports it
    attributes = [c.name for c in header if c.type.startswith("token") and c.name != "item_id"]
    if header and not attributes:
        found.append(Problem(path, 1, False, "expected a token or token_seq column of item text"))
    described: dict[str, int] = {}
    for line, (item, *texts) in _rows(path, found, dict.fromkeys(["item_id", *attributes])):
        if not item:
            found.append(Problem(path, line, True, "expected an item_id, found none"))
            continue
        first = described.setdefault(item, line)
        if first != line:
            found.append(Problem(path, line, True, f"item {item!r} stands in line {first} already"))
        if item not in bought:
            found.append(Problem(path, line, False, f"item {item!r} has no interaction"))
        if attributes and not any(text.strip() for text in texts):
            found.append(Problem(path, line, False, f"item {item!r} has no text"))
    found += _swallowed(path, "item_id", described)
    if header:
        found += [
            Problem(inter, line, False, f"item {item!r} has no row in {path.name}, so no text")
            for item, line in bought.items()
            if item not in described
        ]
    return described


def _check_split(
    paths: Sequence[Path], rows: pd.DataFrame, described: Container[str]
) -> Iterator[Problem]:
    """Find what is wrong with a split.

    Args:
        paths: of the whole file and the three of the split, which ``file`` of the rows counts.
        rows: of all four.
        described: the items that the item file holds; of the whole file if there is none.
    """
    whole, parts = rows[rows["file"] == 0], rows[rows["file"] > 0]
    parts = parts.iloc[np.lexsort((parts["file"], parts["time"], codes(parts["user"])))]
    users, part = codes(parts["user"]), parts["file"].to_numpy() - 1

    def problem(place: int, fatal: bool, what: str) -> Problem:
        return Problem(paths[part[place] + 1], parts["line"].iloc[place], fatal, what)

    pairs = repeated_across_parts(users, codes(parts["item"]), parts["time"].to_numpy(), part)
    for later, earlier in zip(*pairs, strict=True):
        twin = problem(earlier, True, "")
        what = f"stands in {twin.path.name}, line {twin.line} as well"
        yield problem(later, True, what)
    train = paths[1].name
    for target in without_history(users, part):
        yield problem(target, True, f"expected an earlier row of the user in {train}, found none")
    trained = {*parts["item"][part == 0]}
    for place, item in enumerate(parts["item"]):
        if item not in trained and item not in described:
            yield problem(place, True, f"expected an item that {train} or the .item file holds")
    held = parts[_KEY].merge(whole[_KEY].drop_duplicates(), "left", _KEY, indicator="held")["held"]
    for place in np.flatnonzero(held == "left_only"):
        yield problem(place, False, f"{paths[0].name} has no such row")


def _rows(
    path: Path, found: list[Problem], wanted: Mapping[str, str | None]
) -> Iterator[tuple[int, Sequence[str]]]:
    """Line number and wanted fields of each row that is as the header says; others are problems.

    Args:
        path: the file.
        found: gets the problems.
        wanted: names of columns, each with the type that it must have, if it must.
    """
    try:
        header = _checked_header(path, wanted)
    except AtomicFileError as error:
        what = str(error).removeprefix(f"{path}").removeprefix(", line 1").removeprefix(": ")
        found.append(Problem(path, 1, True, what))
        return
    bad, names = BadLines(math.inf), [column.name for column in header]
    numbers = [(n, c.name, c.type) for n, c in enumerate(header) if c.type.startswith("float")]
    places = [names.index(name) for name in wanted]
    table = SeparatedTable(path, bad, "\t", quotes=False, columns=names)
    for line, fields in table.rows([(name,) for name in names]):
        if any("\0" in field for field in fields):
            bad.add(path, line, "expected text without NUL bytes")
        elif fault := _no_number(fields, numbers):
            bad.add(path, line, fault)
        else:
            yield line, [fields[place] for place in places]
    found += [Problem(path, line, True, what) for (_, line), what in bad.found.items()]


def _checked_header(path: Path, wanted: Mapping[str, str | None]) -> list[Column]:
    header = read_header(path)
    types = dict(header)
    for name, kind in wanted.items():
        if name not in types:
            raise AtomicFileError(f"{path}, line 1: expected a column {name!r}, found none")
        if kind is not None and types[name] != kind:
            raise AtomicFileError(
                f"{path}, line 1: expected column {name!r} of type {kind}, found {types[name]}"
            )
    return header


def _no_number(fields: Sequence[str], numbers: Sequence[tuple[int, str, str]]) -> str | None:
    for place, name, kind in numbers:
        values = fields[place].split(" ") if kind == "float_seq" else [fields[place]]
        for value in values:
            if value and not is_number(value):
                return f"expected a number for {name!r}, found {value[:60]!r}"
    return None
