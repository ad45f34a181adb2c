"""The losses of pre-training and finetuning, functions of tensors (paper 3.3.2, 3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_jepa4rec.base.device import numbers_at_once
from recbole_jepa4rec.model.ranking_head import Entries

CHUNK_LOGITS = 2**20
"""Logits computed at once in a softmax over candidates: 4 MiB, which a processor's cache holds."""

FUSED_LOGITS = 2**23
"""Logits computed at once where the gradient is made with them: 32 MiB.

Each chunk reads and writes the gradient of all items: with 2**18 logits, 16 rows of a vocabulary of
30,000, that took 2.4 times the time of one chunk for all, with these as much as that.
"""

FUSED_ITEMS = 2**24
"""Numbers in all items' vectors up to which their gradient waits for the backward pass: 64 MiB."""


def mlm_loss(asked: Tensor, offered: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cross-entropy of the masked tokens (L_MLM).

    Args:
        asked: of the vocabulary, at masked tokens only, ``[M, D]``; see ``MLMHead.asked``.
        offered: by each of its entries, ``[V, D]``.
        labels: the tokens that stood there, ``[M]``.
        bias: of each entry, ``[V]``.

    Returns:
        Mean over the masked tokens; zero when there is none.

    Raises:
        ValueError: if the numbers of tokens differ.
    """
    if len(asked) != len(labels):
        raise ValueError(f"{len(asked)} masked tokens for {len(labels)} labels")
    if len(labels) == 0:
        return zero_of(asked, offered, *([] if bias is None else [bias]))
    return softmax_loss(asked, offered, labels, bias)


def mapping_loss(
    predicted: Tensor, target: Tensor, reduction: str, stop_gradient: bool = True
) -> Tensor:
    """Squared Euclidean distance of predicted and target item vectors (L_map, one term).

    Args:
        predicted: predictor output, ``[B, D]``.
        target: what the target encoder says of the items, ``[B, D]``.
        reduction: over ``D``: ``"sum"``, the formula's letter, or ``"mean"``.
        stop_gradient: whether the target receives no gradient.

    Returns:
        Mean over ``B``; scalar >= 0; zero for an empty batch.

    Raises:
        ValueError: if the shapes differ or the reduction is unknown.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}; allowed: 'sum', 'mean'")
    target = target.detach() if stop_gradient else target
    if len(predicted) == 0:
        return zero_of(predicted, target)
    squares = (predicted.float() - target.float()).square()
    return (squares.sum(dim=1) if reduction == "sum" else squares.mean(dim=1)).mean()


def contrastive_loss(
    sequences: Tensor,
    items: Tensor,
    positive: Tensor,
    temperature: float,
    log_weights: Tensor | None = None,
    added: Sequence[Entries] = (),
) -> Tensor:
    """Softmax over candidate items by cosine similarity (L_S-I in a batch, L_FT over all items).

    Args:
        sequences: sequence vectors h_CLS, ``[B, D]``, or ``[Q, D]`` where a history has several.
        items: vectors of the candidates, each item once, ``[C, D]``. In a batch these are the
            distinct next items, so that an item met twice is never its own negative.
        positive: index of each sequence's next item among the candidates, ``[B]``.
        temperature: tau > 0, unitless.
        log_weights: logarithm of how many items each candidate stands for, ``[C]``: in a sampled
            softmax (Jean et al. 2015); by default each stands for itself.
        added: to some of the logits, by a ranking head.

    Returns:
        Mean over the batch; scalar >= 0; zero for an empty batch.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; allowed: > 0")
    if len(sequences) == 0:
        return zero_of(sequences, items)
    with torch.autocast(sequences.device.type, enabled=False):
        sequences = F.normalize(sequences.float(), dim=1) / temperature
        items = F.normalize(items.float(), dim=1)
        parts = [part for one in added for part in (one.query, one.column, one.value)]
        ends = [one.ends for one in added]
        return _ChunkedSoftmax.apply(sequences, items, positive, log_weights, ends, *parts)


def softmax_loss(
    sequences: Tensor, items: Tensor, positive: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Cross-entropy over all items, or words, by their product with what is said of each sequence.

    Args:
        sequences: ``[B, D]``.
        items: ``[C, D]``.
        positive: index of each sequence's next item, ``[B]``.
        bias: of each item, ``[C]``.

    Returns:
        Mean over the batch; scalar >= 0.
    """
    with torch.autocast(sequences.device.type, enabled=False):
        sequences = sequences.to(items.dtype)
        if items.numel() <= FUSED_ITEMS:
            return _FusedSoftmax.apply(sequences, items, positive, bias)
        if bias is not None:
            sequences = torch.cat([sequences, sequences.new_ones(len(sequences), 1)], dim=1)
            items = torch.cat([items, bias[:, None]], dim=1)
        return _ChunkedSoftmax.apply(sequences, items, positive, None, [])


def zero_of(*tensors: Tensor) -> Tensor:
    """Zero that depends on them: one process's part of a loss of which it has no row.

    Its gradient, zeros, sets off the backward passes that exchange something (``processes``).
    """
    return sum((tensor.float().sum() * 0.0 for tensor in tensors), start=torch.zeros(()))


def cosine_similarity(sequences: Tensor, items: Tensor) -> Tensor:
    """Cosine of every sequence with every item, ``[B, D] x [C, D] -> [B, C]``, in float32."""
    return cosine_to(sequences, F.normalize(items.float(), dim=1))


def cosine_to(sequences: Tensor, directions: Tensor) -> Tensor:
    """The same where items have length 1 already, ``[C, D]`` float32."""
    with torch.autocast(device_type=sequences.device.type, enabled=False):
        return F.normalize(sequences.float(), dim=1) @ directions.T


