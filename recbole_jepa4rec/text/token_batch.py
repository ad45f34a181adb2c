"""Sentences as token sequences packed without padding, in two orders (JEPA4Rec, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Final, Protocol

import torch
from torch import Tensor

RANDOM: Final = "random"
ALL_PREFIXES: Final = "all_prefixes"
"""What a history is trained to predict: its one next item, or the item after each of its items."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token sequences laid end to end without padding; the order depends on what they train.

    ``random``, newest item first: ``[CLS] S_n ... S_1``, everything sees everything.
    ``all_prefixes``, oldest item first: ``S_1 [CLS] ... S_n [CLS]``, where nothing sees a later
    item and each ``[CLS]`` belongs to the item before it.

    Attributes:
        input_ids: vocabulary ids, int64 ``[T]``.
        token_types: 0 ``[CLS]``, 1 attribute name, 2 attribute value, int64 ``[T]``.
        token_positions: position of the token in its sequence, from 0; with ``all_prefixes`` they
            start anew with each item, so that an item reads the same wherever it stands;
            int64 ``[T]``.
        item_positions: item of the token, 1 for the first that stands there; a ``[CLS]`` has 0, or
            with ``all_prefixes`` that of its item; int64 ``[T]``.
        offsets: sequence ``b`` holds the tokens ``offsets[b]:offsets[b + 1]``, int64 ``[B + 1]``.
        cls_index: places of the ``[CLS]`` among the packed tokens, ascending, ``[Q]``.
        training_targets: ``RANDOM`` or ``ALL_PREFIXES``.
        sentences: with ``all_prefixes`` the sentence before each ``[CLS]``, -1 where other tokens
            than the store's stand for it, ``[Q]``.
    """

    input_ids: Tensor
    token_types: Tensor
    token_positions: Tensor
    item_positions: Tensor
    offsets: Tensor
    cls_index: Tensor
    training_targets: str = RANDOM
    sentences: Tensor | None = None

    @property
    def all_prefixes(self) -> bool:
        """Whether items stand oldest first, and nothing sees a later one."""
        return self.training_targets == ALL_PREFIXES

    @property
    def sequences(self) -> int:
        """Number of sequences, ``B``."""
        return self.offsets.numel() - 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens, ``T``."""
        return self.input_ids.numel()

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, ``[B]``."""
        return self.offsets.diff()

    @property
    def cls_counts(self) -> Tensor:
        """Number of ``[CLS]`` in each sequence, ``[B]``."""
        return torch.searchsorted(self.cls_index, self.offsets).diff()

    def items_back(self, row: Tensor, item_positions: Tensor) -> Tensor:
        """How many items each position of a sequence lies before its newest, all ``[P]``."""
        if self.all_prefixes:
            return self.cls_counts[row] - item_positions
        return item_positions - 1

    @property
    def whole_cls_index(self) -> Tensor:
        """Place of the one ``[CLS]`` in each sequence that has seen all of it, ``[B]``."""
        return self.offsets[1:] - 1 if self.all_prefixes else self.offsets[:-1]

    def latent_places(self, count: int) -> Tensor:
        """Where ``with_latents`` made room for latents, oldest first, ``[B, count]``."""
        nth = torch.arange(count)
        if self.all_prefixes:
            return self.offsets[1:, None] + nth - count
        return self.offsets[:-1, None] + count - nth

    @property
    def sequence_of_token(self) -> Tensor:
        """The sequence each token belongs to, ``[T]``."""
        rows = torch.arange(self.sequences, device=self.offsets.device)
        return rows.repeat_interleave(self.lengths, output_size=self.num_tokens)

    @staticmethod
    def concat(batches: Sequence[TokenBatch]) -> TokenBatch:
        """The sequences of several batches, one batch after the other."""
        tensors = {
            name: torch.cat([getattr(batch, name) for batch in batches])
            for name in ("input_ids", "token_types", "token_positions", "item_positions")
        }
        lengths = torch.cat([batch.lengths for batch in batches])
        starts = accumulate([batch.num_tokens for batch in batches], initial=0)
        cls_index = [b.cls_index + start for b, start in zip(batches, starts, strict=False)]
        sentences = [batch.sentences for batch in batches if batch.sentences is not None]
        return TokenBatch(
            **tensors,
            offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            cls_index=torch.cat(cls_index),
            training_targets=batches[0].training_targets,
            sentences=torch.cat(sentences) if sentences else None,
        )

    def split(self, sizes: Sequence[int]) -> Iterator[TokenBatch]:
        """Parts of so many consecutive sequences each."""
        for first, end in pairwise(accumulate(sizes, initial=0)):
            begin, stop = int(self.offsets[first]), int(self.offsets[end])
            cls = torch.searchsorted(self.cls_index, self.offsets[[first, end]])
            yield replace(
                self,
                input_ids=self.input_ids[begin:stop],
                token_types=self.token_types[begin:stop],
                token_positions=self.token_positions[begin:stop],
                item_positions=self.item_positions[begin:stop],
                offsets=self.offsets[first : end + 1] - begin,
                cls_index=self.cls_index[cls[0] : cls[1]] - begin,
                sentences=None if self.sentences is None else self.sentences[cls[0] : cls[1]],
            )

    def replace(self, **changes: Any) -> TokenBatch:
        """The same batch with some tensors exchanged, such as masked ``input_ids``."""
        return replace(self, **changes)


class TokenStore(Protocol):
    """One ``[CLS]`` and then all sentences end to end, as ``ItemSentences`` holds them."""

    input_ids: Tensor
    token_types: Tensor
    offsets: Tensor


def pack(
    store: TokenStore,
    sentences: Tensor,
    lengths: Tensor,
    max_tokens: int | None,
    training_targets: str,
) -> TokenBatch:
    """Sequences of sentences as what they train asks for.

    Args:
        store: the sentences' tokens, the empty sentence first.
        sentences: ids of all sequences' sentences end to end, newest first in each, ``[M]``.
        lengths: sentences of each sequence, 0 allowed, ``[B]``, sum ``M``.
        max_tokens: tokens a sequence may have, ``[CLS]`` included; None: any number.
        training_targets: ``RANDOM`` or ``ALL_PREFIXES``.

    Raises:
        ValueError: if ``max_tokens`` leaves no room for ``[CLS]``.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; at least 1 ([CLS]) is needed")
    arrange = oldest_first if training_targets == ALL_PREFIXES else newest_first
    return arrange(store, sentences, lengths, max_tokens)


