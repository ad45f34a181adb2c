"""Watches whether the item vectors collapse, the known failure of joint-embedding models."""

from __future__ import annotations

import math
from logging import getLogger

import torch
from torch import Tensor

SAMPLED_ITEMS = 4096
SMALLEST_STD = 0.01  # of unit vectors' dimensions, times sqrt(D)
SMALLEST_RANK = 2.0


def spread(vectors: Tensor) -> dict[str, float]:
    """How far item vectors differ from each other.

    Args:
        vectors: ``[S, D]``; at most 4,096 of them, evenly spaced, are looked at.

    Returns:
        ``std``: mean over dimensions of the unit vectors' standard deviation, times sqrt(D)
        (near 1 when directions are uniform, 0 when all are equal); ``effective_rank``: exponential
        of the entropy of the normalised singular values of the centred unit vectors (Roy and
        Vetterli 2007), between 1 and D.
    """
    sample = vectors[:: math.ceil(len(vectors) / SAMPLED_ITEMS)].float()
    units = torch.nn.functional.normalize(sample, dim=1)
    centred = units - units.mean(dim=0)
    std = centred.square().mean(dim=0).sqrt().mean() * units.shape[1] ** 0.5
    singular = torch.linalg.svdvals(centred)
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = torch.exp(-(share * share.clamp(min=1e-12).log()).sum())
    return {"std": float(std), "effective_rank": float(rank)}


def warn_if_collapsed(measured: dict[str, float], items: int) -> bool:
    """Log a warning when :func:`spread` is too small to rank by; returns whether it was.

    Args:
        measured: what ``spread`` gives.
        items: of the catalogue; few of them span few dimensions, and one alone none.
    """
    least_rank = min(SMALLEST_RANK, (items - 1) / 2)
    collapsed = measured["std"] < SMALLEST_STD or measured["effective_rank"] < least_rank
    if collapsed := collapsed and items > 1:
        getLogger().warning(
            f"item vectors collapse: standard deviation {measured['std']:.4f} (want > "
            f"{SMALLEST_STD}), effective rank {measured['effective_rank']:.1f} (want > "
            f"{least_rank}); try a higher ema_momentum or a lower mapping_weight"
        )
    return collapsed
