"""What a ranking adds to the similarity of texts: the history's own items, and its neighbours.

logit(u, x) = similarity / tau + b[recency of x in the history] + sum of w_k f_k(u, x).

A text model puts the history's own items first, for nothing is more like them, and has no term that
could learn otherwise; b is that term. The f_k are those of ``neighbours.py``; in training the
user's own interactions are left out of their counts, or w would learn a leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from recbole_jepa4rec.base.device import PartlyOnCPU, sent
from recbole_jepa4rec.config.run_settings import HeadSettings
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.neighbours import Neighbours
from recbole_jepa4rec.text.row_encoder import ragged
from recbole_jepa4rec.text.text_similarity import TfidfSimilarity

STRETCH = 50.0
"""A number of the head moves so many times as far as a weight does in a step of Adam: a logit lies
between -20 and 20, a weight below 1."""

SCALES = (1.0, 1.5, 2.0, 3.0, 0.5)
"""By what validation may multiply the weights of the neighbours: a model is surer of the users that
it was trained on than of what they do next, so that training leaves these weights too small."""


@dataclass(frozen=True)
class Queries:
    """What is asked for a next item: a history, or each of its prefixes.

    Attributes:
        histories: ``B`` of them.
        row: the history of each query, ``[Q]``.
        prefix: items of it that the query has read, ``[Q]``.
    """

    histories: PackedHistories
    row: Tensor
    prefix: Tensor

    @property
    def next_items(self) -> Tensor:
        """The item after what each query has read, ``[Q]``."""
        ends, lengths = self.histories.lengths.cumsum(0)[self.row], self.histories.lengths[self.row]
        place = ends - lengths + self.prefix
        inside = self.histories.items[place.clamp(max=len(self.histories.items) - 1)]
        return torch.where(self.prefix < lengths, inside, self.histories.targets[self.row])

    @classmethod
    def whole(cls, histories: PackedHistories) -> Queries:
        """One query a history."""
        rows = torch.arange(len(histories))
        return cls(histories, rows, histories.lengths)

    @classmethod
    def prefixes(cls, histories: PackedHistories) -> Queries:
        """One query behind each item."""
        lengths = histories.lengths
        row = torch.arange(len(lengths)).repeat_interleave(lengths)
        place = torch.arange(len(row))
        return cls(histories, row, place - (lengths.cumsum(0) - lengths)[row] + 1)


@dataclass(frozen=True)
class Entries:
    """Numbers to be added to some logits.

    Attributes:
        query: row of each, ``[E]``.
        column: its candidate, ascending, ``[E]``.
        value: what is added, ``[E]``.
        ends: entries of the candidates before each, on the CPU, ``[C + 1]``.
    """

    query: Tensor
    column: Tensor
    value: Tensor
    ends: np.ndarray


class ItemIds(nn.Module):
    """What an item's number says beside its text: a vector on top of the text's, zero at first.

    Args:
        num_items: ``N``, the padding item included.
        width: ``D``.
        dropout: share of the items whose vectors a step of training leaves out.
        decay: share of itself that a vector loses in each step.
    """

    def __init__(self, num_items: int, width: int, dropout: float, decay: float) -> None:
        super().__init__()
        self.dropout, self.decay = dropout, decay
        self.vectors = nn.Parameter(torch.zeros(num_items, width))

    def on_top_of(self, texts: Tensor, items: Tensor) -> Tensor:
        """Vectors of items, ``[C, D]``, whose texts have these; a new item has its text's alone."""
        known = items < len(self.vectors)
        if self.training:
            known = known & (torch.rand(len(items), device=items.device) >= self.dropout)
        own = nn.functional.embedding(items.clamp(max=len(self.vectors) - 1), self.vectors)
        return nn.functional.normalize(texts.float(), dim=1) + own * known[:, None]

    @torch.no_grad()
    def shrink(self) -> None:
        """To be called after each step."""
        self.vectors.mul_(1 - self.decay)


