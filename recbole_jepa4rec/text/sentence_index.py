"""Which sentence a digest belongs to: 24 bytes for each, where a dictionary takes over 200."""

from __future__ import annotations

import numpy as np

from recbole_jepa4rec.text.row_encoder import DIGEST


class SentenceIndex:
    """Numbers sentences from 0 in the order in which their digests are first seen.

    Two sentences of one digest would become one; see ``DIGEST`` for how likely that is.
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, DIGEST)
        self._numbers = np.empty(0, np.int64)  # in the order of the sorted digests

    def intern(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up digests; those not seen before get the next numbers.

        Args:
            digests: ``DIGEST`` ``[R]``.

        Returns:
            The number of each, int64 ``[R]``, and the rows that brought a new one, in order.
        """
        distinct, first, which = np.unique(digests, return_index=True, return_inverse=True)
        place = np.asarray(np.searchsorted(self._sorted, distinct))
        known = np.zeros(len(distinct), dtype=bool)
        inside = place < len(self._sorted)
        known[inside] = self._sorted[place[inside]] == distinct[inside]

        numbers = np.empty(len(distinct), np.int64)
        numbers[known] = self._numbers[place[known]]
        new_rows = np.sort(first[~known])
        numbers[~known] = len(self._sorted) + np.searchsorted(new_rows, first[~known])
        self._numbers = np.insert(self._numbers, place[~known], numbers[~known])
        self._sorted = np.insert(self._sorted, place[~known], distinct[~known])
        return numbers[which.ravel()], new_rows

    def truncate(self, count: int) -> None:
        """Forget the sentences from this number on."""
        kept = self._numbers < count
        self._sorted, self._numbers = self._sorted[kept], self._numbers[kept]
