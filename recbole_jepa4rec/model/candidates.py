"""Which item sentences a finetuning step compares the sequences with (paper 3.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import derive, uniform


def draw_candidates(
    wanted: Tensor, sentences: range, size: int, key: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sentences a batch wants and a uniform sample of the others; a collective.

    Args:
        wanted: sentence that each [CLS] of this process must predict, ``[Q]``; one a sequence, or
            several.
        sentences: ids of all sentences that items have, ``S`` of them.
        size: candidates to draw; at least one sentence is sampled where any is left.
        key: random key of the batch, scalar.

    Returns:
        Sentence ids ``[C]``, the same in all processes; the index of each wanted one among them
        ``[Q]``; and the logarithm of how many sentences each candidate stands for, ``[C]``: 0 for
        those that any process wants, and for all where ``C = S``.
    """
    wanted = wanted - sentences.start
    draw = uniform(derive(key, torch.arange(len(sentences), device=wanted.device)))
    draw[processes.all_gather(wanted)] = -1.0
    needed = int((draw < 0).sum())
    size = min(max(size, needed + 1), len(sentences))
    candidates = draw.topk(size, largest=False).indices
    place = torch.empty_like(draw, dtype=torch.int64)
    place[candidates] = torch.arange(size, device=wanted.device)
    stands_for = (len(sentences) - needed) / max(size - needed, 1)
    log_weights = (draw[candidates] >= 0) * math.log(max(stands_for, 1.0))
    return candidates + sentences.start, place[wanted], log_weights
