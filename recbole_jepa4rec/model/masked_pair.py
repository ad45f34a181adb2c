"""What a pre-training step reads: histories and next items, clean and masked (paper 3.3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_jepa4rec.text.token_batch import TokenBatch


@dataclass(frozen=True)
class MaskedPair:
    """Histories and their next items in a pre-training step, clean and masked.

    Attributes:
        item_ids: items of the histories, packed newest first, ``[M]``.
        lengths: items of each history, ``[B]``.
        next_items: ground-truth next items, ``[B]``.
        keys: one random key for each sequence, ``[B]``.
        histories: the histories' sentences.
        masked: the same with masked tokens.
        next_clean: the next items' sentences.
        next_masked: the same with masked tokens.
        selected: masked tokens of the histories, bool.
        tokens: masked tokens of histories and next items, end to end, as indices ``[T]``.
    """

    item_ids: Tensor
    lengths: Tensor
    next_items: Tensor
    keys: Tensor
    histories: TokenBatch
    masked: TokenBatch
    next_clean: TokenBatch
    next_masked: TokenBatch
    selected: Tensor
    tokens: Tensor

    @property
    def labels(self) -> Tensor:
        """What stood at the masked tokens, ``[T]``."""
        return torch.cat([self.histories.input_ids, self.next_clean.input_ids])[self.tokens]
