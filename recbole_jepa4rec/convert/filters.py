"""Interactions as a table of few bytes a row, and the steps that leave those that a rule keeps.

Such a table has the columns ``user`` and ``item``, categories in the order in which the source
first names them, and ``time`` in the unit of the source: int64 where all are whole, else float64.
Its rows are in the order of the source.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd

from recbole_jepa4rec.convert.settings import Rule
from recbole_jepa4rec.convert.source import Row


def read_interactions(rows: Iterable[Row]) -> pd.DataFrame:
    """Take rows one at a time; 16 bytes of each are kept, and every id once."""
    numbers: tuple[dict[str, int], dict[str, int]] = {}, {}
    users, items, times = array("i"), array("i"), array("q")
    for user, item, time in rows:
        users.append(numbers[0].setdefault(user, len(numbers[0])))
        items.append(numbers[1].setdefault(item, len(numbers[1])))
        try:
            times.append(time)  # type: ignore[arg-type]
        except (TypeError, OverflowError):  # the first that is no whole number
            times = array("d", times)  # type: ignore[assignment]
            times.append(time)  # type: ignore[arg-type]
    columns = {
        name: pd.Categorical.from_codes(np.array(codes), pd.Index(list(ids), dtype=object))
        for name, codes, ids in zip(("user", "item"), (users, items), numbers, strict=True)
    }
    return pd.DataFrame({**columns, "time": np.array(times)}, copy=False)


def codes(column: pd.Series) -> np.ndarray:
    """Number of each row's category, ``[M]``."""
    return column.cat.codes.to_numpy()


def counts(rows: pd.DataFrame) -> dict[str, int]:
    """Users and items that occur, and interactions."""
    found = {f"{column}s": rows[column].nunique() for column in ("user", "item")}
    return {**found, "interactions": len(rows)}


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Sorted by user and time, equal times in the order of the source; ids that occur alone."""
    rows = rows.iloc[np.lexsort((rows["time"], codes(rows["user"])))].reset_index(drop=True)
    for column in ("user", "item"):
        rows[column] = rows[column].cat.remove_unused_categories()
    return rows


def draw(ids: Iterable[str], seed: int, purpose: bytes = b"") -> np.ndarray:
    """One number below 2^64 for each id, by the raw id, the seed and the purpose alone.

    Args:
        ids: raw ids, ``[N]``.
        seed: from 0 to 2^63 - 1.
        purpose: up to 16 bytes; draws for different ones are independent.

    Returns:
        uint64 ``[N]``.
    """
    key = seed.to_bytes(8, "little")
    digests = (
        blake2b(id_.encode(), digest_size=8, key=key, person=purpose).digest() for id_ in ids
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")


def apply(
    rule: Rule, rows: pd.DataFrame, with_text: Collection[str] = ()
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Take the steps of a rule.

    Args:
        rule: the steps.
        rows: all interactions.
        with_text: the items that have text; not read where the rule keeps all.

    Returns:
        The interactions that stay, and users, items and interactions after each step taken.

    Raises:
        ValueError: if no interaction is left.
    """
    steps: list[dict[str, Any]] = []

    def note(step: str, kept: pd.DataFrame) -> pd.DataFrame:
        if kept.empty:
            before = f", where {len(rows):,} were read" if len(rows) else ""
            raise ValueError(f"no interaction is left after step «{step}»{before}")
        steps.append({"step": step, **counts(kept)})
        return kept

    kept = note("read", rows)
    if rule.duplicates != "keep":
        kept = note(f"duplicates {rule.duplicates}", without_duplicates(kept, rule.duplicates))
    if rule.without_text == "before":
        kept = note("items without text", kept[kept["item"].isin(with_text)])
    if max(rule.core_users, rule.core_items) > 1:
        core = k_core(kept, rule.core_users, rule.core_items)
        if rule.cold_users:
            core = kept[kept["item"].isin(core["item"].unique())]
        cold = " and cold users" if rule.cold_users else ""
        kept = note(f"core {rule.core_users}, {rule.core_items}{cold}", core)
    if rule.without_text == "after":
        kept = note("items without text", kept[kept["item"].isin(with_text)])
    if rule.min_length > 1:
        long = _occurrences(kept["user"]) >= rule.min_length
        kept = note(f"users with {rule.min_length}", kept[long])
    if rule.user_share < 1:
        ids = kept["user"].cat.categories
        drawn = ids[draw(ids, rule.seed) < np.uint64(int(rule.user_share * 2**64))]
        share = f"share {rule.user_share} of the users"
        kept = note(share, kept[kept["user"].isin(drawn)])
    return kept, steps


def k_core(rows: pd.DataFrame, least_user: int, least_item: int) -> pd.DataFrame:
    """The largest set in which every user and every item has so many interactions."""
    while not rows.empty:
        stays = _occurrences(rows["user"]) >= least_user
        stays &= _occurrences(rows["item"]) >= least_item
        if stays.all():
            break
        rows = rows[stays]
    return rows


def _occurrences(ids: pd.Series) -> np.ndarray:
    """How often each row's id occurs in all rows, ``[M]``."""
    numbers = codes(ids)
    return np.bincount(numbers)[numbers]


def without_duplicates(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The first of equal interactions, in the order of the source.

    Args:
        rows: interactions.
        kind: ``exact``: of the same user, item and time; ``pair``: the earliest of a user and an
            item.
    """
    if kind == "exact":
        return rows.drop_duplicates()
    in_time = rows.sort_values("time", kind="stable")
    return in_time.drop_duplicates(["user", "item"]).sort_index()
