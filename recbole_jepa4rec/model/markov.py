"""A first-order Markov chain over items: what followed the last item in training."""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn


class Markov(SequentialRecommender):
    """Scores an item by how often it directly followed the history's last item in training.

    Items that never followed it score 0 and tie. There is nothing to train, so ``epochs`` is 0.

    Args:
        config: RecBole's configuration.
        dataset: a ``SequentialTextDataset``.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        histories = dataset.histories
        following = histories.targets[histories.in_training[histories.targets]]
        pairs = histories.items[following - 1] * self.n_items + histories.items[following]
        pairs, counts = torch.unique(pairs, return_counts=True)
        self.register_buffer("pairs", pairs)  # item * N + next item, sorted, [E]
        self.counts = nn.Parameter(counts.float(), requires_grad=False)  # [E]

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Nothing to learn: a zero without gradient for any parameter."""
        return self.counts.new_zeros((), requires_grad=True)

    def predict(self, interaction: Any) -> Tensor:
        """Scores of the rows' items, ``[B]``."""
        item = interaction[self.ITEM_ID][:, None]
        return self.full_sort_predict(interaction).gather(1, item)[:, 0]

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, ``[B, N]``."""
        item_seq, item_seq_len = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        last = item_seq.gather(1, (item_seq_len - 1).clamp(min=0)[:, None])[:, 0]
        begin = torch.searchsorted(self.pairs, last * self.n_items)
        found = torch.searchsorted(self.pairs, (last + 1) * self.n_items) - begin
        row = torch.repeat_interleave(found)
        shift = begin - (found.cumsum(0) - found)
        entry = torch.arange(len(row), device=row.device) + shift[row]
        scores = self.counts.new_zeros(len(last), self.n_items)
        scores[row, self.pairs[entry] % self.n_items] = self.counts[entry]
        return scores
