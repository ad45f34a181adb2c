"""The most popular items for everybody: the floor of every comparison."""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn


class Popularity(SequentialRecommender):
    """Scores an item by how often it occurs in the training part of all histories.

    Departs from RecBole's ``Pop``: interactions are counted once each, whatever the batches; there
    is nothing to train, so ``epochs`` is 0.

    Args:
        config: RecBole's configuration.
        dataset: a ``SequentialTextDataset``.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        histories = dataset.histories
        counts = torch.bincount(histories.items[histories.in_training], minlength=self.n_items)
        self.counts = nn.Parameter(counts.float(), requires_grad=False)  # [N]

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Nothing to learn: a zero without gradient for any parameter."""
        return self.counts.new_zeros((), requires_grad=True)

    def predict(self, interaction: Any) -> Tensor:
        """Scores of the rows' items, ``[B]``."""
        return self.counts[interaction[self.ITEM_ID]]

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, ``[B, N]``."""
        return self.counts.repeat(len(interaction[self.ITEM_SEQ]), 1)
