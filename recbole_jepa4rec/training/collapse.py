"""Watches whether the item vectors collapse, the known failure of joint-embedding models."""

from __future__ import annotations

import math
from logging import getLogger

import torch
from torch import Tensor

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.model.base import Model
from recbole_jepa4rec.model.sigreg import draw_directions, sigreg

SAMPLED_ITEMS, PAIRED_ITEMS, SAMPLED_HISTORIES = 4096, 1024, 1024
DIRECTIONS = 256  # of SIGReg
COSINES_AT_ONCE = 2**22
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
        Vetterli 2007), between 1 and D; ``uniformity``: logarithm of the mean of ``exp(-2 d^2)``
        over pairs of unit vectors, d their distance (Wang and Isola 2020), 0 when all are equal,
        else below; ``sigreg``: SIGReg's statistic of the vectors as they are, by their number: near
        0 for N(0, I).
    """
    sample = _evenly(vectors, SAMPLED_ITEMS).float()
    units = torch.nn.functional.normalize(sample, dim=1)
    centred = units - units.mean(dim=0)
    std = centred.square().mean(dim=0).sqrt().mean() * units.shape[1] ** 0.5
    singular = torch.linalg.svdvals(centred)
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = torch.exp(-(share * share.clamp(min=1e-12).log()).sum())
    distances = torch.pdist(_evenly(units, PAIRED_ITEMS))
    closeness = distances.square().mul(-2).exp().mean() if len(distances) else torch.ones(())
    directions = draw_directions(0, sample.shape[1], DIRECTIONS)
    return {
        "std": float(std),
        "effective_rank": float(rank),
        "uniformity": float(closeness.log()),
        "sigreg": float(sigreg(sample, directions) / len(sample)),
    }


@torch.no_grad()
def alignment(model: Model, rows: HistoryRows) -> float:
    """How near the vectors of histories are to those of their next items (Wang and Isola 2020).

    Args:
        model: that has item vectors.
        rows: of training; at most 1,024 of them, evenly spaced, are looked at.

    Returns:
        The mean squared distance of unit vectors, from 0 to 4.
    """
    some, total = rows.with_targets(_evenly(rows.target, SAMPLED_HISTORIES)), 0.0
    for histories in some.in_batches(max(1, COSINES_AT_ONCE // model.n_items)):
        cosines = model.cosines(histories)
        cosines = cosines.gather(1, sent(histories.targets[:, None], cosines.device))
        total += float((2 - 2 * cosines.double()).sum())
    return total / len(some)


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
            f"{least_rank}); of JEPA4Rec try collapse_prevention=sigreg, a higher ema_momentum "
            "or a lower mapping_weight, of LLMJEPA jepa_distance=infonce or a lower jepa_weight"
        )
    return collapsed


def _evenly(vectors: Tensor, most: int) -> Tensor:
    """At most so many of them, evenly spaced."""
    return vectors[:: math.ceil(len(vectors) / most)]
