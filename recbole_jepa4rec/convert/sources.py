"""The sources: how each one's files are laid out, and what sets its rows apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recbole_jepa4rec.convert.settings import Reading
from recbole_jepa4rec.convert.source import (
    FaultError,
    Layout,
    Row,
    Source,
    Text,
    moment_of,
    text,
    token,
)
from recbole_jepa4rec.convert.tables import BadLines, JsonTable, Names, SeparatedTable, open_table
from recbole_jepa4rec.data.atomic_files import read_header

_AMAZON_TEXT = {
    "title": ("title",),
    "categories": ("categories", "category", "main_category", "main_cat"),
    "brand": ("brand", "store"),
    "description": ("description",),
}
LAYOUTS = {
    "amazon2014": Layout(
        user=("reviewerID",), item=("asin",), time=("unixReviewTime",), rating=("overall",),
        described=("asin",), attributes=_AMAZON_TEXT, literals=True,
        csv=("reviewerID", "asin", "overall", "unixReviewTime"),
    ),
    "amazon2018": Layout(
        user=("reviewerID",), item=("asin",), time=("unixReviewTime",), rating=("overall",),
        described=("asin",), attributes=_AMAZON_TEXT,
        csv=("asin", "reviewerID", "overall", "unixReviewTime"),
    ),
    "amazon2023": Layout(
        user=("user_id",), item=("parent_asin",), time=("timestamp",), rating=("rating",),
        described=("parent_asin",), attributes=_AMAZON_TEXT,
        csv=("user_id", "parent_asin", "rating", "timestamp"),
    ),
    "yelp": Layout(
        user=("user_id",), item=("business_id",), time=("date",), rating=("stars",),
        described=("business_id",),
        attributes={"title": ("name",), "categories": ("categories",), "city": ("city",)},
    ),
    "steam": Layout(
        user=("username", "user_id"), item=("product_id",), time=("date", "timestamp"),
        described=("id",), literals=True,
        attributes={
            "title": ("title", "app_name"), "genres": ("genres",), "tags": ("tags",),
            "developer": ("developer",),
        },
    ),
}  # fmt: skip
"""What the records of each source hold."""


def open_records(layout: Layout, files: Sequence[Path], reading: Reading, bad: BadLines) -> Source:
    """Reviews and items' metadata, one record a line; Amazon's ratings as ``.csv``, too."""
    reviews, *metadata = files
    items = JsonTable(metadata[0], bad, layout.literals) if metadata else None
    if not layout.csv or ".csv" not in reviews.suffixes:
        return Source(layout, reading, bad, JsonTable(reviews, bad, layout.literals), items)
    table = SeparatedTable(reviews, bad, ",")
    if not {*layout.user, *layout.item, *layout.time} <= {*table.columns}:
        table = SeparatedTable(reviews, bad, ",", columns=layout.csv, has_header=False)
    return Source(layout, reading, bad, table, items)


def open_tables(files: Sequence[Path], reading: Reading, bad: BadLines) -> Source:
    """People's own tables: interactions, and items' text in the same or another file.

    Raises:
        ValueError: if a file has no columns, or the attributes or the rating must be named.
    """
    if reading.min_rating is not None and reading.rating is None:
        raise ValueError("min_rating: name the column of the ratings (--rating)")
    tables = [open_table(path, bad, (reading.encoding,), reading.quotes) for path in files]
    attributes = reading.attributes
    if attributes is None and len(tables) == 2:
        attributes = tuple(name for name in tables[1].columns if name != reading.item)
        if not attributes:
            raise ValueError(f"{files[1]}: expected --attributes, the columns of the item text")
    names = attributes or ()
    layout = Layout(
        user=(reading.user,),
        item=(reading.item,),
        time=() if reading.no_time else (reading.time,),
        described=(reading.item,),
        rating=(reading.rating,) if reading.rating else (),
        attributes={name: (name,) for name in names},
        commas=names,
    )
    return Source(layout, reading, bad, tables[0], tables[-1])


def open_atomic_files(files: Sequence[Path], reading: Reading, bad: BadLines) -> Source:
    """Atomic files that others made, ``NAME/NAME.inter`` and, if there, ``NAME/NAME.item``.

    Lines that are no UTF-8 are read as Latin-1, NUL bytes become blanks; rows without id or time
    are bad lines. By default the ``token`` and ``token_seq`` columns are the item text.

    Raises:
        ValueError: if there is no ``.inter`` file, a header is none, or rows hold lists.
    """
    (folder,) = files
    inter, item = (folder / f"{folder.resolve().name}.{end}" for end in ("inter", "item"))
    if not inter.is_file():
        raise ValueError(f"{folder}: expected a folder with {inter.name}")
    if any(column.name == "item_id_list" for column in read_header(inter)):
        raise ValueError(
            f"{inter}, line 1: column 'item_id_list' holds interactions, which a run reads but "
            "this does not"
        )
    header = read_header(item) if item.is_file() else []
    names = [c.name for c in header if c.type.startswith("token") and c.name != "item_id"]
    layout = Layout(
        user=("user_id",), item=("item_id",), time=("timestamp",), described=("item_id",),
        attributes={name: (name,) for name in names},
    )  # fmt: skip
    items = _AtomicTable(item, bad) if header else None
    return Source(layout, reading, bad, _AtomicTable(inter, bad), items)


class _AtomicTable(SeparatedTable):
    """An atomic file, read leniently."""

    def __init__(self, path: Path, bad: BadLines) -> None:
        names = [column.name for column in read_header(path)]
        super().__init__(path, bad, "\t", ("utf-8", "latin-1"), quotes=False, columns=names)

    def _decoded(self, line: int, content: bytes) -> str:
        return super()._decoded(line, content.replace(b"\0", b" "))


class _Edition(NamedTuple):
    """How an edition of MovieLens is written: of ratings and movies, separators and columns.

    There are no columns where the files have headers.
    """

    movies: str
    separators: tuple[str, str]
    columns: tuple[Names | None, Names | None]


_RATING = ("userId", "movieId", "rating", "timestamp")
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
_NO_GENRE = "(no genres listed)"
_FLAGGED = ("movieId", "title", "release_date", "video_release_date", "url", *_GENRES)
_EDITIONS = {
    "u.data": _Edition("u.item", ("\t", "|"), (_RATING, _FLAGGED)),
    "ratings.dat": _Edition("movies.dat", ("::", "::"), (_RATING, ("movieId", "title", "genres"))),
    "ratings.csv": _Edition("movies.csv", (",", ","), (None, None)),
}


class MovieLens(Source):
    """MovieLens: 100K, 1M and 10M with their own separators, 20M, 25M and 32M as csv.

    Args:
        files: the folder of an edition, or its ratings file (``u.data``, ``ratings.dat``,
            ``ratings.csv``) and its movies file.
        reading: how they are read.
        bad: takes lines that cannot be used.

    Raises:
        ValueError: if there are no such files, or for attributes but ``title`` and ``genres``.
    """

    def __init__(self, files: Sequence[Path], reading: Reading, bad: BadLines) -> None:
        paths = _find_edition(files)
        edition = _EDITIONS[paths[0].name.removesuffix(".gz")]
        tables = [
            SeparatedTable(
                path, bad, separator, ("utf-8", "latin-1"),
                quotes=columns is None, columns=columns, has_header=columns is None,
            )
            for path, separator, columns in zip(
                paths, edition.separators, edition.columns, strict=True
            )
        ]  # fmt: skip
        layout = Layout(
            user=("userId",), item=("movieId",), time=("timestamp",), rating=("rating",),
            described=("movieId",), attributes={"title": ("title",), "genres": ("genres",)},
        )  # fmt: skip
        for name in reading.attributes or ():
            if name not in layout.attributes:
                raise ValueError(f"attribute {name!r} is not one of title, genres")
        super().__init__(layout, reading, bad, *tables)

    def _item_rows(self, names: Sequence[Names]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Let genres be a list, whether they stand in one field or each has a flag."""
        has_flags = self._items is not None and "genres" not in self._items.columns
        columns = ("movieId", "title", *(_GENRES if has_flags else ("genres",)))
        for line, (movie, title, *cells) in super()._item_rows([(name,) for name in columns]):
            if has_flags:
                genres = [name for name, flag in zip(_GENRES, cells, strict=True) if flag == "1"]
            else:
                genres = [name for name in cells[0].split("|") if name != _NO_GENRE]
            row = {"movieId": movie, "title": title, "genres": genres}
            yield line, [row[name] for (name,) in names]


