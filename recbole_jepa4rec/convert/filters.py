"""From all interactions to those that a rule keeps."""

from __future__ import annotations

from typing import Any

import numpy as np

from recbole_jepa4rec.convert.draw import draw
from recbole_jepa4rec.convert.interactions import Interactions
from recbole_jepa4rec.convert.settings import Rule


def apply(
    rule: Rule, rows: Interactions, has_text: np.ndarray | None
) -> tuple[Interactions, list[dict[str, Any]]]:
    """Take the steps of a rule.

    Args:
        rule: the steps.
        rows: all interactions.
        has_text: whether an item number has text, bool ``[I]``; not read where the rule keeps all.

    Returns:
        The interactions that stay, and users, items and interactions after each step taken.

    Raises:
        ValueError: if no interaction is left.
    """
    steps: list[dict[str, Any]] = []

    def note(step: str, kept: Interactions) -> Interactions:
        if not len(kept):
            before = f", where {len(rows):,} were read" if len(rows) else ""
            raise ValueError(f"no interaction is left after step «{step}»{before}")
        steps.append({"step": step, **kept.counts()})
        return kept

    kept = note("read", rows)
    if rule.duplicates != "keep":
        kept = note(f"duplicates {rule.duplicates}", without_duplicates(kept, rule.duplicates))
    if rule.without_text == "before":
        kept = note("items without text", _with_text(kept, has_text))
    if max(rule.core_users, rule.core_items) > 1:
        core = k_core(kept, rule.core_users, rule.core_items)
        if rule.cold_users and len(core):
            core = kept.where(np.isin(kept.items, np.unique(core.items)))
        cold = " and cold users" if rule.cold_users else ""
        kept = note(f"core {rule.core_users}, {rule.core_items}{cold}", core)
    if rule.without_text == "after":
        kept = note("items without text", _with_text(kept, has_text))
    if rule.min_length > 1:
        long = np.bincount(kept.users) >= rule.min_length
        kept = note(f"users with {rule.min_length}", kept.where(long[kept.users]))
    if rule.user_share < 1:
        chosen = _drawn(kept, rule.user_share, rule.seed)
        kept = note(f"share {rule.user_share} of the users", kept.where(chosen[kept.users]))
    return kept, steps


def k_core(rows: Interactions, least_user: int, least_item: int) -> Interactions:
    """The largest set in which every user and every item has so many interactions."""
    while len(rows):
        users, items = np.bincount(rows.users), np.bincount(rows.items)
        stays = (users[rows.users] >= least_user) & (items[rows.items] >= least_item)
        if stays.all():
            break
        rows = rows.where(stays)
    return rows


def without_duplicates(rows: Interactions, kind: str) -> Interactions:
    """The first of equal interactions, in the order of the source; see ``Rule.duplicates``."""
    order = np.lexsort((rows.times, rows.items, rows.users))
    sorted_rows = rows.where(order)
    repeats = (np.diff(sorted_rows.users) == 0) & (np.diff(sorted_rows.items) == 0)
    if kind == "exact":
        repeats &= np.diff(sorted_rows.times) == 0
    stays = np.ones(len(rows), dtype=bool)
    stays[order[1:]] = ~repeats
    return rows.where(stays)


def _with_text(rows: Interactions, has_text: np.ndarray | None) -> Interactions:
    if has_text is None:
        raise RuntimeError("the rule drops items without text, but nobody has looked for it")
    return rows.where(has_text[rows.items])


def _drawn(rows: Interactions, share: float, seed: int) -> np.ndarray:
    """Whether a user number is drawn, bool ``[U]``, by its raw id and the seed alone."""
    return draw(rows.user_ids, seed) < np.uint64(int(share * 2**64))
