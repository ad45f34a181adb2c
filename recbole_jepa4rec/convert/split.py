"""Splits to be written as files, so that every model is compared on the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from recbole_jepa4rec.config.protocol import PARTS
from recbole_jepa4rec.convert.filters import codes, counts, draw
from recbole_jepa4rec.convert.settings import READ_BY, Split
from recbole_jepa4rec.data.fingerprint import fingerprint
from recbole_jepa4rec.data.split_files import (
    last_of_part,
    repeated_across_parts,
    without_history,
)

NAMES = ("train", "valid", "test")
"""Of the files: ``NAME.train.inter`` and so on."""


def split_rows(split: Split, seed: int, rows: pd.DataFrame) -> pd.DataFrame:
    """Give every interaction its part; those of users without training before a target leave.

    Args:
        split: how; see ``settings.EXPLANATION``.
        seed: of the draw of items.
        rows: as ``filters.in_order`` gives them.

    Returns:
        The rows that stay, sorted by user, time and part; ``part`` is the place in ``NAMES``.

    Raises:
        ValueError: if a part is empty, nobody is long enough, or the files could not tell two parts
            apart.
    """
    if split.split == "cold_items":
        part = _cold_items(split, seed, rows)
    elif split.split == "temporal":
        part = _temporal(split, rows)
    else:
        part = _last(1 if split.split == "loo" else split.last, rows)
    rows = rows.assign(part=part)
    rows = rows.iloc[np.lexsort((part, rows["time"], codes(rows["user"])))]
    part, users = rows["part"].to_numpy(), codes(rows["user"])
    alone = np.zeros((len(rows["user"].cat.categories), len(PARTS)), dtype=bool)
    targets = without_history(users, part)
    alone[users[targets], part[targets]] = True
    rows = rows[~alone[users, part]]
    for name, of_part in split_files(rows).items():
        if of_part.empty:
            purpose = PARTS[NAMES.index(name)]
            raise ValueError(f"--split {split.split}: no interaction is left for {purpose}")
    columns = (codes(rows["user"]), codes(rows["item"]), rows["time"].to_numpy())
    later, _ = repeated_across_parts(*columns, rows["part"].to_numpy())
    if len(later):
        first = rows.iloc[later[0]]
        raise ValueError(
            f"--split {split.split}: user {first['user']!r} has item {first['item']!r} twice at "
            f"one time, in two parts ({len(later)} such; --duplicates exact keeps one)"
        )
    return rows


def split_files(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The interactions of each file by its name."""
    return {name: rows[rows["part"] == number] for number, name in enumerate(NAMES)}


def split_summary(
    split: Split, seed: int, rows: pd.DataFrame, whole: pd.DataFrame
) -> dict[str, Any]:
    """What ``NAME.stats.json`` says: the settings, each part's counts, cold targets.

    ``cold_targets``: share of a part's targets whose item is in no training row.

    Args:
        split: how the parts were made.
        seed: of the draw of items.
        rows: what ``split_rows`` gave.
        whole: what it was given.
    """
    settings: dict[str, Any] = {"kind": split.split}
    for option, kinds in READ_BY.items():
        if split.split in kinds:
            settings[option] = vars(split)[option]
    if split.split == "cold_items":
        settings["seed"] = seed
    users, part = codes(rows["user"]), rows["part"].to_numpy()
    is_warm = rows["item"].isin(rows["item"][part == 0].unique()).to_numpy()
    parts: dict[str, dict[str, float]] = {}
    for number, (name, of_part) in enumerate(split_files(rows).items()):
        first, last = float(of_part["time"].min()), float(of_part["time"].max())
        parts[name] = {**counts(of_part), "first_time": first, "last_time": last}
        if number:
            targets = last_of_part(users, part, number)
            cold = float((~is_warm[targets]).mean())
            parts[name] |= {"targets": len(targets), "cold_targets": cold}
    return {
        **settings,
        "files": list(NAMES),
        "fingerprint": fingerprint_of(rows, part),
        "parts": parts,
        "left_out": len(whole) - len(rows),
    }


def fingerprint_of(rows: pd.DataFrame, part: np.ndarray | None = None) -> str:
    """What rows in order hold, as a data set that is loaded says it; see ``fingerprint``."""
    user_ids, item_ids = (rows[name].cat.categories.to_numpy() for name in ("user", "item"))
    return fingerprint(user_ids, item_ids, codes(rows["user"]), codes(rows["item"]), part)


def _last(held_back: int, rows: pd.DataFrame) -> np.ndarray:
    """The last so many of each user are tested, the one before them is validated."""
    lengths = np.bincount(codes(rows["user"]))
    least = held_back + 2
    if held_back > 1 and lengths.max() < least:
        raise ValueError(
            f"--last {held_back}: no user has {least} interactions, one to train on and one to "
            f"validate before them (the longest has {lengths.max()})"
        )
    to_end = np.repeat(lengths.cumsum(), lengths) - np.arange(len(rows))
    part = np.where(to_end <= held_back, 2, np.where(to_end == held_back + 1, 1, 0))
    return np.where(np.repeat(lengths, lengths) >= least, part, 0).astype(np.int8)


def _temporal(split: Split, rows: pd.DataFrame) -> np.ndarray:
    in_time = np.sort(rows["time"].to_numpy())
    shares = (split.valid_share + split.test_share, split.test_share)
    cuts = [in_time[min(len(rows) - 1, round((1 - share) * len(rows)))] for share in shares]
    return np.searchsorted(cuts, rows["time"].to_numpy(), side="right").astype(np.int8)


def _cold_items(split: Split, seed: int, rows: pd.DataFrame) -> np.ndarray:
    numbers = draw(rows["item"].cat.categories, seed, b"cold_items")
    test, held_out = (
        np.uint64(int(share * 2**64))
        for share in (split.test_share, split.valid_share + split.test_share)
    )
    part_of_item = np.where(numbers < test, 2, np.where(numbers < held_out, 1, 0))
    return part_of_item[codes(rows["item"])].astype(np.int8)
