"""RecFormer as a RecBole sequential model (Li et al. 2023, arXiv 2305.13731)."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.model.ema import FixedCopy
from recbole_jepa4rec.model.encoder import MLMHead, SentenceEncoder
from recbole_jepa4rec.model.objective import Objective
from recbole_jepa4rec.model.sentence_model import SentenceModel
from recbole_jepa4rec.model.starting_point import save_starting_point, starting_point
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.tensor_cache import default_cache_dir
from recbole_jepa4rec.training.phase import FINETUNE, FINETUNE_FROZEN_ITEMS, PRETRAIN

Aim = TypeVar("Aim", bound=Objective)


class RecFormer(SequentialRecommender):
    """RecBole's shell: unpacks the config, builds the parts, hands them to the core.

    The core, a :class:`~recbole_jepa4rec.model.sentence_model.SentenceModel`, never sees a config.
    It is pre-trained by L_PT = L_IIC + lambda L_MLM (RecFormer, Eq. 10: the item-item contrastive
    and the masked language modelling task), then finetuned in two stages (Algorithm 1), through
    which the trainer moves it with :meth:`begin_phase` and :meth:`begin_epoch`.

    Args:
        config: a RecBole config with the keys of ``properties/model/RecFormer.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    input_type = InputType.POINTWISE
    core: SentenceModel

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.seed = config["seed"]
        self.phase, self.epoch, self.step = FINETUNE, 0, 0
        self._resumed_epoch: int | None = None
        start = starting_point(config, dataset.item_text)
        self.tokenizer = start.tokenizer
        encoder, mlm_head = SentenceEncoder(start.encoder), MLMHead(start.encoder)
        if start.encoder_weights is not None:
            encoder.load_state_dict(start.encoder_weights)
        if start.mlm_head_weights is not None:
            mlm_head.load_state_dict(start.mlm_head_weights)
        sentences = ItemSentences.build(
            dataset.item_text,
            start.tokenizer,
            max_attribute_tokens=config["max_attribute_tokens"],
            cache_dir=Path(config["cache_dir"] or default_cache_dir()),
            address=config["address"],
        )
        self.core = self._build_core(config, sentences, encoder, mlm_head)

    def _build_core(
        self, config: Any, sentences: ItemSentences, encoder: SentenceEncoder, mlm_head: MLMHead
    ) -> SentenceModel:
        return SentenceModel(
            sentences=sentences,
            encoder=encoder,
            fixed_copy=FixedCopy(encoder),
            mlm_head=mlm_head,
            objective=unpack(Objective, config),
            max_sequence_tokens=config["max_sequence_tokens"],
            tokens_per_batch=config["tokens_per_batch"],
        )

    @property
    def label(self) -> str:
        """What tables call the model, which name the targets of a pass (``training_targets``)."""
        targets = "all prefixes" if self.trains_all_prefixes else "one random target"
        return f"{type(self).__name__} ({targets})"

    @property
    def loss_weights(self) -> dict[str, float]:
        """The loss terms of the current phase, in the order of :meth:`calculate_loss`."""
        return self.core.loss_weights if self.phase == PRETRAIN else {"finetune": 1.0}

    def begin_phase(self, phase: str, steps: int) -> None:
        """Enter the phase of that name (``phase.py``), of so many steps."""
        self.phase = phase
        self.core.begin_phase(steps, items_frozen=phase == FINETUNE_FROZEN_ITEMS)

    def begin_epoch(self, epoch: int) -> None:
        """Number the epoch, which keys its random draws, and make the item table it reads."""
        goes_on, self._resumed_epoch = epoch == self._resumed_epoch, None
        self.epoch = epoch
        if self.phase != PRETRAIN and self.core.reads_item_table and not goes_on:
            self.core.item_vectors()

    def begin_step(self, step: int) -> None:
        """Number the step within its epoch; the sampled items of finetuning depend on it."""
        self.step = step

    def weights_moved(self) -> None:
        """The optimizer made a step."""
        self.core.weights_moved()

    def item_vectors(self) -> Tensor:
        """Vectors of all distinct item sentences, ``[S, D]``."""
        return self.core.item_vectors()[self.core.sentences.used.start :]

    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items, one row of attributes each; returns their internal ids."""
        item_ids = self.core.add_items(item_text)
        self.n_items = self.core.sentences.num_items
        return item_ids

    def replace_items(self, item_ids: Tensor, item_text: pd.DataFrame) -> None:
        """Give items other texts, one row of attributes each."""
        self.core.replace_items(item_ids, item_text)

    def drop_items(self, first: int) -> None:
        """Forget the items from internal id ``first`` on, which were the last to be added."""
        self.core.drop_items(first)
        self.n_items = self.core.sentences.num_items

    @property
    def trains_all_prefixes(self) -> bool:
        """Whether a history trains on the item after each item, not on the next item alone."""
        return self.core.item_causal

    @property
    def item_tokens(self) -> Tensor:
        """Tokens that each item takes in a history, ``[N]`` on the CPU."""
        sentences = self.core.sentences
        tokens = sentences.sentence_lengths[sentences.sentence_of_item].cpu()
        return tokens + 1 if self.trains_all_prefixes else tokens

    @property
    def tokens_seen(self) -> int:
        """Tokens the context encoder has read so far, but for those of the item table."""
        return self.core.tokens_seen

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """Weighted terms of L_PT or L_FT, named by :attr:`loss_weights`."""
        item_ids, lengths = self._newest_first(interaction)
        next_items = interaction[self.POS_ITEM_ID]
        if self.phase != PRETRAIN:
            key = derive(self.seed, self.epoch, self.step).to(item_ids.device)
            return (self.core.finetune_loss(item_ids, lengths, next_items, key),)
        keys = derive(self.seed, self.epoch, interaction[self.USER_ID], next_items)
        losses = self.core.pretrain_losses(item_ids, lengths, next_items, keys)
        return tuple(weight * losses[name] for name, weight in self.loss_weights.items())

    def forward(self, interaction: Any) -> Tensor:
        """Sequence vectors h_CLS, ``[B, D]``."""
        return self.core.encode_histories(*self._newest_first(interaction))

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item, ``[B]``."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    @torch.no_grad()
    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, padding item included, ``[B, N]``."""
        return self.core.scores(*self._newest_first(interaction))

    def resumable_state(self) -> dict[str, Any]:
        """What training goes on from: the weights, and the table that the epoch began with."""
        weights, table = self.state_dict(), self.core.table_of_epoch()
        return {"weights": weights, "item_table": table, "epoch": self.epoch}

    def load_resumable_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``resumable_state`` returned, in the same phase."""
        self.load_state_dict(state["weights"])
        if state["item_table"] is not None:
            self.core.item_table.hold(state["item_table"])
            self._resumed_epoch = state["epoch"]

    def prepare_run_folder(self, folder: Path) -> None:
        """Keep tokenizer and architecture beside the weights: together they encode any text."""
        save_starting_point(folder, self.tokenizer, self.core.encoder.config)

    def _newest_first(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Histories as packed item ids ``[M]``, newest first, and their lengths ``[B]``."""
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        steps_back = torch.arange(item_seq.shape[1], device=item_seq.device)
        newest_first = item_seq.gather(1, (lengths[:, None] - 1 - steps_back).clamp(min=0))
        return newest_first[steps_back < lengths[:, None]], lengths


def unpack(kind: type[Aim], config: Any) -> Aim:
    """The objective of that kind, its fields read from the config's keys of the same names."""
    return kind(**{field.name: config[field.name] for field in fields(kind)})
