"""The fingerprint that a loaded data set will have, from the interactions to be written."""

from __future__ import annotations

import hashlib

import numpy as np

from recbole_jepa4rec.convert.interactions import Interactions


def fingerprint(rows: Interactions) -> str:
    """What ``SequentialTextDataset.fingerprint`` gives for these interactions.

    Args:
        rows: sorted by user and time; every id that is numbered occurs.
    """
    user_ids, item_ids = np.array(rows.user_ids, object), np.array(rows.item_ids, object)
    user_order, item_order = (np.argsort(ids, kind="stable") for ids in (user_ids, item_ids))
    rank_of_item = np.empty(len(item_ids), dtype="<i8")
    rank_of_item[item_order] = np.arange(len(item_ids))
    counts = np.bincount(rows.users, minlength=len(user_ids))
    begins = counts.cumsum() - counts
    lengths = counts[user_order].astype("<i8")
    moved = begins[user_order] - (lengths.cumsum() - lengths)
    by_user = np.repeat(moved, lengths) + np.arange(len(rows))

    digest = hashlib.sha256()
    for ids in (user_ids[user_order], item_ids[item_order]):
        digest.update("\n".join(ids).encode() + b"\n\n")
    digest.update(lengths.tobytes())
    digest.update(rank_of_item[rows.items[by_user]].tobytes())
    return digest.hexdigest()[:16]
