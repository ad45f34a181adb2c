"""Two stages: whose best items a ranker sees, and what its order makes of a full ranking."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import Draw, below, derive
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import Offer

_BOUND = 1 << 61
"""Draws below it hardly ever tie, and twice it is still an int64."""


@dataclass(frozen=True, eq=False)
class Retriever:
    """The first stage: a trained model, frozen, whose best items a ranker orders anew.

    No ``nn.Module``, so that its weights are neither trained nor saved with the ranker's.

    Attributes:
        offer: the model in evaluation mode.
        folder: of its run, for whom an error tells.
        label: what tables call it.
        max_items: newest items of a history that it was trained to read.
        digest: SHA-256 of its weights file, ``[32]`` bytes.
    """

    offer: Offer
    folder: str
    label: str
    max_items: int
    digest: Tensor

    @torch.no_grad()
    def scores(self, histories: PackedHistories) -> Tensor:
        """Scores of all items by its own model, float32 ``[B, N]``; the padding item has -inf.

        Raises:
            ValueError: if a score is not a finite number.
        """
        scores = self.offer.scores(histories.newest(self.max_items)).float().clone()
        if not scores[:, 1:].isfinite().all():  # waits for the device, as reading the best does
            raise ValueError(f"retriever {self.folder!r} gives scores that are not finite")
        scores[:, 0] = -torch.inf
        return scores


def training_candidates(
    targets: Tensor, item_seq: Tensor, num_items: int, size: int, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row's target among negatives drawn uniformly, in random order (LlamaRec 3.3).

    Negatives come from outside the row's history; where the catalogue is too small for that, the
    rest come from the history.

    Args:
        targets: items to find, ``[B]``.
        item_seq: histories, padded with 0, ``[B, L]``.
        num_items: ``N``, padding item included; above ``size``.
        size: candidates of a row, ``C``.
        keys: one random key for each row, ``[B]``.

    Returns:
        Distinct items ``[B, C]``, and the place of the target among them ``[B]``.
    """
    items = torch.arange(num_items)
    draw = below(derive(keys[:, None], Draw.CANDIDATES, items), _BOUND)
    draw = draw.scatter(1, item_seq, draw.gather(1, item_seq) + _BOUND)
    draw[:, 0] = 2 * _BOUND
    draw = draw.scatter(1, targets[:, None], -1)
    chosen = draw.topk(size, largest=False).indices
    order = below(derive(keys[:, None], Draw.SHUFFLE, chosen), _BOUND).argsort(dim=1)
    candidates = chosen.gather(1, order)
    return candidates, (candidates == targets[:, None]).long().argmax(dim=1)


def had_before(histories: PackedHistories, num_items: int) -> Tensor:
    """Which items stand in each history or among its older items, bool ``[B, N]``."""
    had = torch.zeros(len(histories), num_items, dtype=torch.bool)
    row = torch.arange(len(histories))
    had[row.repeat_interleave(histories.lengths), histories.items] = True
    if histories.older is not None and histories.older_lengths is not None:
        had[row.repeat_interleave(histories.older_lengths), histories.older] = True
    return had


def retrieve(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The best items of each row, best first; equal ones in order of their ids.

    Items that tie with one beyond the last place are not retrieved: no order among them would be
    the retriever's own.

    Args:
        scores: of all items, the padding item -inf, ``[B, N]``.
        size: ``C``, below ``N``.

    Returns:
        Items ``[B, C]``, and which of them are retrieved, bool ``[B, C]``; all are, where no score
        ties with the next one.
    """
    values, items = scores.topk(size + 1)
    items, by_id = items[:, :size].sort(dim=1)
    best, order = values[:, :size].gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return items.gather(1, order), best > values[:, size:]


def rerank(scores: Tensor, items: Tensor, retrieved: Tensor, logits: Tensor) -> Tensor:
    """The retriever's scores with the retrieved items raised above all, in the ranker's order.

    The raised scores count places and are a whole step or more apart, so that rounding never makes
    or breaks a tie.

    Args:
        scores: the retriever's, float32 ``[B, N]``.
        items: candidates, ``[B, C]``.
        retrieved: which of them are ranked anew, bool ``[B, C]``.
        logits: the ranker's, ``[B, C]``.
    """
    logits = logits.masked_fill(~retrieved, -torch.inf)
    beaten = (logits[:, :, None] > logits[:, None, :]).sum(dim=2)
    best = scores.amax(dim=1, keepdim=True)
    raised = best + best.abs().clamp(min=1) * (1 + beaten)
    return scores.scatter(1, items, torch.where(retrieved, raised, scores.gather(1, items)))
