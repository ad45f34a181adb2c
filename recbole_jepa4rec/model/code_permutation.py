"""Which code embedding each code of another catalogue takes over (VQRec 2.3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CodePermutation(nn.Module):
    """One doubly stochastic matrix for each digit: permutations, relaxed to be learnt by gradient.

    By Birkhoff's theorem these matrices are the convex hull of the permutations. They come from
    free parameters by Sinkhorn's iteration.

    Args:
        digits: of a code, ``D``.
        values: of a digit, ``M``.
        iterations: of Sinkhorn, normalising rows and columns once each.
    """

    def __init__(self, digits: int, values: int, iterations: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(digits, values, values))
        self.iterations = iterations

    def forward(self, code_embedding: Tensor) -> Tensor:
        """The embeddings in the new codes' order, ``[D, M, H]`` to ``[D, M, H]``."""
        return sinkhorn(self.logits, self.iterations) @ code_embedding


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Matrices whose rows and columns sum to 1, the latter exactly, ``[..., M, M]``.

    Args:
        logits: logarithms of the matrices' first entries.
        iterations: normalisations of all rows and then all columns.
    """
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        logits = logits - logits.logsumexp(dim=-2, keepdim=True)
    return logits.exp()
