"""Variants of a data set whose interactions of one moment are an invoice: order, repeats, targets.

    python results/online-retail/variants.py --data_path=DIR --dataset=online-retail --out=DIR

The order of an invoice's lines is the till's or the warehouse's and says nothing of what a customer
wants next, yet leave-one-out asks for its last line, right behind the others. Each variant is a
folder of atomic files:

- ``NAME-shuffled``: an invoice's lines in an order drawn by seed;
- ``NAME-without-repeats``: as it was, with a customer's first purchase of each item alone;
- ``NAME-one-target``: shuffled, and of each of a customer's last two invoices one line alone, so
  that validation's and test's target stand behind whole invoices before them;
- ``NAME-fair``: without repeats, and then as the one before.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

USER, ITEM, TIME = "user_id:token", "item_id:token", "timestamp:float"
INVOICE = [USER, TIME]


def shuffled(lines: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The lines of each invoice in a random order; invoices stay where they are."""
    drawn = lines.assign(drawn=np.random.default_rng(seed).random(len(lines)))
    return drawn.sort_values([*INVOICE, "drawn"], kind="stable").drop(columns="drawn")


def without_repeats(lines: pd.DataFrame) -> pd.DataFrame:
    """Each customer's first purchase of each item."""
    return lines.drop_duplicates([USER, ITEM])


def one_target(lines: pd.DataFrame) -> pd.DataFrame:
    """Without all but the last line of each of a customer's last two invoices."""
    back = lines.groupby(USER)[TIME].rank("dense", ascending=False)
    return lines[(back > 2) | ~lines.duplicated(INVOICE, keep="last")]


def main() -> None:
    """Write the four variants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--dataset", default="online-retail")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=2020)
    given = parser.parse_args()
    source = given.data_path / given.dataset / given.dataset
    lines = pd.read_csv(f"{source}.inter", sep="\t", dtype={USER: str, ITEM: str})
    lines = lines.sort_values(INVOICE, kind="stable")
    mixed, first = shuffled(lines, given.seed), without_repeats(lines)
    variants = {
        "shuffled": mixed,
        "without-repeats": first,
        "one-target": one_target(mixed),
        "fair": one_target(shuffled(first, given.seed)),
    }
    for kind, kept in variants.items():
        name = f"{given.dataset}-{kind}"
        folder = given.out / name
        folder.mkdir(parents=True)
        shutil.copy(f"{source}.item", folder / f"{name}.item")
        kept.to_csv(folder / f"{name}.inter", sep="\t", index=False)
        print(f"{folder}: {kept[USER].nunique():,} users, {len(kept):,} interactions")


if __name__ == "__main__":
    main()