class RankingHead(PartlyOnCPU):
    """Learned terms of a ranking beside the similarity.

    Candidates are items: those of one text have neighbours of their own. In ranking the neighbours'
    weights are multiplied by ``neighbour_scale``, which validation chooses.

    Args:
        recencies: L; the newest L places of a history have a bias each, all older ones another;
            ``None`` leaves the bias out.
        neighbours: counts of the training part; ``None`` leaves the neighbour terms out.
        nearest: cosine of each item with the items whose texts are nearest, ``[N, N]``.
        first_weights: of text, co-occurrence and transitions, as logits.
        decay: of a history item's weight with its age, in the neighbour terms.
        history_items: newest items that the neighbour terms read.
        item_ids: vectors of the items' own, ``N`` of them, ``[N, D]``; ``None`` leaves them out.
    """

    on_cpu = ("neighbour_scale",)
    neighbour_scale: Tensor

    def __init__(
        self,
        recencies: int | None,
        neighbours: Neighbours | None,
        nearest: sparse.csr_matrix | None,
        first_weights: Sequence[float],
        decay: float,
        history_items: int,
        item_ids: ItemIds | None = None,
    ) -> None:
        super().__init__()
        self.item_ids = item_ids
        self.decay, self.history_items = decay, history_items
        self.neighbours, self.nearest = neighbours, nearest
        self.history_bias: nn.Parameter | None = None
        if recencies is not None:
            self.history_bias = nn.Parameter(torch.zeros(recencies + 1))
        self.neighbour_weights: nn.Parameter | None = None
        if neighbours is not None:
            self.neighbour_weights = nn.Parameter(torch.tensor(first_weights) / STRETCH)
        self.register_buffer("neighbour_scale", torch.ones(()))

    @property
    def label(self) -> str:
        """What is on, for tables."""
        parts = {
            "history bias": self.history_bias,
            "neighbours": self.neighbour_weights,
            "item ids": self.item_ids,
        }
        return ", ".join(name for name, part in parts.items() if part is not None)

    def entries(self, queries: Queries, candidates: Tensor) -> tuple[list[Entries], list[Entries]]:
        """The head's terms for some candidates.

        Args:
            queries: ``Q`` of them.
            candidates: internal item ids, on the CPU, ``[C]``.

        Returns:
            Two lists of numbers each to be added to ``[Q, C]`` logits: the history's bias, and the
            neighbours' terms.
        """
        bias, weights, columns = self.history_bias, self.neighbour_weights, candidates.numpy()
        terms = [] if bias is None else [self._recency(queries)]
        terms += [] if weights is None else self._terms(queries)
        parts = sent([_entries(term, columns) for term in terms], self._device)
        of_history: list[Entries] = []
        if bias is not None:
            part = parts.pop(0)
            # an embedding, whose gradient is added up in one order with any number of threads
            chosen = nn.functional.embedding(part.value.long() - 1, bias[:, None])[:, 0]
            of_history.append(replace(part, value=STRETCH * chosen))
        if weights is None:
            return of_history, []
        weighed = zip(STRETCH * weights.clamp(min=0), parts, strict=True)
        return of_history, [replace(part, value=weight * part.value) for weight, part in weighed]

    def candidate_vectors(self, texts: Tensor, items: Tensor) -> Tensor:
        """What a sequence is compared with, ``[C, D]``: vectors of texts, and of items' own."""
        return texts if self.item_ids is None else self.item_ids.on_top_of(texts, items)

    def weights_moved(self) -> None:
        """The optimizer has made a step."""
        if self.item_ids is not None:
            self.item_ids.shrink()

    def add_to(self, logits: Tensor, entries: Sequence[Entries], scale: float = 1.0) -> Tensor:
        """Add entries times ``scale`` to logits ``[Q, C]``, in place."""
        for part in entries:
            value = (scale * part.value).to(logits.dtype)
            logits.index_put_((part.query, part.column), value, accumulate=True)
        return logits

    @property
    def _device(self) -> torch.device:
        """Where what is learnt lies."""
        return next(self.parameters()).device

    def _recency(self, queries: Queries) -> sparse.csr_matrix:
        """How long ago each query last met an item: 1 for the newest one .. L, L + 1 for older."""
        assert self.history_bias is not None
        whole = _Whole.of(queries.histories)
        row = queries.row.numpy()
        end = whole.older[row] + queries.prefix.numpy()
        query = np.repeat(np.arange(len(row)), whole.kept[row])
        entry = ragged(whole.first[row], whole.kept[row])
        position, following = whole.position[entry], whole.following[entry]
        here = (position < end[query]) & (following >= end[query])
        query, entry = query[here], entry[here]
        age = np.minimum(end[query] - whole.position[entry], len(self.history_bias))
        shape = len(row), int(whole.item.max(initial=0)) + 1
        return sparse.csr_matrix((age.astype(np.float32), (query, whole.item[entry])), shape)

    def _terms(self, queries: Queries) -> list[sparse.csr_matrix]:
        """Text, co-occurrence and transitions of each query with every item, ``[Q, N]``.

        Where the targets were counted, each user's own interactions are left out of the counts.
        """
        assert self.neighbours is not None
        assert self.nearest is not None
        histories, row = queries.histories, queries.row.numpy()
        items, prefix = histories.items.numpy(), queries.prefix.numpy()
        lengths = histories.lengths.numpy()
        end = (lengths.cumsum() - lengths)[row] + prefix
        counts = np.minimum(prefix, self.history_items)
        ends = np.concatenate([[0], counts.cumsum()])
        age = _count_up(counts)
        newest = items[np.repeat(end, counts) - 1 - age]
        known = newest < self.neighbours.num_items
        weights = sparse.csr_matrix(
            (np.where(known, self.decay**age, 0.0), np.where(known, newest, 0), ends),
            shape=(len(row), self.neighbours.num_items),
        )
        weights.sum_duplicates()
        users = histories.users.numpy()[row] if histories.counted else None
        return [
            (weights @ self.nearest).tocsr(),
            self.neighbours.cooccurrence(weights, users),
            self.neighbours.transitions(weights, users),
        ]


