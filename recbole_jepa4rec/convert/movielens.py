"""MovieLens: 100K, 1M and 10M with their own separators, 20M, 25M and 32M as csv."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from recbole_jepa4rec.convert import values
from recbole_jepa4rec.convert.interactions import Row
from recbole_jepa4rec.convert.lines import BadLines
from recbole_jepa4rec.convert.source import KeysAreIds, Text, check_attributes
from recbole_jepa4rec.convert.tables import SeparatedTable

_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
_RATING = ("userId", "movieId", "rating", "timestamp")
_MOVIE = ("movieId", "title", "genres")
_NONE = "(no genres listed)"


class _Form(NamedTuple):
    """How one edition is written: both files' names, separators, and columns where no header is."""

    movies: str
    separators: tuple[str, str]
    quotes: bool
    rating_columns: Sequence[str] | None
    movie_columns: Sequence[str] | None


_FORMS = {
    "u.data": _Form(
        "u.item", ("\t", "|"), False, _RATING,
        ("movieId", "title", "release_date", "video_release_date", "url", *_GENRES),
    ),
    "ratings.dat": _Form("movies.dat", ("::", "::"), False, _RATING, _MOVIE),
    "ratings.csv": _Form("movies.csv", (",", ","), True, None, None),
}  # fmt: skip


class MovieLens(KeysAreIds):
    """Ratings as interactions; title and genres as item text.

    Args:
        files: the folder of an edition, or its ratings file (``u.data``, ``ratings.dat``,
            ``ratings.csv``) and its movies file.
        bad: takes lines that cannot be used.
        attributes: of ``title`` and ``genres``; both by default.
        min_rating: rating below which an interaction is left out.

    Raises:
        ValueError: if there are no such files.
    """

    def __init__(
        self,
        files: Sequence[Path],
        bad: BadLines,
        attributes: Sequence[str] | None = None,
        min_rating: float | None = None,
    ) -> None:
        ratings, movies = _find(files)
        form = _FORMS[_plain_name(ratings)]
        self._form, self.bad, self._min_rating = form, bad, min_rating
        encodings = ("utf-8", "latin-1")
        self._ratings = SeparatedTable(
            ratings, bad, form.separators[0], encodings, form.quotes, form.rating_columns
        )
        self._movies = SeparatedTable(
            movies, bad, form.separators[1], encodings, form.quotes, form.movie_columns
        )
        self.attributes = check_attributes(attributes or ("title", "genres"))
        for name in self.attributes:
            if name not in ("title", "genres"):
                raise ValueError(f"attribute {name!r} is not one of title, genres")

    def interactions(self) -> Iterator[Row]:
        """See ``Source``."""
        for line, (user, item, rating, moment) in self._ratings.rows(_RATING):
            try:
                if values.is_below(self._min_rating, rating, "rating"):
                    continue
                yield (
                    values.token(user, "userId"),
                    values.token(item, "movieId"),
                    values.number(moment, "timestamp"),
                )
            except values.FaultError as fault:
                self.bad.add(self._ratings.path, line, str(fault))

    def texts(self) -> Iterator[Text]:
        """See ``Source``."""
        flags = "genres" not in self._movies.columns
        names = ("movieId", "title", *(_GENRES if flags else ("genres",)))
        for _, (item, title, *genres) in self._movies.rows(names):
            if flags:
                kinds = [kind for kind, flag in zip(_GENRES, genres, strict=True) if flag == "1"]
            else:
                kinds = [kind for kind in genres[0].split("|") if kind != _NONE]
            text = {"title": values.text(title), "genres": values.text(", ".join(kinds))}
            yield item, [text[name] for name in self.attributes]


def _find(files: Sequence[Path]) -> tuple[Path, Path]:
    """The ratings file and the movies file."""
    if len(files) == 1 and files[0].is_dir():
        for name in _FORMS:
            if (files[0] / name).is_file():
                return files[0] / name, files[0] / _FORMS[name].movies
        raise ValueError(f"{files[0]}: expected one of {', '.join(_FORMS)} in this folder")
    if not files or len(files) > 2 or _plain_name(files[0]) not in _FORMS:
        raise ValueError(
            f"{files[0] if files else 'movielens'}: expected the folder of an edition, or "
            f"one of {', '.join(_FORMS)} and the movies file"
        )
    return files[0], files[1] if len(files) == 2 else files[0].parent / _FORMS[
        _plain_name(files[0])
    ].movies


def _plain_name(path: Path) -> str:
    return path.name.removesuffix(".gz")
