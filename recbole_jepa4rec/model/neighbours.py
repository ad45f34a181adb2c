"""What neighbours of a history's items say of an item: text, co-occurrence, transitions.

Each is a term f_k(u, x), the sum over the newest items i of a history of a weight, which falls with
age, times how close x is to i. Nothing is trained; counts are those of the training part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from recbole_jepa4rec.data.histories import Histories, PackedHistories
from recbole_jepa4rec.text.row_encoder import ragged

PAIRS_AT_MOST = 2**26
"""Pairs of items whose counts are stored, in 768 MiB; more are counted anew for each batch."""

ITEMS_AT_ONCE = 4096
"""Items whose pairs are counted together."""


def recency_weights(
    histories: PackedHistories, decay: float, max_items: int, num_items: int
) -> sparse.csr_matrix:
    """Weights of each history's newest items: ``decay ** (j - 1)`` for the j-th newest.

    Args:
        histories: of a batch.
        decay: from 0 to 1.
        max_items: that are read of a history.
        num_items: ``N``, the padding item included.

    Returns:
        ``[B, N]`` float64; an item that stands there several times has the sum.
    """
    lengths, newest = histories.lengths.numpy(), histories.newest_first().numpy()
    age = np.arange(len(newest)) - np.repeat(lengths.cumsum() - lengths, lengths)
    read = age < max_items
    ends = np.concatenate([[0], np.minimum(lengths, max_items).cumsum()])
    weights = sparse.csr_matrix(
        (float(decay) ** age[read], newest[read], ends), shape=(len(lengths), num_items)
    )
    weights.sum_duplicates()
    return weights


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Who had which items, and what followed what, in the training part of all histories.

    Attributes:
        had: 1 where a user had an item, ``[U, N]``.
        before: the item of each transition, ``[E]``, sorted by user.
        after: the item that followed it, ``[E]``.
        first: transitions of user u are ``first[u] .. first[u + 1]``, ``[U + 1]``.
    """

    had: sparse.csr_matrix
    before: np.ndarray
    after: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, histories: Histories, num_items: int) -> Neighbours:
        """Count the training part.

        Args:
            histories: of all users.
            num_items: ``N``, the padding item included.
        """
        trains = histories.in_training
        users, items = histories.users[trains].numpy(), histories.items[trains].numpy()
        had = sparse.csr_matrix(
            (np.ones(len(users)), (users, items)), shape=(len(histories.lengths), num_items)
        )
        had.data[:] = 1.0  # the constructor has added up what a user had several times
        later = histories.targets[trains[histories.targets]]
        per_user = np.bincount(histories.users[later].numpy(), minlength=had.shape[0])
        return cls(
            had,
            histories.items[later - 1].numpy(),
            histories.items[later].numpy(),
            np.concatenate([[0], per_user.cumsum()]),
        )

    @property
    def num_items(self) -> int:
        """Number of items ``N`` that are counted, the padding item included."""
        return self.had.shape[1]

    def cooccurrence(
        self, weights: sparse.csr_matrix, users: np.ndarray | None = None
    ) -> sparse.csr_matrix:
        """Sums of weight times c(x, i) = users with both / sqrt(users with x * users with i).

        c is 0 for x = i.

        Args:
            weights: of each history's items i, ``[B, N]``.
            users: whose histories these are, ``[B]``, where their own interactions are left out of
                the counts, as training on them needs; ``None`` counts everybody.

        Returns:
            ``[B, N]`` float64.
        """
        own = None if users is None else self.had[users]
        counts = self.users_of_item
        with_item = _at_entries(weights, counts, own)
        scaled = weights.copy()
        scaled.data *= _inverse_root(with_item)
        sums = self._with_both(scaled)
        if own is None:
            return sums @ sparse.diags(_inverse_root(counts))
        had_too = scaled.multiply(own).tocsr()  # the user is one of those with x and i
        total = sparse.diags(np.asarray(had_too.sum(axis=1)).ravel())
        sums = sums - (total @ own - had_too)
        without_own = _inverse_root(counts - 1) - _inverse_root(counts)
        return (
            sums @ sparse.diags(_inverse_root(counts))
            + sums.multiply(own @ sparse.diags(without_own))
        ).tocsr()

    def transitions(
        self, weights: sparse.csr_matrix, users: np.ndarray | None = None
    ) -> sparse.csr_matrix:
        """Sums of weight times p(x | i), the share of the transitions from i that go to x.

        Args:
            weights: of each history's items i, ``[B, N]``.
            users: as in ``cooccurrence``.

        Returns:
            ``[B, N]`` float64.
        """
        if users is None:
            scaled = weights.copy()
            scaled.data *= _inverse(_at_entries(weights, self.leaving, None))
            return scaled @ self.followed
        own = self._own_transitions(users)
        left = sparse.csr_matrix((np.ones(len(own[0])), own[:2]), shape=weights.shape)
        scaled = weights.copy()
        scaled.data *= _inverse(_at_entries(weights, self.leaving, left))
        row, before, after = own
        from_item = _values_at(scaled, row, before)
        return scaled @ self.followed - sparse.csr_matrix((from_item, (row, after)), weights.shape)

    @cached_property
    def users_of_item(self) -> np.ndarray:
        """Users who had each item, ``[N]``."""
        return np.asarray(self.had.sum(axis=0)).ravel()

    @cached_property
    def leaving(self) -> np.ndarray:
        """Transitions from each item, ``[N]``."""
        return np.bincount(self.before, minlength=self.num_items).astype(np.float64)

    @cached_property
    def followed(self) -> sparse.csr_matrix:
        """How often the column's item followed the row's, ``[N, N]``."""
        shape = (self.num_items, self.num_items)
        return sparse.csr_matrix((np.ones(len(self.before)), (self.before, self.after)), shape)

    @cached_property
    def users_by_item(self) -> sparse.csr_matrix:
        """``had``, the other way round, ``[N, U]``."""
        return self.had.T.tocsr()

    @cached_property
    def pairs(self) -> sparse.csr_matrix | None:
        """Users of each two items, ``[N, N]``; ``None`` where there are too many pairs to store."""
        parts: list[sparse.csr_matrix] = []
        for first in range(0, self.num_items, ITEMS_AT_ONCE):
            last = min(first + ITEMS_AT_ONCE, self.num_items)
            parts.append(self._pairs_of(np.arange(first, last)))
            if sum(part.nnz for part in parts) > PAIRS_AT_MOST:
                return None
        return sparse.vstack(parts, format="csr")

    def _pairs_of(self, items: np.ndarray) -> sparse.csr_matrix:
        """Users of each of these items, distinct ones, with any other, ``[I, N]``."""
        pairs = self.users_by_item[items] @ self.had
        with_itself = self.users_of_item[items], (np.arange(len(items)), items)
        return (pairs - sparse.csr_matrix(with_itself, pairs.shape)).tocsr()

    def _with_both(self, weights: sparse.csr_matrix) -> sparse.csr_matrix:
        """Sums of weight times users with both, ``[B, N]``."""
        if self.pairs is not None:
            return weights @ self.pairs
        items, place = np.unique(weights.indices, return_inverse=True)
        shape = (weights.shape[0], len(items))
        return sparse.csr_matrix((weights.data, place, weights.indptr), shape) @ self._pairs_of(
            items
        )

    def _own_transitions(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, item before and item after of every transition of the users, ``[T]`` each."""
        counts = self.first[users + 1] - self.first[users]
        row, entry = np.repeat(np.arange(len(users)), counts), ragged(self.first[users], counts)
        return row, self.before[entry], self.after[entry]


def _at_entries(
    weights: sparse.csr_matrix, counts: np.ndarray, left_out: sparse.csr_matrix | None
) -> np.ndarray:
    """An item's count, less what its row leaves out, for each stored weight, ``[E]``."""
    found = counts[weights.indices]
    if left_out is None:
        return found
    row = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    return found - _values_at(left_out, row, weights.indices)


def _values_at(matrix: sparse.csr_matrix, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values at these places, ``[E]``."""
    return np.asarray(matrix[row, column]).ravel() if len(row) else np.zeros(0)


def _inverse_root(values: np.ndarray) -> np.ndarray:
    """1 / the root of a count, and 0 where it is none."""
    return _inverse(np.sqrt(values.clip(min=0)))


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 / value, and 0 where the value is none."""
    return np.divide(1.0, values, out=np.zeros(values.shape), where=values > 0)
