"""Splits to be written as files, so that every model is compared on the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_jepa4rec.convert.draw import draw
from recbole_jepa4rec.convert.interactions import Interactions
from recbole_jepa4rec.convert.settings import Split
from recbole_jepa4rec.data.fingerprint import fingerprint
from recbole_jepa4rec.data.split_files import (
    PARTS,
    last_of_part,
    repeated_across_parts,
    without_history,
)

NAMES = ("train", "valid", "test")
"""Of the files: ``NAME.train.inter`` and so on."""

EXPLANATION = """splits (--split), written as NAME.train.inter, NAME.valid.inter, NAME.test.inter:
  loo: of each user with three interactions or more the last is tested and the one before it
    validated; everything else trains. What a run does without these files.
  temporal: everybody is cut at the same two moments. Interactions are sorted by time; test holds
    the last tenth (--test-share), validation the tenth before (--valid-share). All of one moment go
    into the later part.
  cold_items: a tenth of the items (--test-share) is drawn for test, another (--valid-share) for
    validation, by id and --seed alone; each file holds every interaction with its items, and
    training none of them. Time does not cut: training may hold later interactions.
In validation and test a user's last row is the target; his earlier rows there, and those in the
parts before, at the same time or earlier, are its history. A user without a training row before the
target is left out of that file. Run with --benchmark_filename=train,valid,test.
"""


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Interactions and the part of each.

    Attributes:
        split: how the parts were made.
        seed: of the draw of items.
        rows: sorted by user, time and part.
        part: number of the part of each, ``[M]``.
        left_out: interactions of users who have no training row before their target.
    """

    split: Split
    seed: int
    rows: Interactions
    part: np.ndarray
    left_out: int

    def files(self) -> dict[str, Interactions]:
        """The interactions of each file by its name."""
        return {name: self.rows.where(self.part == n) for n, name in enumerate(NAMES)}

    def summary(self) -> dict[str, Any]:
        """What ``NAME.stats.json`` says: the settings, each part's counts, cold targets.

        ``cold_targets``: share of a part's targets whose item is in no training row.
        """
        split = self.split
        settings: dict[str, Any] = {"kind": split.split}
        if split.split != "loo":
            settings |= {"valid_share": split.valid_share, "test_share": split.test_share}
        if split.split == "cold_items":
            settings["seed"] = self.seed
        rows, part = self.rows, self.part
        warm = np.zeros(len(rows.item_ids), dtype=bool)
        warm[rows.items[part == 0]] = True
        parts: dict[str, dict[str, float]] = {}
        for number, (name, its_rows) in enumerate(self.files().items()):
            parts[name] = {
                **its_rows.counts(),
                "first_time": float(its_rows.times.min()),
                "last_time": float(its_rows.times.max()),
            }
            if number:
                targets = last_of_part(rows.users, part, number)
                cold = ~warm[rows.items[targets]]
                parts[name] |= {"targets": len(targets), "cold_targets": float(cold.mean())}
        ids = np.array(rows.user_ids, object), np.array(rows.item_ids, object)
        return {
            **settings,
            "files": list(NAMES),
            "fingerprint": fingerprint(*ids, rows.users, rows.items, part),
            "parts": parts,
            "left_out": self.left_out,
        }


def split_rows(split: Split, seed: int, rows: Interactions) -> SplitRows:
    """Give every interaction its part.

    Args:
        split: how.
        seed: of the draw of items.
        rows: sorted by user and time.

    Raises:
        ValueError: if a part is empty, or the files could not tell two of them apart.
    """
    if split.split == "cold_items":
        part = _cold_items(split, seed, rows)
    else:
        part = _loo(rows) if split.split == "loo" else _temporal(split, rows)
    order = np.lexsort((part, rows.times, rows.users))
    rows, part = rows.where(order), part[order]
    targets = without_history(rows.users, part)
    alone = np.zeros((len(rows.user_ids), len(PARTS)), dtype=bool)
    alone[rows.users[targets], part[targets]] = True
    stays = ~alone[rows.users, part]
    made = SplitRows(split, seed, rows.where(stays), part[stays], int((~stays).sum()))
    for number, name in enumerate(PARTS):
        if not (made.part == number).any():
            raise ValueError(f"--split {split.split}: no interaction is left for {name}")
    later, _ = repeated_across_parts(made.rows.users, made.rows.items, made.rows.times, made.part)
    if len(later):
        user, item = made.rows.users[later[0]], made.rows.items[later[0]]
        raise ValueError(
            f"--split {split.split}: user {rows.user_ids[user]!r} has item {rows.item_ids[item]!r} "
            f"twice at one time, in two parts ({len(later)} such; --duplicates exact keeps one)"
        )
    return made


def _loo(rows: Interactions) -> np.ndarray:
    lengths = np.bincount(rows.users)
    last = lengths.cumsum()[lengths >= 3] - 1
    part = np.zeros(len(rows), dtype=np.int8)
    part[last], part[last - 1] = 2, 1
    return part


def _temporal(split: Split, rows: Interactions) -> np.ndarray:
    in_time = np.sort(rows.times)
    shares = (split.valid_share + split.test_share, split.test_share)
    cuts = [in_time[min(len(rows) - 1, round((1 - share) * len(rows)))] for share in shares]
    return np.searchsorted(cuts, rows.times, side="right").astype(np.int8)


def _cold_items(split: Split, seed: int, rows: Interactions) -> np.ndarray:
    numbers = draw(rows.item_ids, seed, b"cold_items")
    test, held_out = (
        np.uint64(int(share * 2**64))
        for share in (split.test_share, split.valid_share + split.test_share)
    )
    part_of_item = np.where(numbers < test, 2, np.where(numbers < held_out, 1, 0))
    return part_of_item[rows.items].astype(np.int8)
