"""What occurred how often in training, and what followed what: the floor of every comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_jepa4rec.base.device import PartlyOnCPU, sent
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import Model
from recbole_jepa4rec.text.token_batch import ragged_range


class CountingModel(Model):
    """Counts when it is made, from the training part of all histories; ``epochs`` is 0.

    Attributes:
        counts: how often each thing that a subclass counts occurred, float32.
    """

    counts: nn.Parameter

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Nothing to learn: a zero without gradient for any parameter."""
        return self.counts.new_zeros((), requires_grad=True)


class Popularity(CountingModel):
    """Scores an item by how often it occurs: the most popular ones for everybody.

    Departs from RecBole's ``Pop``: interactions are counted once each, whatever the batches.

    Args:
        config: RecBole's configuration.
        dataset: a ``SequentialTextDataset``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        histories = dataset.histories
        counts = torch.bincount(histories.items[histories.in_training], minlength=self.n_items)
        self.counts = nn.Parameter(counts.float(), requires_grad=False)  # [N]

    def scores(self, histories: PackedHistories) -> Tensor:
        """Counts of all items, ``[B, N]``."""
        return self.counts.repeat(len(histories), 1)


class Markov(CountingModel, PartlyOnCPU):
    """Scores an item by how often it directly followed the history's last item.

    A first-order Markov chain. Items that never followed it score 0 and tie.

    Args:
        config: RecBole's configuration.
        dataset: a ``SequentialTextDataset``.
    """

    on_cpu = ("pairs",)
    pairs: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        histories = dataset.histories
        following = histories.targets[histories.in_training[histories.targets]]
        pairs = histories.items[following - 1] * self.n_items + histories.items[following]
        pairs, counts = torch.unique(pairs, return_counts=True)
        self.register_buffer("pairs", pairs)  # item * N + next item, sorted, [E]
        self.counts = nn.Parameter(counts.float(), requires_grad=False)  # [E]

    def scores(self, histories: PackedHistories) -> Tensor:
        """Counts of all items, ``[B, N]``."""
        place = (histories.lengths - 1).clamp(min=0)[:, None]
        last = histories.padded().gather(1, place)[:, 0]
        begin = torch.searchsorted(self.pairs, last * self.n_items)
        found = torch.searchsorted(self.pairs, (last + 1) * self.n_items) - begin
        row, entry = torch.repeat_interleave(found), ragged_range(begin, found)
        places = row, self.pairs[entry] % self.n_items, entry
        row, following, entry = sent(places, self.counts.device)
        scores = self.counts.new_zeros(len(last), self.n_items)
        scores[row, following] = self.counts[entry]
        return scores
