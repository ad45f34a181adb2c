"""Augmented sequences and the task of telling whose they are (UniSRec 2.2.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.model.loss import cosine_similarity, zero_of


def kept_items(lengths: Tensor, length: int, ratio: float, keys: Tensor) -> Tensor:
    """Which positions item drop leaves; one of a sequence stays at least.

    Args:
        lengths: items of each sequence, at least 1, ``[B]``.
        length: positions ``L``.
        ratio: probability that an item is dropped.
        keys: one random key for each sequence, ``[B]``.

    Returns:
        bool ``[B, L]``, false at padding.
    """
    positions = torch.arange(length, device=lengths.device)
    inside = positions < lengths[:, None]
    draws = uniform(derive(keys[:, None], Draw.ITEM_DROP, positions)).masked_fill(~inside, -1.0)
    best = positions == draws.argmax(dim=1)[:, None]
    return inside & ((draws >= ratio) | best)


def move_together(items: Tensor, kept: Tensor) -> Tensor:
    """Kept item vectors in their order, without gaps; what follows them is padding.

    Args:
        items: ``[B, L, D]``.
        kept: bool ``[B, L]``.
    """
    order = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)
    return items.gather(1, order[:, :, None].expand_as(items))


def sequence_sequence_loss(
    sequences: Tensor, augmented: Tensor, next_items: Tensor, temperature: float
) -> Tensor:
    """L_S-S: the sequence's own augmented version among those of the batch (UniSRec, Eq. 9).

    A collective: the batch is that of all processes.

    Args:
        sequences: s, ``[B, D]``.
        augmented: s~, ``[B, D]``.
        next_items: what follows each sequence; those before the same item are no negatives of each
            other, ``[B]``.
        temperature: tau.

    Returns:
        Mean over the sequences given; scalar >= 0; zero where there is none.
    """
    augmented = processes.all_gather(augmented)
    whose = torch.full_like(next_items, processes.rank())
    others, whose = processes.all_gather(torch.stack([next_items, whose], dim=1)).unbind(1)
    if len(sequences) == 0:
        return zero_of(sequences, augmented)
    logits = cosine_similarity(sequences, augmented) / temperature
    place = torch.arange(len(others), device=logits.device)
    own = place[whose == processes.rank()]
    alike = (next_items[:, None] == others) & (own[:, None] != place)
    return F.cross_entropy(logits.masked_fill(alike, -torch.inf), own)
