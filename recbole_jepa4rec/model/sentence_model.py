"""RecBole's shell of the models that read items and histories as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.sentence_settings import ItemTextSettings
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import PRETRAIN
from recbole_jepa4rec.model.ranking_head import RankingHead
from recbole_jepa4rec.model.sentence_ranker import SentenceRanker
from recbole_jepa4rec.model.similarity_model import SimilarityModel
from recbole_jepa4rec.text.token_batch import ALL_PREFIXES


class SentenceModel(SimilarityModel):
    """RecBole's shell around a :class:`SentenceRanker`: it reads the settings and makes the core.

    A subclass gives ``settings`` and :meth:`made_core`. The core never sees a config. It is
    pre-trained in its own way, then finetuned to rank all items (paper 3.4).

    Args:
        config: a RecBole config with the keys of the model's yaml file.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    settings: ClassVar[type[ItemTextSettings]]
    core: SentenceRanker

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings.of(config)
        self.seed, self.training_targets = settings.seed, settings.training_targets
        self._resumed_epoch: int | None = None
        self.temperature = settings.temperature
        self.core = self.made_core(settings, dataset, config["device"])

    def made_core(self, settings: Any, dataset: Any, device: torch.device) -> SentenceRanker:
        """The core that settings, of the class ``settings``, ask for; its parts are made here."""
        raise NotImplementedError

    @property
    def head(self) -> RankingHead | None:
        """What is added to the cosines."""
        return self.core.head

    @property
    def item_tokens(self) -> Tensor:
        """Tokens that each item takes in a history, ``[N]`` on the CPU."""
        sentences = self.core.sentences
        tokens = sentences.sentence_lengths[sentences.sentence_of_item]
        return tokens + 1 if self.training_targets == ALL_PREFIXES else tokens  # each a [CLS]

    @property
    def tokens_seen(self) -> int:
        """Tokens the encoder has read so far, but for those of the item table."""
        return self.core.tokens_seen

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The loss terms of the current phase, in the order of :meth:`losses`."""
        aims = self.core.objective
        return aims.loss_weights if self.phase == PRETRAIN else aims.finetune_weights

    def begin_epoch(self, key: int) -> None:
        """Begin an epoch, whose random draws this keys, and make the item table it reads."""
        goes_on, self._resumed_epoch = key == self._resumed_epoch, None
        super().begin_epoch(key)
        if self.phase != PRETRAIN and self.core.reads_item_table and not goes_on:
            self.core.item_vectors()

    def weights_moved(self) -> None:
        """The optimizer has made a step."""
        super().weights_moved()
        self.core.weights_moved()

    def losses(self, histories: PackedHistories) -> tuple[Tensor, ...]:
        """Weighted terms of the phase's loss, named by :attr:`loss_weights`."""
        keys = derive(self.seed, self.epoch, histories.users, histories.targets)
        step = derive(self.seed, self.epoch, self.step)
        pretrains = self.phase == PRETRAIN
        learn = self.core.pretrain_losses if pretrains else self.core.finetune_losses
        losses = learn(histories, keys, step)
        return tuple(weight * losses[name] for name, weight in self.loss_weights.items())

    def cosines(self, histories: PackedHistories) -> Tensor:
        """Cosine with every item, padding item included, ``[B, N]``."""
        return self.core.cosines(histories)

    def item_vectors(self) -> Tensor:
        """Vectors of all distinct item sentences, ``[S, D]``."""
        return self.core.item_vectors()[self.core.sentences.used.start :]

    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items, one row of attributes each; returns their internal ids."""
        item_ids = self.core.add_items(item_text)
        self.n_items = self.core.sentences.num_items
        return item_ids

    def replace_items(self, item_ids: Tensor, item_text: pd.DataFrame) -> None:
        """Give items other texts; no sentence that the table has already is encoded again."""
        self.core.sentences.reassign(item_ids, self.core.add_items(item_text))

    def drop_items(self, first: int) -> None:
        """Forget the items from internal id ``first`` on, which were the last to be added."""
        self.core.drop_items(first)
        self.n_items = self.core.sentences.num_items

    def resumable_state(self) -> dict[str, Any]:
        """What training goes on from: the weights, and the table that the epoch began with.

        There is a table where steps read one that cannot be made again from the weights.
        """
        is_read = self.core.reads_item_table and not self.core.items_frozen
        table = self.core.item_table.vectors if is_read else None
        return {"weights": self.state_dict(), "item_table": table, "epoch": self.epoch}

    def load_resumable_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``resumable_state`` returned, in the same phase."""
        self.load_state_dict(state["weights"])
        if state["item_table"] is not None:
            self.core.item_table.hold(state["item_table"].to(self.core.encoder.device))
            self._resumed_epoch = state["epoch"]
