"""A user's own sequential model with a setting of its own, as RecBole's documentation has it."""

from recbole.model.abstract_recommender import SequentialRecommender
from torch import nn


class MeanSequence(SequentialRecommender):
    """Mean of the item embeddings of the history; ``my_width`` is the model's own key."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.items = nn.Embedding(self.n_items, config["my_width"], padding_idx=0)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, item_seq, item_seq_len):
        return self.items(item_seq).sum(1) / item_seq_len[:, None]

    def calculate_loss(self, interaction):
        return self.loss(self._scores(interaction), interaction[self.POS_ITEM_ID])

    def predict(self, interaction):
        return self._scores(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    def full_sort_predict(self, interaction):
        return self._scores(interaction)

    def _scores(self, interaction):
        return (
            self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
            @ self.items.weight.T
        )
