"""What histories hold in 16 digits, whether they are about to be written or were loaded."""

from __future__ import annotations

import hashlib

import numpy as np


def fingerprint(
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    part: np.ndarray | None = None,
) -> str:
    """Digest of raw ids, of the order inside each history, and of the split if it is a given one.

    It does not depend on the order of the users, on how ids are numbered, nor on times.

    Args:
        user_ids: raw id of each user number, ``[U]``; those that do not occur are left out.
        item_ids: raw id of each item number, ``[I]``; the same holds.
        users: user number of each interaction, sorted, ``[M]``.
        items: item number of each interaction, in order of time for each user, ``[M]``.
        part: part of each interaction, ``[M]``; None for leaving one out, which follows from the
            histories.

    Returns:
        16 hexadecimal digits.
    """
    counts = np.bincount(users, minlength=len(user_ids))
    user_order = _sorted_by_id(counts, user_ids)
    item_order = _sorted_by_id(np.bincount(items, minlength=len(item_ids)), item_ids)
    rank_of_item = np.zeros(len(item_ids), dtype="<i8")
    rank_of_item[item_order] = np.arange(len(item_order))
    lengths = counts[user_order].astype("<i8")
    moved = (counts.cumsum() - counts)[user_order] - (lengths.cumsum() - lengths)
    by_user = np.repeat(moved, lengths) + np.arange(len(users))

    digest = hashlib.sha256()
    for ids in (user_ids[user_order], item_ids[item_order]):
        digest.update("\n".join(ids).encode() + b"\n\n")
    digest.update(lengths.tobytes())
    digest.update(rank_of_item[items[by_user]].tobytes())
    if part is not None:
        digest.update(part[by_user].astype("<i1").tobytes())
    return digest.hexdigest()[:16]


def _sorted_by_id(counts: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Numbers that occur, in the order of their ids."""
    occurring = np.flatnonzero(counts)
    return occurring[np.argsort(ids[occurring], kind="stable")]
