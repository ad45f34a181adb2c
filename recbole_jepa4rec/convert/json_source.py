"""Sources whose files hold one record a line: Amazon's reviews, Yelp, Steam."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_jepa4rec.convert import values
from recbole_jepa4rec.convert.interactions import Row
from recbole_jepa4rec.convert.lines import BadLines, numbered_lines
from recbole_jepa4rec.convert.source import KeysAreIds, Text, check_attributes
from recbole_jepa4rec.convert.tables import SeparatedTable, json_records


@dataclass(frozen=True)
class Layout:
    """Names of what a record holds; of several names the first counts that has a value.

    Attributes:
        user: of an interaction.
        item: of an interaction.
        time: of an interaction.
        rating: of an interaction.
        described: id of the item that a metadata record describes.
        attributes: of the item text, with the record's names for each.
        separators: between the members of a list; a blank by default.
        literals: whether lines may be Python literals instead of JSON.
        csv: columns of a ratings file without header.
    """

    user: tuple[str, ...]
    item: tuple[str, ...]
    time: tuple[str, ...]
    rating: tuple[str, ...]
    described: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]
    separators: Mapping[str, str]
    literals: bool = False
    csv: tuple[str, ...] = ()


_AMAZON_TEXT = {
    "title": ("title",),
    "categories": ("categories", "category", "main_category", "main_cat"),
    "brand": ("brand", "store"),
    "description": ("description",),
}
_COMMA = {"categories": ", ", "genres": ", ", "tags": ", ", "developer": ", "}

LAYOUTS = {
    "amazon2014": Layout(
        user=("reviewerID",), item=("asin",), time=("unixReviewTime",), rating=("overall",),
        described=("asin",), attributes=_AMAZON_TEXT, separators=_COMMA, literals=True,
        csv=("reviewerID", "asin", "overall", "unixReviewTime"),
    ),
    "amazon2018": Layout(
        user=("reviewerID",), item=("asin",), time=("unixReviewTime",), rating=("overall",),
        described=("asin",), attributes=_AMAZON_TEXT, separators=_COMMA,
        csv=("asin", "reviewerID", "overall", "unixReviewTime"),
    ),
    "amazon2023": Layout(
        user=("user_id",), item=("parent_asin",), time=("timestamp",), rating=("rating",),
        described=("parent_asin",), attributes=_AMAZON_TEXT, separators=_COMMA,
        csv=("user_id", "parent_asin", "rating", "timestamp"),
    ),
    "yelp": Layout(
        user=("user_id",), item=("business_id",), time=("date",), rating=("stars",),
        described=("business_id",), separators=_COMMA,
        attributes={"title": ("name",), "categories": ("categories",), "city": ("city",)},
    ),
    "steam": Layout(
        user=("username", "user_id"), item=("product_id",), time=("date", "timestamp"),
        rating=(), described=("id",), separators=_COMMA, literals=True,
        attributes={
            "title": ("title", "app_name"), "genres": ("genres",), "tags": ("tags",),
            "developer": ("developer",),
        },
    ),
}  # fmt: skip
"""What each source's records hold."""


class JsonSource(KeysAreIds):
    """Reviews, one record a line (Amazon's ratings as ``.csv``, too), and items' metadata.

    Args:
        layout: what the records hold.
        reviews: file of the interactions.
        metadata: file of the item text, if there is one.
        bad: takes lines that cannot be used.
        attributes: names of the item text to write, by default all of the layout; a name that the
            layout does not know is looked up in the records as it is.
        decode_html: see ``values.text``.
        min_rating: rating below which an interaction is left out.

    Raises:
        ValueError: if an attribute's name cannot be used, or ratings are asked for where there are
            none.
    """

    def __init__(
        self,
        layout: Layout,
        reviews: Path,
        metadata: Path | None,
        bad: BadLines,
        attributes: Sequence[str] | None = None,
        decode_html: bool = False,
        min_rating: float | None = None,
    ) -> None:
        if min_rating is not None and not layout.rating:
            raise ValueError("min_rating: this source has no ratings")
        self._layout, self._reviews, self._metadata, self.bad = layout, reviews, metadata, bad
        self._decode_html, self._min_rating = decode_html, min_rating
        names = attributes if attributes is not None else list(layout.attributes)
        self.attributes = check_attributes(names) if metadata else ()

    def interactions(self) -> Iterator[Row]:
        """See ``Source``."""
        if self._layout.csv and ".csv" in self._reviews.suffixes:
            yield from self._ratings()
            return
        for line, record in self._records(self._reviews):
            try:
                row = self._row(record)
            except values.FaultError as fault:
                self.bad.add(self._reviews, line, str(fault))
                continue
            if row is not None:
                yield row

    def texts(self) -> Iterator[Text]:
        """See ``Source``."""
        if self._metadata is None:
            return
        layout, is_empty = self._layout, True
        sources = [(layout.attributes.get(name, (name,)), name) for name in self.attributes]
        for line, record in self._records(self._metadata):
            try:
                item = values.token(*_first(record, layout.described))
            except values.FaultError as fault:
                self.bad.add(self._metadata, line, str(fault))
                continue
            is_empty = False
            yield (
                item,
                [
                    values.text(
                        _first(record, keys)[0],
                        layout.separators.get(name, " "),
                        self._decode_html,
                    )
                    for keys, name in sources
                ],
            )
        if is_empty:
            raise ValueError(
                f"{self._metadata}, line 1: expected a record with "
                f"{layout.described[0]}, found none"
            )

    def _row(self, record: dict[str, Any]) -> Row | None:
        layout = self._layout
        user = values.token(*_first(record, layout.user))
        item = values.token(*_first(record, layout.item))
        moment = values.time(*_first(record, layout.time))
        if values.is_below(self._min_rating, *_first(record, layout.rating)):
            return None
        return user, item, moment

    def _ratings(self) -> Iterator[Row]:
        """Interactions of a file of separated values; a header line names other columns."""
        layout = self._layout
        table = SeparatedTable(self._reviews, self.bad, ",", columns=layout.csv)
        with_header = SeparatedTable(self._reviews, self.bad, ",")
        needed = (layout.user[0], layout.item[0], layout.time[0])
        if set(needed) <= set(with_header.columns):
            table = with_header
        names = [*needed, layout.rating[0]] if self._min_rating is not None else needed
        for line, fields in table.rows(names):
            try:
                row = self._row(dict(zip(names, fields, strict=True)))
            except values.FaultError as fault:
                self.bad.add(self._reviews, line, str(fault))
                continue
            if row is not None:
                yield row

    def _records(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        read = literal_records if self._layout.literals else json_records
        return read(path, self.bad)


def literal_records(path: Path, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and record of each line: a JSON object, or a dict of Python literals.

    Literals are parsed, never evaluated.
    """
    for line, content in numbered_lines(path):
        if not content or content.isspace():
            continue
        try:
            record = _json_or_literal(content.decode())
        except UnicodeDecodeError:
            bad.add(path, line, "expected UTF-8 text")
            continue
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
            bad.add(path, line, f"expected a JSON object or a dict of literals, found {reason}")
            continue
        if type(record) is dict:
            yield line, record
        else:
            bad.add(path, line, f"expected a record, found {str(record)[:40]!r}")


def _json_or_literal(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line.strip())


def _first(record: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, str]:
    """The first value that is there, and its name."""
    for name in names:
        if (value := record.get(name)) not in (None, "", []):
            return value, name
    return None, " or ".join(names)
