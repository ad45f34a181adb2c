"""The predictor: from the history's vector to the vectors of two items (paper 3.3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Predictor(nn.Module):
    """FFN1 guesses a masked history item, FFN2 the half-hidden next item.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.history = _feed_forward(hidden_size)
        self.next_item = _feed_forward(hidden_size)
        self.unmasked = nn.Parameter(torch.zeros(hidden_size))

    def predict_history(self, sequence: Tensor, position: Tensor, was_masked: Tensor) -> Tensor:
        """FFN1(h_CLS + D_n), ``+`` for concatenation.

        Args:
            sequence: h_CLS, ``[B, D]``.
            position: item position embedding D_n of the item to guess, ``[B, D]``.
            was_masked: whether a token of that item was masked, bool ``[B]``; where none was,
                the learnable vector that starts at zero stands in for D_n.

        Returns:
            ``[B, D]``.
        """
        place = torch.where(was_masked[:, None], position, self.unmasked.to(position.dtype))
        return self.history(torch.cat([sequence, place], dim=1))

    def predict_next(self, sequence: Tensor, masked_item: Tensor) -> Tensor:
        """FFN2(h_CLS + h_{n+1,M}), both ``[B, D]``; returns ``[B, D]``."""
        return self.next_item(torch.cat([sequence, masked_item], dim=1))


def _feed_forward(hidden_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
    )