@dataclass(frozen=True)
class _Whole:
    """All that histories hold, older items included, but for what no query can have met last.

    Attributes:
        item: of each place, ``[W]``.
        position: of the place within its history, ``[W]``.
        following: position at which the item comes again, or beyond all, ``[W]``.
        first: first place of each history, ``[B]``.
        kept: places of each history, ``[B]``.
        older: items of each history before its window, ``[B]``.
    """

    item: np.ndarray
    position: np.ndarray
    following: np.ndarray
    first: np.ndarray
    kept: np.ndarray
    older: np.ndarray

    @classmethod
    def of(cls, histories: PackedHistories) -> _Whole:
        """Of packed histories."""
        recent, items = histories.lengths.numpy(), histories.items
        older = np.zeros_like(recent)
        if histories.older is not None and histories.older_lengths is not None:
            older = histories.older_lengths.numpy()
            items = torch.cat([histories.older, items])
        row = np.concatenate([np.repeat(np.arange(len(older)), n) for n in (older, recent)])
        position = np.concatenate([_count_up(older), _count_up(recent)])
        position[older.sum() :] += np.repeat(older, recent)
        item = items.numpy()
        order = np.lexsort((position, item, row))
        same = (row[order][1:] == row[order][:-1]) & (item[order][1:] == item[order][:-1])
        following = np.full(len(order), np.iinfo(np.int64).max)
        following[order[:-1][same]] = position[order[1:][same]]
        can_be_last = following >= older[row]
        order = np.lexsort((position, row))
        order = order[can_be_last[order]]
        kept = np.bincount(row[order], minlength=len(older))
        return cls(
            item[order], position[order], following[order], kept.cumsum() - kept, kept, older
        )


def ranking_head(
    settings: HeadSettings, max_items: int, dataset: Any, width: int
) -> RankingHead | None:
    """The head that settings ask for; ``None`` if they ask for no part of it.

    Args:
        settings: of the model.
        max_items: longest history that the model reads, L.
        dataset: whose items have the text, and of whose training part the neighbour terms count.
        width: of item vectors, D.
    """
    item_text, item_ids = dataset.item_text, None
    if not (settings.history_bias or settings.neighbour_prior or settings.item_id_residual):
        return None
    if settings.item_id_residual and settings.stage != "pretrain":
        regularised = settings.item_id_dropout, settings.item_id_decay
        item_ids = ItemIds(len(item_text), width, *regularised)
    neighbours = nearest = None
    if settings.neighbour_prior:
        neighbours = Neighbours.of(dataset.histories, len(item_text))
        vectors = TfidfSimilarity(item_text).vectors
        nearest = nearest_by_text(vectors, settings.neighbour_texts)
    return RankingHead(
        max_items if settings.history_bias else None,
        neighbours,
        nearest,
        settings.neighbour_weights,
        settings.neighbour_decay,
        settings.neighbour_items,
        item_ids,
    )


def nearest_by_text(vectors: sparse.csr_matrix, number: int) -> sparse.csr_matrix:
    """Cosines of each item with those whose texts are nearest.

    Args:
        vectors: of items, of length 1 or 0, ``[N, T]``.
        number: of neighbours of an item, itself among them.

    Returns:
        ``[N, N]``, at most ``number`` of them a row.
    """
    rows, size = [], max(1, 2**25 // vectors.shape[0])
    for first in range(0, vectors.shape[0], size):
        cosines = (vectors[first : first + size] @ vectors.T).toarray()
        best = np.argpartition(-cosines, min(number, cosines.shape[1] - 1), axis=1)[:, :number]
        values = np.take_along_axis(cosines, best, axis=1)
        row = np.repeat(np.arange(len(cosines)), best.shape[1])
        shape = cosines.shape
        rows.append(sparse.csr_matrix((values.ravel(), (row, best.ravel())), shape))
    nearest = sparse.vstack(rows, format="csr")
    nearest.eliminate_zeros()
    return nearest


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... within each run of these lengths, end to end."""
    return ragged(np.zeros_like(lengths), lengths)


def _entries(matrix: sparse.csr_matrix, columns: np.ndarray) -> Entries:
    """Entries of a matrix, of some columns in their order, ascending by column.

    Columns that the matrix lacks, of items that were added later, are empty.
    """
    matrix.resize(matrix.shape[0], max(matrix.shape[1], int(columns.max()) + 1))
    by_column = matrix.tocsc()[:, columns]
    column = np.repeat(np.arange(by_column.shape[1]), np.diff(by_column.indptr))
    return Entries(
        torch.from_numpy(by_column.indices.astype(np.int64)),
        torch.from_numpy(column),
        torch.from_numpy(by_column.data.astype(np.float32)),
        by_column.indptr,
    )
