"""Token sequences packed without padding: what the encoder reads (JEPA4Rec, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token sequences laid end to end without padding, each beginning with ``[CLS]``.

    Attributes:
        input_ids: vocabulary ids, int64 ``[T]``.
        token_types: 0 ``[CLS]``, 1 attribute name, 2 attribute value, int64 ``[T]``.
        token_positions: position of the token in its sequence, from 0, int64 ``[T]``.
        item_positions: 0 for ``[CLS]``, 1 for the newest item, int64 ``[T]``.
        offsets: sequence ``b`` holds the tokens ``offsets[b]:offsets[b + 1]``, int64 ``[B + 1]``.
    """

    input_ids: Tensor
    token_types: Tensor
    token_positions: Tensor
    item_positions: Tensor
    offsets: Tensor

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
    def cls_index(self) -> Tensor:
        """Place of each sequence's ``[CLS]`` among the packed tokens, ``[B]``."""
        return self.offsets[:-1]

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
        return TokenBatch(**tensors, offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))

    def replace(self, **tensors: Tensor) -> TokenBatch:
        """The same batch with some tensors exchanged, such as masked ``input_ids``."""
        return replace(self, **tensors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TokenBatch:
        """The same batch on ``device``."""
        tensors = {k: v.to(device, non_blocking=non_blocking) for k, v in vars(self).items()}
        return TokenBatch(**tensors)


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