class _ChunkedSoftmax(torch.autograd.Function):
    """Cross-entropy of ``sequences @ items.T + log_weights + added``, a chunk at a time.

    The logits of all candidates are never held: the forward pass keeps each row's logsumexp, the
    backward pass computes the chunks again. With a million candidates that is the difference
    between megabytes and gigabytes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sequences: Tensor,
        items: Tensor,
        positive: Tensor,
        log_weights: Tensor | None,
        ends: Sequence[np.ndarray],
        *added: Tensor,
    ) -> Tensor:
        """``[B, D]``, ``[C, D]``, ``[B]``, ``[C]`` to the mean over the batch.

        ``added`` holds query, column and value of each of some ``Entries``, ``ends`` theirs.
        """
        total = sequences.new_full((len(sequences),), float("-inf"))  # logsumexp of each row
        wanted = torch.full_like(total, float("nan"))  # stays so where positive is no candidate
        for chunk in _chunks(sequences, items):
            logits = _logits(sequences, items, log_weights, chunk, ends, added)
            total = torch.logaddexp(total, logits.logsumexp(dim=1))
            place = positive - chunk.start
            there = place.clamp(min=0, max=logits.shape[1] - 1)
            found = logits.gather(1, there[:, None])[:, 0]
            wanted = torch.where(place == there, found, wanted)
        ctx.save_for_backward(sequences, items, positive, log_weights, total, *added)
        ctx.ends = ends
        return (total - wanted).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Softmax minus one-hot, times the other side's vectors; itself, where it was added to."""
        sequences, items, positive, log_weights, total, *added = ctx.saved_tensors
        scale = gradients[0] / len(sequences)
        of_sequences = -scale * items[positive] if ctx.needs_input_grad[0] else None
        of_items = None
        if ctx.needs_input_grad[1]:
            of_items = torch.zeros_like(items).index_add_(0, positive, -scale * sequences)
        of_added: list[Tensor | None] = [None] * len(added)
        for query, column, k in _triples(added):
            of_added[k] = -scale * (positive[query] == column).to(sequences.dtype)
        for chunk in _chunks(sequences, items):
            logits = _logits(sequences, items, log_weights, chunk, ctx.ends, added)
            share = logits.sub_(total[:, None]).exp_().mul_(scale)
            if of_sequences is not None:
                of_sequences.addmm_(share, items[chunk])
            if of_items is not None:
                of_items[chunk].addmm_(share.T, sequences)
            for (query, column, k), of_chunk in zip(_triples(added), ctx.ends, strict=True):
                part, gradient = slice(*of_chunk[[chunk.start, chunk.stop]]), of_added[k]
                assert gradient is not None
                gradient[part] += share[query[part], column[part] - chunk.start]
        return of_sequences, of_items, None, None, None, *of_added


class _FusedSoftmax(torch.autograd.Function):
    """Mean cross-entropy of ``sequences @ items.T + bias``, a chunk of sequences at a time.

    The forward pass makes the gradients as well, while a chunk's shares are at hand: a mean's are
    the same but for one factor.
    """

    @staticmethod
    def forward(
        ctx: Any, sequences: Tensor, items: Tensor, positive: Tensor, bias: Tensor | None
    ) -> Tensor:
        """``[B, D]``, ``[C, D]``, ``[B]``, ``[C]`` to the mean over the batch."""
        of_sequences, of_items = torch.empty_like(sequences), torch.zeros_like(items)
        of_bias = None if bias is None else torch.zeros_like(bias)
        total = sequences.new_zeros(())
        size = max(16, numbers_at_once(sequences.device, FUSED_LOGITS) // len(items))
        for first in range(0, len(sequences), size):
            chunk, wanted = sequences[first : first + size], positive[first : first + size, None]
            logits = chunk @ items.T if bias is None else torch.addmm(bias, chunk, items.T)
            share = logits.log_softmax(dim=1)
            total -= share.gather(1, wanted).sum()
            share.exp_().scatter_add_(1, wanted, share.new_full(wanted.shape, -1.0))
            torch.mm(share, items, out=of_sequences[first : first + size])
            of_items.addmm_(share.T, chunk)
            if of_bias is not None:
                of_bias += share.sum(dim=0)
        ctx.save_for_backward(of_sequences, of_items, of_bias)
        return total / len(sequences)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """What the forward pass made, times the factor."""
        of_sequences, of_items, of_bias = ctx.saved_tensors
        scale = gradients[0] / len(of_sequences)
        of_bias = None if of_bias is None else of_bias * scale
        return of_sequences * scale, of_items * scale, None, of_bias


def _chunks(sequences: Tensor, items: Tensor) -> Iterator[slice]:
    """Candidates whose logits are made at once."""
    size = max(1, numbers_at_once(sequences.device, CHUNK_LOGITS) // max(len(sequences), 1))
    firsts = range(0, len(items), size)
    return (slice(first, min(first + size, len(items))) for first in firsts)


def _logits(
    sequences: Tensor,
    items: Tensor,
    log_weights: Tensor | None,
    chunk: slice,
    ends: Sequence[np.ndarray],
    added: Sequence[Tensor],
) -> Tensor:
    logits = sequences @ items[chunk].T
    if log_weights is not None:
        logits.add_(log_weights[chunk])
    for (query, column, k), of_chunk in zip(_triples(added), ends, strict=True):
        part = slice(*of_chunk[[chunk.start, chunk.stop]])
        place = query[part], column[part] - chunk.start
        logits.index_put_(place, added[k][part], accumulate=True)
    return logits


def _triples(added: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Query and column of each of some entries, and where their values stand among all."""
    return ((added[k - 2], added[k - 1], k) for k in range(2, len(added), 3))
