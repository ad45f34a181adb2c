"""Every problem of a data set of atomic files, by file and line."""

from __future__ import annotations

import math
from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recbole_jepa4rec.config.protocol import NOBODY_TESTED, NOBODY_TRAINS
from recbole_jepa4rec.convert.filters import codes, read_interactions
from recbole_jepa4rec.convert.source import Row
from recbole_jepa4rec.convert.split import NAMES
from recbole_jepa4rec.convert.tables import BadLines, SeparatedTable
from recbole_jepa4rec.data.atomic_files import AtomicFileError, Column, is_number, read_header
from recbole_jepa4rec.data.list_files import UntoldError, unrolled
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
_LISTS = "item_id_list"
_NONE = np.array([], object)
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
        ValueError: if the folder holds neither ``NAME.inter`` nor files of a split.
    """
    name = folder.resolve().name
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in SUFFIXES}
    inter, item = paths["inter"], paths["item"]
    split = [folder / f"{name}.{part}.inter" for part in NAMES]
    missing = [path for path in split if not path.is_file()]
    if not inter.is_file() and len(missing) == len(split):
        raise ValueError(f"{folder}: expected a folder with {inter.name}")
    found: list[Problem] = []
    if len(missing) < len(split):
        found += [Problem(path, 1, True, "expected this file of the split") for path in missing]
    files = [inter] if missing else [inter, *split]
    rows = _read_interactions(files, found)
    whole = rows[rows["file"] == 0]
    if inter.is_file():
        found += [*_duplicates(inter, whole), *_unsorted(inter, whole)]
    bought = _first_places(whole if inter.is_file() else rows, "item", files)
    found += _swallowed("item_id", bought)
    found += _swallowed("user_id", _first_places(whole, "user", files))
    described: Container[str] = {*rows["item"]}  # without an item file no item is unknown
    if item.is_file():
        described = _check_items(item, bought, found)
    for suffix in SUFFIXES[2:]:  # which no run reads unless it is asked to
        if paths[suffix].is_file():
            others: list[Problem] = []
            for _ in _rows(paths[suffix], others, {}):
                pass
            found += [problem._replace(fatal=False) for problem in others]
    if {1, 2, 3} <= {*rows["file"]}:
        found += _check_split([inter, *split], rows, described)
    elif not any(problem.fatal for problem in found):
        found += _too_short(inter, rows)
    order = {path: place for place, path in enumerate([*paths.values(), *split])}
    return sorted(found, key=lambda problem: (order[problem.path], problem.line))


def _read_interactions(paths: Sequence[Path], found: list[Problem]) -> pd.DataFrame:
    """The rows that are as they should be, with place of the ``file`` and ``line``."""
    files, lines, lists = array("b"), array("q"), []
    rounded: list[Problem] = []

    def all_rows() -> Iterator[Row]:
        for number, path in enumerate(paths):
            before = len(lines), len(found)
            for line, row, words in _interactions(path, found, rounded):
                files.append(number)
                lines.append(line)
                lists.append(words)
                yield row
            if (len(lines), len(found)) == before and path.is_file():
                found.append(Problem(path, 1, True, "expected rows below the header"))

    table = read_interactions(all_rows())
    if table["time"].dtype == float:
        found += rounded
    table = table.assign(file=np.array(files), line=np.array(lines))
    return _with_lists(paths, table, lists, found) if any(map(len, lists)) else table


def _interactions(
    path: Path, found: list[Problem], rounded: list[Problem]
) -> Iterator[tuple[int, Row, np.ndarray]]:
    """Line number, interaction and list of each row; ``rounded`` gets what is wrong as decimals."""
    for line, row in _rows(path, found, _INTER) if path.is_file() else ():
        user, item, time = (row[name] for name in _INTER)
        missing = [name for name in _INTER if not row[name]]
        if missing:
            found.append(Problem(path, line, True, f"expected a {missing[0]}, found none"))
        elif not math.isfinite(moment := float(time)):
            found.append(Problem(path, line, True, f"expected a finite timestamp, found {time!r}"))
        else:
            if time.removeprefix("-").isdecimal():
                moment = int(time)
            if moment != float(time):
                what = "expected a timestamp up to 2^53, or whole numbers below 2^63 in every row"
                rounded.append(Problem(path, line, True, what))
            words = row.get(_LISTS)
            yield line, (user, item, moment), np.array(words.split(), object) if words else _NONE


def _with_lists(
    paths: Sequence[Path], rows: pd.DataFrame, lists: Sequence[np.ndarray], found: list[Problem]
) -> pd.DataFrame:
    """The interactions that lists hold as well; see ``list_files``."""
    tables = []
    for mask in (rows["file"] == 0, rows["file"] > 0):
        if not mask.any():
            continue
        part, own = rows[mask], [lists[row] for row in np.flatnonzero(mask).tolist()]
        try:
            table, whose = unrolled(part, own, part["file"].to_numpy(), ("user", "item", "time"))
        except UntoldError as error:
            file, line = part[["file", "line"]].iloc[error.row]
            what = f"expected {_LISTS} to go on from the rows of the user before"
            found.append(Problem(paths[file], line, True, what))
            tables.append(part)
        else:
            tables.append(table.join(part[["file", "line"]].iloc[whose].reset_index(drop=True)))
    both = pd.concat(tables, ignore_index=True)
    return both.astype({"user": "category", "item": "category"})


def _first_places(
    rows: pd.DataFrame, column: str, paths: Sequence[Path]
) -> dict[str, tuple[Path, int]]:
    """Ids of a column in order of first appearance, with file and line of each."""
    first = rows.drop_duplicates(column)
    places = zip([paths[file] for file in first["file"]], first["line"], strict=True)
    return dict(zip(first[column], places, strict=True))


def _swallowed(column: str, places: Mapping[str, tuple[Path, int]]) -> Iterator[Problem]:
    """Ids that pandas' defaults lose: words for «missing», and quotes."""
    for value, place in places.items():
        if value in PANDAS_MISSING:
            yield Problem(*place, False, f"pandas takes {column} {value!r} for a missing value")
        elif value.startswith('"'):
            yield Problem(
                *place, False, f"pandas takes the quote of {column} {value!r} for its own"
            )