def newest_first(
    store: TokenStore, sentences: Tensor, lengths: Tensor, max_tokens: int | None
) -> TokenBatch:
    """``[CLS] S_n ... S_1``, the paper's order; tokens past ``max_tokens``, the oldest, are cut.

    A segment is a ``[CLS]`` or a sentence; the arrays over segments are ``[B + M]``. See ``pack``
    for the arguments.
    """
    count = lengths.numel() + sentences.numel()
    sequence = torch.arange(lengths.numel(), device=lengths.device)
    last = (lengths + 1).cumsum(0) - 1
    cls = last - lengths
    sequence_of_segment = sequence.repeat_interleave(lengths + 1, output_size=count)
    item_positions = torch.arange(count, device=lengths.device) - cls[sequence_of_segment]

    is_item = item_positions.nonzero().squeeze(1)
    starts = torch.zeros_like(item_positions)  # where [CLS] is stored
    sizes = torch.ones_like(item_positions)
    starts[is_item] = store.offsets[sentences]
    sizes[is_item] = store.offsets[sentences + 1] - store.offsets[sentences]

    ends = sizes.cumsum(0)
    positions = ends - sizes - (ends[cls] - 1)[sequence_of_segment]
    sequence_lengths = ends[last] - ends[cls] + 1
    if max_tokens is not None:
        sizes = sizes.minimum((max_tokens - positions).clamp(min=0))
        sequence_lengths = sequence_lengths.clamp(max=max_tokens)
    offsets = torch.cat([sequence_lengths.new_zeros(1), sequence_lengths.cumsum(0)])
    return TokenBatch(
        **_gather(store, starts, sizes, item_positions, int(offsets[-1])),
        token_positions=_count_from_zero(offsets.diff(), int(offsets[-1])),
        offsets=offsets,
        cls_index=offsets[:-1],
    )


