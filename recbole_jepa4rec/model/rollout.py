"""Rollouts: what is predicted re-enters the context, and the item after it is predicted.

The predicted latent of the next item is h_CLS, by which items are ranked. It re-enters by its
direction alone, which is all that a cosine trains, through a linear map that starts as the
identity, as an item of one token, newer than all others. With ``all_prefixes`` it stands in place
of that item's [CLS], at which the next prediction is read: residual connections carry it there.
(Behind it, a [CLS] of its own ignored it: the history says as much as what follows from it.) In
``random`` order it stands among the history's tokens, and the one [CLS] reads it there.

A step of training rolls out from one prefix of each history, drawn uniformly, which it reads anew
with each latent more. L_map has no part in it: FFN2 reads half of the next item, which a rollout
does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_jepa4rec.base.keyed_random import Draw, below, derive
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.ranking_head import Queries
from recbole_jepa4rec.text.token_batch import ragged_range

PROJECTIONS = ("none", "nearest", "top_k")
"""What re-enters: the latent; the vector of the item that it ranks first; or a mean of the vectors
of the best ``MIXED_ITEMS``, each weighted by the softmax of its logit."""

MIXED_ITEMS = 10

Encode = Callable[[PackedHistories, Sequence[Tensor]], Tensor]
"""h_CLS of histories with latents behind them, ``[B, D]`` each and oldest first: ``[B, D]``."""


def as_inputs(latents: Sequence[Tensor], learned_map: nn.Module | None) -> Tensor:
    """Latents, ``[B, D]`` each, as an encoder reads them, ``[B, s, D]``; no map is the identity."""
    directions = F.normalize(torch.stack([*latents], dim=1).float(), dim=-1)
    return directions if learned_map is None else learned_map(directions)


@dataclass(frozen=True)
class _Starts:
    """Prefixes from which a step of training rolls out, those that go furthest first.

    Attributes:
        row: the history of each, ``[R]``.
        prefix: items of it, ``[R]``.
        later: steps after the first one whose next item is known, at least 1, ``[R]``.
    """

    row: Tensor
    prefix: Tensor
    later: Tensor

    @classmethod
    def drawn(cls, histories: PackedHistories, steps: int, keys: Tensor) -> _Starts:
        """One prefix of each history of two items or more, by its key, ``[B]``."""
        row = (histories.lengths > 1).nonzero()[:, 0]
        lengths = histories.lengths[row]
        prefix = 1 + below(derive(keys[row], Draw.ROLLOUT), lengths - 1)
        later = (lengths - prefix).clamp(max=steps - 1)
        order = later.argsort(descending=True, stable=True)
        return cls(row[order], prefix[order], later[order])

    def of(self, histories: PackedHistories, number: int) -> PackedHistories:
        """The first so many prefixes as histories."""
        row, prefix = self.row[:number], self.prefix[:number]
        first = (histories.lengths.cumsum(0) - histories.lengths)[row]
        items = histories.items[ragged_range(first, prefix)]
        return PackedHistories(items, prefix, histories.users[row], histories.targets[row])


def roll_out(
    histories: PackedHistories, steps: int, keys: Tensor, encode: Encode
) -> tuple[Queries, Tensor]:
    """What steps 2 to ``steps`` of rollouts from the histories' prefixes ask for.

    The items after a prefix are those of its history, and at last the history's target; a step
    beyond that one is left out.

    Args:
        histories: ``B`` of them, each with its next item as target.
        steps: at most, 2 or more.
        keys: one random key for each history, ``[B]``.
        encode: reads prefixes and latents.

    Returns:
        Queries, ``[Q]`` of all steps, each as if it had read the true items up to the one it asks
        for; and their vectors, ``[Q, D]``, through which the gradient flows back to the first step.
    """
    starts = _Starts.drawn(histories, steps, keys)
    number = len(starts.row)
    vectors = encode(starts.of(histories, number), ())
    latents, found = list[Tensor](), [vectors[:0]]
    rows, prefixes = [starts.row[:0]], [starts.prefix[:0]]
    for step in range(1, steps):
        number = int((starts.later >= step).sum())
        if not number:
            break
        latents = [latent[:number] for latent in (*latents, vectors)]
        vectors = encode(starts.of(histories, number), latents)
        found.append(vectors)
        rows.append(starts.row[:number])
        prefixes.append(starts.prefix[:number] + step)
    return Queries(histories, torch.cat(rows), torch.cat(prefixes)), torch.cat(found)


def pulled_back(latents: Tensor, logits: Tensor, table: Tensor, projection: str) -> Tensor:
    """What re-enters in place of latents.

    Args:
        latents: ``[B, D]``.
        logits: of the items that may be chosen, ``[B, N]``.
        table: these items' vectors, ``[N, D]``.
        projection: of ``PROJECTIONS``.
    """
    if projection == "none":
        return latents
    count = min(1 if projection == "nearest" else MIXED_ITEMS, logits.shape[1])
    best, items = logits.float().topk(count, dim=1)
    directions = F.normalize(table[items].float(), dim=-1)
    return (best.softmax(dim=1)[..., None] * directions).sum(dim=1)