def _find_edition(files: Sequence[Path]) -> tuple[Path, Path]:
    """The ratings file and the movies file."""
    first, *others = files
    if first.is_dir() and not others:
        first = next((first / name for name in _EDITIONS if (first / name).is_file()), first)
        if first.is_dir():
            raise ValueError(f"{first}: expected one of {', '.join(_EDITIONS)} in this folder")
    name = first.name.removesuffix(".gz")
    if name not in _EDITIONS:
        raise ValueError(
            f"{first}: expected the folder of an edition, or one of {', '.join(_EDITIONS)} and the "
            "movies file"
        )
    return first, others[0] if others else first.parent / _EDITIONS[name].movies


_INVOICE_LINE = (
    ("InvoiceNo", "Invoice"),
    ("StockCode",),
    ("Description",),
    ("Quantity",),
    ("InvoiceDate",),
    ("UnitPrice", "Price"),
    ("CustomerID", "Customer ID"),
    ("Country",),
)
_KEYS = {"invoice": 0, "code": 1, "description": 2, "customer": 6}
_INVOICE_DATES = ("%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M", "%m/%d/%Y %H:%M:%S")


class OnlineRetail(Source):
    """UCI's Online Retail: one table of invoice lines, whose items have no id of their own.

    Rows equal in all eight columns count once, rows without user or item never. Cancelled lines
    (negative quantities) and service codes such as POST stay: the published counts hold them. A
    description is an item as it stands, spaces at its ends included; its id is the stock code most
    often sold under it, with ``.2``, ``.3``, ... where several share a code, the one with most
    interactions first, then in alphabetical order. Dates are ISO's or have the month first.

    Args:
        files: the table, ``.xlsx``, ``.csv`` or another that ``open_table`` reads.
        reading: what tells users and items apart, and another form of the dates.
        bad: takes lines that cannot be used.

    Raises:
        ValueError: if the table cannot be read.
    """

    def __init__(self, files: Sequence[Path], reading: Reading, bad: BadLines) -> None:
        (path,) = files
        table = open_table(path, bad, encodings=("utf-8", "latin-1"))
        layout = Layout(user=(), item=(), time=(), described=(), attributes={"title": ()})
        super().__init__(layout, reading, bad, table, table)
        self._forms = (reading.time_format,) if reading.time_format else _INVOICE_DATES
        self._codes: dict[str, Counter[str]] = {}
        self._titles: dict[str, str] = {}

    def interactions(self) -> Iterator[Row]:
        """See ``Source``."""
        user, item = _KEYS[self._reading.user_key], _KEYS[self._reading.item_key]
        seen: set[bytes] = set()
        self._codes, self._titles = {}, {}
        for line, cells in self._interactions.rows(_INVOICE_LINE):
            row = [_plain(cell) for cell in cells]
            code, title = row[_KEYS["code"]], row[_KEYS["description"]]
            if not (row[user] and row[item] and title):
                continue
            digest = blake2b("\x1f".join(row).encode("utf-8", "replace"), digest_size=12).digest()
            if digest in seen:
                continue
            seen.add(digest)
            try:
                raw_user = token(row[user], " or ".join(_INVOICE_LINE[user]))
                token(code, "StockCode")
                moment = moment_of(cells[4], "InvoiceDate", self._forms)
            except FaultError as fault:
                self.bad.add(self._interactions.path, line, str(fault))
                continue
            self._codes.setdefault(row[item], Counter())[code] += 1
            self._titles.setdefault(row[item], text(title))
            yield raw_user, row[item], moment

    def texts(self) -> Iterator[Text]:
        """The descriptions of the interactions that were read."""
        for key, title in self._titles.items():
            yield key, [title]

    def item_ids(self, keys: list[str], counts: np.ndarray) -> list[str]:
        """Stock codes, each with a suffix where it is not the code's first description."""
        ids = [""] * len(keys)
        used: Counter[str] = Counter()
        for place in sorted(range(len(keys)), key=lambda n: (-counts[n], keys[n])):
            ((code, _),) = self._codes[keys[place]].most_common(1)
            used[code] += 1
            ids[place] = code if used[code] == 1 else f"{code}.{used[code]}"
        return ids


def _plain(cell: Any) -> str:
    """A cell as text; a whole number that a table holds as a decimal (17850.0) without it."""
    if cell is None or cell != cell:
        return ""
    shown_as = str(cell)
    return shown_as[:-2] if shown_as.endswith(".0") and shown_as[:-2].isdecimal() else shown_as


OPENERS: Mapping[str, Callable[[Sequence[Path], Reading, BadLines], Source]] = {
    **{name: partial(open_records, layout) for name, layout in LAYOUTS.items()},
    "online-retail": OnlineRetail,
    "movielens": MovieLens,
    "generic": open_tables,
    "from-recbole": open_atomic_files,
}
"""What opens each source's files."""