def oldest_first(
    store: TokenStore, sentences: Tensor, lengths: Tensor, max_tokens: int | None
) -> TokenBatch:
    """``S_1 [CLS] S_2 [CLS] ... S_n [CLS]``; the oldest items that do not fit are left out whole.

    Item positions count from the oldest item that stands there, token positions from the first
    token of each item: from nothing on ml-100k that gave validation ndcg@10 .067 after six epochs
    and .069 after twelve, positions that run on .063 and .067. A sequence of nothing is read as one
    item without text. A newest item too long by itself loses its last tokens. See ``pack`` for the
    arguments.
    """
    empty, lengths = lengths == 0, lengths.clamp(min=1)
    if empty.any():
        filled = sentences.new_zeros(int(lengths.sum()))
        filled[~empty.repeat_interleave(lengths)] = sentences
        sentences = filled
    sizes = store.offsets[sentences + 1] - store.offsets[sentences]
    first = lengths.cumsum(0) - lengths  # the newest of each sequence
    kept = lengths
    if max_tokens is not None:
        sizes[first] = sizes[first].clamp(max=max_tokens - 1)
        read = (sizes + 1).cumsum(0)
        before = (read - sizes - 1)[first].repeat_interleave(lengths, output_size=len(sizes))
        fits = (read - before <= max_tokens).long().cumsum(0)
        kept = fits[first + lengths - 1] - fits[first] + 1

    sequence = torch.arange(len(kept), device=kept.device).repeat_interleave(kept)
    item_positions = torch.arange(len(sequence), device=kept.device) + 1
    item_positions = item_positions - (kept.cumsum(0) - kept)[sequence]
    place = (first + kept)[sequence] - item_positions
    sentences = sentences[place]
    starts, sizes = store.offsets[sentences], sizes[place]
    starts = torch.stack([starts, torch.zeros_like(starts)], 1).flatten()  # [CLS] is stored at 0
    sizes = torch.stack([sizes, torch.ones_like(sizes)], 1).flatten()
    ends = sizes.cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends[2 * kept.cumsum(0) - 1]])
    total = int(offsets[-1])
    return TokenBatch(
        **_gather(store, starts, sizes, item_positions.repeat_interleave(2), total),
        token_positions=_count_from_zero(sizes[::2] + 1, total),
        offsets=offsets,
        cls_index=ends[1::2] - 1,
        training_targets=ALL_PREFIXES,
        sentences=sentences,
    )


def with_latents(batch: TokenBatch, count: int, mask_id: int, cls_id: int) -> TokenBatch:
    """Sequences with some items more, newer than all others, each of one token and without text.

    That token's place is a latent's (``TokenBatch.latent_places``). With ``all_prefixes`` it is the
    item's ``[CLS]``, so that what is predicted there goes on from the latent.

    Args:
        batch: sequences that leave room for them.
        count: items more in each.
        mask_id: id of [MASK], which holds the places in ``random`` order.
        cls_id: id of ``[CLS]``, which does with ``all_prefixes``.
    """
    if not batch.sequences or not count:
        return batch
    causal, rows = batch.all_prefixes, torch.arange(batch.sequences).repeat_interleave(count)
    nth = torch.arange(count).repeat(batch.sequences)
    places = batch.cls_counts[rows] + nth + 1 if causal else count - nth
    shift = 0 if causal else count * (batch.token_types != 0)
    parts = {
        "input_ids": (batch.input_ids, torch.full_like(places, cls_id if causal else mask_id)),
        "token_types": (batch.token_types, torch.full_like(places, 0 if causal else 2)),
        "token_positions": (batch.token_positions + shift, places * (not causal)),
        "item_positions": (batch.item_positions + shift, places),
    }
    joined = {name: torch.cat(both) for name, both in parts.items()}
    items, owners = joined["item_positions"], torch.cat([batch.sequence_of_token, rows])
    order = (owners * (items.max() + 1) + items).argsort(stable=True)
    joined = {name: values[order] for name, values in joined.items()}
    sentences = None
    if batch.sentences is not None:
        read = torch.cat([batch.sequence_of_token[batch.cls_index], rows]).argsort(stable=True)
        sentences = torch.cat([batch.sentences, torch.full_like(rows, -1)])[read]
    return batch.replace(
        **joined,
        offsets=batch.offsets + count * torch.arange(len(batch.offsets)),
        cls_index=(joined["token_types"] == 0).nonzero()[:, 0],
        sentences=sentences,
    )


