"""Token sequences packed without padding: what the encoder reads (JEPA4Rec, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token sequences laid end to end without padding, in one of two orders.

    Newest item first: ``[CLS] S_n ... S_1``, everything sees everything. Item-causal, oldest item
    first: ``S_1 [CLS] ... S_n [CLS]``, where nothing sees a later item and each ``[CLS]`` belongs
    to the item before it.

    Attributes:
        input_ids: vocabulary ids, int64 ``[T]``.
        token_types: 0 ``[CLS]``, 1 attribute name, 2 attribute value, int64 ``[T]``.
        token_positions: position of the token in its sequence, from 0; in item-causal order they
            start anew with each item, so that an item reads the same wherever it stands;
            int64 ``[T]``.
        item_positions: item of the token, 1 for the first that stands there; a ``[CLS]`` has 0, or
            in item-causal order that of its item; int64 ``[T]``.
        offsets: sequence ``b`` holds the tokens ``offsets[b]:offsets[b + 1]``, int64 ``[B + 1]``.
        cls_index: places of the ``[CLS]`` among the packed tokens, ascending, ``[Q]``.
        item_causal: which order this is.
    """

    input_ids: Tensor
    token_types: Tensor
    token_positions: Tensor
    item_positions: Tensor
    offsets: Tensor
    cls_index: Tensor
    item_causal: bool = False

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

    def items_back(self, item_positions: Tensor) -> Tensor:
        """How many items one position of each sequence lies before its newest, ``[B]``."""
        return self.cls_counts - item_positions if self.item_causal else item_positions - 1

    @property
    def whole_cls_index(self) -> Tensor:
        """Place of the one ``[CLS]`` in each sequence that has seen all of it, ``[B]``."""
        return self.offsets[1:] - 1 if self.item_causal else self.offsets[:-1]

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
        return TokenBatch(
            **tensors,
            offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            cls_index=torch.cat(cls_index),
            item_causal=batches[0].item_causal,
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
            )

    def replace(self, **changes: Any) -> TokenBatch:
        """The same batch with some tensors exchanged, such as masked ``input_ids``."""
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TokenBatch:
        """The same batch on ``device``."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


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
