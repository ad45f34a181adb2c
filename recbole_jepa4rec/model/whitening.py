"""Text vectors made universal: parametric whitening under a mixture of experts (UniSRec 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ParametricWhitening(nn.Module):
    """x~ = (x - b) W1 (UniSRec, Eq. 3): a learned mean and rotation.

    Args:
        width: dimensions ``W`` of a text vector.
        hidden_size: dimensions ``D`` of the result.
        initializer_range: standard deviation of the first W1; b starts at zero.
    """

    def __init__(self, width: int, hidden_size: int, initializer_range: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.lin = nn.Linear(width, hidden_size, bias=False)
        nn.init.normal_(self.lin.weight, std=initializer_range)

    def forward(self, vectors: Tensor) -> Tensor:
        """``[..., W]`` to ``[..., D]``."""
        return self.lin(vectors - self.bias)


class MixtureOfExperts(nn.Module):
    """v = sum over experts of g_k x~_k (UniSRec, Eq. 4 and 5).

    The gate is g = softmax(x W2 + delta), in training with the noise delta = N(0, 1) *
    softplus(x W3), which keeps the experts in use balanced.

    Args:
        width: dimensions ``W`` of a text vector.
        hidden_size: dimensions ``D`` of the result.
        experts: whitenings ``G``.
        dropout: of the text vectors that the whitenings read, the same for all of them.
        initializer_range: standard deviation of the first weights; the gate's start at zero.
    """

    def __init__(
        self, width: int, hidden_size: int, experts: int, dropout: float, initializer_range: float
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.experts = nn.ModuleList(
            ParametricWhitening(width, hidden_size, initializer_range) for _ in range(experts)
        )
        self.w_gate = nn.Parameter(torch.zeros(width, experts))
        self.w_noise = nn.Parameter(torch.zeros(width, experts))

    @torch.no_grad()
    def centre_on(self, mean: Tensor) -> None:
        """Let every b start as the mean text vector ``[W]``, where whitening has it."""
        for name, parameter in self.experts.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(mean)

    def forward(self, vectors: Tensor) -> Tensor:
        """``[..., W]`` to ``[..., D]``."""
        logits = vectors @ self.w_gate
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(vectors @ self.w_noise)
        gates = logits.softmax(dim=-1)
        dropped = self.dropout(vectors)
        experts = torch.stack([expert(dropped) for expert in self.experts], dim=-1)
        return (experts @ gates[..., None])[..., 0]
