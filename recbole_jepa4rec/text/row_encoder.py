"""Rows of item text as sentences: their tokens end to end, and a digest that tells them apart.

A whole catalogue is tokenised some rows at a time, here by the tokenizer's own threads
(``RAYON_NUM_THREADS``), or by a Ray cluster.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from recbole_jepa4rec.text.tokenizer import encode_values

CLS, ATTRIBUTE, VALUE = 0, 1, 2  # token types

FILE, RECFORMER = "file", "recformer"
"""Formats of a sentence: the attributes of the file in its order, without those that are empty, or
as RecFormer's authors have them (``sentences.in_format``)."""

LISTS = ("category", "categories")
"""Attributes whose commas are blanks in RecFormer's format."""

DIGEST = np.dtype("S16")
"""128 bits: among 10^9 sentences two that differ share a digest with a chance of 10^-21."""

ROWS_AT_ONCE = 16_384
"""Rows that are tokenised together; while they are, each of their tokens is a Python number."""

TASKS_A_CPU = 2
"""Under way at once for each processor of a cluster: one runs, the next one's rows are there."""


@dataclass(frozen=True)
class EncodedRows:
    """Sentences of some rows.

    Attributes:
        input_ids: tokens of all rows end to end, int32 ``[T]``.
        token_types: of each token, uint8 ``[T]``.
        sizes: tokens of each row, int64 ``[R]``, sum ``T``.
        digests: of each row's tokens and types, ``DIGEST`` ``[R]``.
    """

    input_ids: np.ndarray
    token_types: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray

    @classmethod
    def of(cls, input_ids: np.ndarray, token_types: np.ndarray, sizes: np.ndarray) -> EncodedRows:
        """Sentences with their digests; see the attributes."""
        return cls(input_ids, token_types, sizes, _digests(input_ids, token_types, sizes))

    def of_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and types of some rows end to end, in the order of the rows."""
        sizes = self.sizes[rows]
        stored = ragged((self.sizes.cumsum() - self.sizes)[rows], sizes)
        return self.input_ids[stored], self.token_types[stored]


class RowEncoder:
    """Flattens a row's attributes to name tokens and value tokens (JEPA4Rec, section 3.1).

    Args:
        tokenizer: turns values into tokens.
        names: tokens of each attribute's name, in the order they appear in a sentence.
        max_attribute_tokens: tokens an attribute may have, its name included.
        sentence_format: ``FILE`` or ``RECFORMER``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        names: Mapping[str, Sequence[int]],
        max_attribute_tokens: int,
        sentence_format: str = FILE,
    ) -> None:
        self.tokenizer, self.names = tokenizer, dict(names)
        self.max_attribute_tokens = max_attribute_tokens
        self.as_recformer = sentence_format == RECFORMER

    def __call__(self, item_text: pd.DataFrame) -> EncodedRows:
        """Tokenise rows; a missing column or value counts as empty.

        Raises:
            ValueError: if a text holds a lone surrogate.
        """
        if self.as_recformer:
            item_text = item_text.reindex(columns=list(self.names), fill_value="")
        pairs = [
            self._attribute(item_text[attribute], name, attribute)
            for attribute, name in self.names.items()
            if attribute in item_text
        ]
        if not pairs:
            none = np.empty(0)
            sizes = np.zeros(len(item_text), np.int64)
            return EncodedRows.of(none.astype(np.int32), none.astype(np.uint8), sizes)
        lengths = [len(ids) for ids, _, _, _ in pairs]
        begins = np.cumsum([0, *lengths[:-1]])
        starts = [begin + starts for begin, (_, _, starts, _) in zip(begins, pairs, strict=True)]
        sizes = np.stack([sizes for _, _, _, sizes in pairs], axis=1)  # [R, A]
        if self.as_recformer:  # what has no text at all has no names either
            sizes[(sizes == [*map(len, self.names.values())]).all(axis=1)] = 0
        stored = ragged(np.stack(starts, axis=1).ravel(), sizes.ravel())
        ids, types = (np.concatenate([pair[part] for pair in pairs])[stored] for part in (0, 1))
        return EncodedRows.of(ids, types, sizes.sum(axis=1))

    def _attribute(
        self, column: pd.Series, name: Sequence[int], attribute: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens and types of a column's different values; start and size of each row's."""
        texts: dict[str, int] = {}  # text -> its number; pandas.factorize stops at "\0"
        values = ("" if pd.isna(value) else str(value) for value in column.to_numpy(dtype=object))
        numbers = np.array([texts.setdefault(value, len(texts)) for value in values], np.int64)
        read = list(texts)
        if self.as_recformer and attribute in LISTS:
            read = [text.replace(", ", " ") for text in read]
        encoded = encode_values(self.tokenizer, read, self.max_attribute_tokens - len(name))
        value_sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        named = (value_sizes > 0) | self.as_recformer
        sizes = np.where(named, value_sizes + len(name), 0)
        starts = sizes.cumsum() - sizes
        ids = np.empty(sizes.sum(), np.int32)
        types = np.full(len(ids), VALUE, np.uint8)
        of_name = (starts[named, None] + np.arange(len(name))).ravel()
        types[of_name] = ATTRIBUTE
        ids[types == VALUE] = np.fromiter(chain.from_iterable(encoded), np.int32, value_sizes.sum())
        ids[of_name] = np.tile(np.array(name, np.int32), len(of_name) // max(1, len(name)))
        return ids, types, starts[numbers], sizes[numbers]


class SentenceIndex:
    """Numbers sentences from 0 in the order in which their digests are first seen.

    It takes 24 bytes for each, where a dictionary takes over 200. Two sentences of one digest would
    become one; see ``DIGEST`` for how likely that is.
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


def encoded_rows(
    encoder: RowEncoder, item_text: pd.DataFrame, address: str | None = None
) -> Iterator[EncodedRows]:
    """Sentences of all rows, in order, the same wherever they are made.

    Args:
        encoder: of rows.
        item_text: one row an item.
        address: of a Ray cluster; ``None`` uses none.

    Raises:
        ValueError: if there is no such cluster, or a text holds a lone surrogate.
    """
    firsts = range(0, len(item_text), ROWS_AT_ONCE)
    chunks = (item_text.iloc[first : first + ROWS_AT_ONCE] for first in firsts)
    return map(encoder, chunks) if address is None else _on_ray(encoder, chunks, address)


def _on_ray(
    encoder: RowEncoder, chunks: Iterator[pd.DataFrame], address: str
) -> Iterator[EncodedRows]:
    """The same by a cluster, a task for each chunk; one whose machine is lost is run again.

    Ray's tasks and not Ray Data: that of Ray 2.6.3, which RecBole pins, imports a part of
    setuptools that is there no more, and hands over the whole catalogue before the first row is
    tokenised.
    """
    import ray

    from recbole_jepa4rec.base.ray_cluster import connected

    def result(task: Any) -> EncodedRows:
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise error.cause from None
            raise

    with connected(address, threads=1):
        encode: Any = ray.remote(RowEncoder.__call__)
        shared = ray.put(encoder)
        most = TASKS_A_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        under_way: deque[Any] = deque()
        for rows in chunks:
            under_way.append(encode.remote(shared, rows))
            if len(under_way) >= most:
                yield result(under_way.popleft())
        while under_way:
            yield result(under_way.popleft())


def ragged(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``starts[i], ..., starts[i] + sizes[i] - 1`` for each ``i``, end to end."""
    ends = sizes.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - ends + sizes, sizes)


def _digests(input_ids: np.ndarray, token_types: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    data = (input_ids.astype(np.int64) * 4 + token_types).tobytes()
    bounds = [0, *(sizes.cumsum() * 8).tolist()]
    found = (
        hashlib.blake2b(data[begin:end], digest_size=DIGEST.itemsize).digest()
        for begin, end in pairwise(bounds)
    )
    return np.frombuffer(b"".join(found), DIGEST)
