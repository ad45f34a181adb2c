"""Random numbers of ids: the same for an id whatever else is in the data."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np


def draw(ids: Sequence[str], seed: int, purpose: bytes = b"") -> np.ndarray:
    """One number below 2^64 for each id, by the raw id, the seed and the purpose alone.

    Args:
        ids: raw ids, ``[N]``.
        seed: from 0 to 2^63 - 1.
        purpose: up to 16 bytes; draws for different ones are independent.

    Returns:
        uint64 ``[N]``.
    """
    key = seed.to_bytes(8, "little", signed=True)
    digests = (
        blake2b(id_.encode(), digest_size=8, key=key, person=purpose).digest() for id_ in ids
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")