def _duplicates(path: Path, rows: pd.DataFrame) -> Iterator[Problem]:
    first = rows.groupby(_KEY, observed=True, sort=False)["line"].transform("first")
    is_again = first != rows["line"]
    for line, earlier in zip(rows["line"][is_again], first[is_again], strict=True):
        yield Problem(path, line, False, f"same user, item and time as line {earlier}")


def _too_short(path: Path, rows: pd.DataFrame) -> Iterator[Problem]:
    """Find that nobody is tested, or that a model which trains has nobody to train on."""
    lengths = rows["user"].value_counts()
    if not (lengths >= 3).any():
        yield Problem(path, 1, True, NOBODY_TESTED)
    elif not ((lengths == 2) | (lengths > 3)).any():
        yield Problem(path, 1, False, NOBODY_TRAINS)


def _unsorted(path: Path, rows: pd.DataFrame) -> Iterator[Problem]:
    """Users whose rows are not in order of time; each at the first row that goes back."""
    least = rows["time"].min()
    before = rows.groupby("user", observed=True)["time"].shift(fill_value=least)
    back = rows[rows["time"] < before].drop_duplicates("user")
    for user, line in zip(back["user"], back["line"], strict=True):
        yield Problem(path, line, False, f"user {user!r} is not sorted by time from here")


def _check_items(
    path: Path, bought: Mapping[str, tuple[Path, int]], found: list[Problem]
) -> dict[str, tuple[Path, int]]:
    """Find problems of the item file; give the items that it describes, with the place of each."""
    try:
        header = read_header(path, {"item_id": "token"})
    except AtomicFileError as error:
        found.append(_of_header(path, error))
        return {}
    attributes = [c.name for c in header if c.type.startswith("token") and c.name != "item_id"]
    if not attributes:
        found.append(Problem(path, 1, False, "expected a token or token_seq column of item text"))
    described: dict[str, tuple[Path, int]] = {}
    for line, row in _rows(path, found, dict.fromkeys(["item_id", *attributes])):
        if not (item := row["item_id"]):
            found.append(Problem(path, line, True, "expected a item_id, found none"))
            continue
        first = described.setdefault(item, (path, line))[1]
        if first != line:
            found.append(Problem(path, line, True, f"item {item!r} stands in line {first} already"))
        if bought and item not in bought:
            found.append(Problem(path, line, False, f"item {item!r} has no interaction"))
        if attributes and not any(row[name].strip() for name in attributes):
            found.append(Problem(path, line, False, f"item {item!r} has no text"))
    found += _swallowed("item_id", described)
    found += [
        Problem(*place, False, f"item {item!r} has no row in {path.name}, so no text")
        for item, place in bought.items()
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
        described: the items that the item file holds; all if there is none.
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
    if not whole.empty:
        pairs = parts[_KEY].merge(whole[_KEY].drop_duplicates(), "left", _KEY, indicator="held")
        for place in np.flatnonzero(pairs["held"] == "left_only").tolist():
            yield problem(place, False, f"{paths[0].name} has no such row")


def _rows(
    path: Path, found: list[Problem], wanted: Mapping[str, str | None]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Line number and fields by name of each row that is as the header says.

    Args:
        path: the file.
        found: gets the problems; numbers of columns that are not wanted are not fatal.
        wanted: see ``read_header``.
    """
    try:
        lists = {name: "token_seq" for name, _ in read_header(path) if name == _LISTS}
        header = read_header(path, {**wanted, **lists})
    except AtomicFileError as error:
        found.append(_of_header(path, error))
        return
    bad, names = BadLines(math.inf), [column.name for column in header]
    table = SeparatedTable(path, bad, "\t", quotes=False, columns=names)
    for line, fields in table.rows([(name,) for name in names]):
        if any("\0" in field for field in fields):
            bad.add(path, line, "expected text without NUL bytes")
            continue
        faults = [*_no_numbers(header, fields)]
        found += [Problem(path, line, name in wanted, what) for name, what in faults]
        if not any(name in wanted for name, _ in faults):
            yield line, dict(zip(names, fields, strict=True))
    found += [Problem(path, line, True, what) for (_, line), what in bad.found.items()]


def _of_header(path: Path, error: AtomicFileError) -> Problem:
    what = str(error).removeprefix(f"{path}").removeprefix(", line 1").removeprefix(": ")
    return Problem(path, 1, True, what)


def _no_numbers(header: Sequence[Column], fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Columns whose field is no number, where it should be one, and what is wrong with it."""
    for (name, kind), field in zip(header, fields, strict=True):
        if kind.startswith("float"):
            for value in field.split(" ") if kind == "float_seq" else [field]:
                if value and not is_number(value):
                    yield name, f"expected a number for {name!r}, found {value[:60]!r}"
                    break