def with_tokens_behind(batch: TokenBatch, ids: Sequence[int]) -> TokenBatch:
    """A batch of ``all_prefixes`` with the same tokens behind each [CLS].

    The last of them takes the place of the [CLS] in ``cls_index``.

    Args:
        batch: of sequences.
        ids: of the tokens, maybe none.
    """
    copies = torch.ones_like(batch.input_ids)
    copies[batch.cls_index] += len(ids)
    source = torch.arange(batch.num_tokens).repeat_interleave(copies)
    ends = torch.cat([copies.new_zeros(1), copies.cumsum(0)])
    last = ends[batch.cls_index + 1] - 1
    input_ids = batch.input_ids[source]
    for nth, token in enumerate(ids):
        input_ids[last - len(ids) + 1 + nth] = token
    return batch.replace(
        input_ids=input_ids,
        token_types=batch.token_types[source],
        token_positions=batch.token_positions[source],
        item_positions=batch.item_positions[source],
        offsets=ends[batch.offsets],
        cls_index=last,
    )


def _gather(
    store: TokenStore, starts: Tensor, sizes: Tensor, item_positions: Tensor, total: int
) -> dict[str, Any]:
    """Copy segments, ``sizes`` tokens each from ``starts``, out of the store, one after another."""
    stored = ragged_range(starts, sizes, total)
    return {
        "input_ids": store.input_ids[stored].long(),
        "token_types": store.token_types[stored].long(),
        "item_positions": item_positions.repeat_interleave(sizes, output_size=total),
    }


def _count_from_zero(lengths: Tensor, total: int) -> Tensor:
    return ragged_range(torch.zeros_like(lengths), lengths, total)


def ragged_range(starts: Tensor, sizes: Tensor, total: int | None = None) -> Tensor:
    """``arange(start, start + size)`` of all pairs end to end.

    Args:
        starts: first value of each range, ``[R]``.
        sizes: length of each range, ``[R]``.
        total: sum of the sizes where it is known already (on a GPU this saves waiting for it).
    """
    total = int(sizes.sum()) if total is None else total
    ends = sizes.cumsum(0)
    shifts = (starts - ends + sizes).repeat_interleave(sizes, output_size=total)
    return shifts + torch.arange(total, device=sizes.device)


def fill_batches(tokens: Tensor, max_tokens: int, max_sequences: int) -> list[int]:
    """How many sequences, in their order, go into each batch.

    Args:
        tokens: of each sequence, ``[R]``.
        max_tokens: of a batch; one sequence that has more is a batch of its own.
        max_sequences: of a batch.

    Returns:
        Sizes of the batches, sum ``R``.
    """
    read = tokens.cumsum(0)
    sizes, first, used = [], 0, 0
    while first < len(tokens):
        end = int(torch.searchsorted(read, used + max_tokens, right=True))
        end = min(max(end, first + 1), first + max_sequences)
        sizes.append(end - first)
        first, used = end, int(read[end - 1])
    return sizes
