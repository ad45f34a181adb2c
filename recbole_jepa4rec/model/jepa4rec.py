"""JEPA4Rec, and RecFormer before it, as RecBole sequential models (paper section 3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recbole_jepa4rec.config.sentence_settings import (
    JEPA4RecSettings,
    RecFormerSettings,
    SentenceSettings,
)
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import FINETUNE_FROZEN_ITEMS, PRETRAIN, RolloutStep
from recbole_jepa4rec.model.encoder import depth_below
from recbole_jepa4rec.model.item_table import ItemTable
from recbole_jepa4rec.model.items_alone import FrozenOutputs
from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.model.moving_average import ExponentialMovingAverage, FixedCopy
from recbole_jepa4rec.model.objective import Objective, Predictor
from recbole_jepa4rec.model.packed_attention import refuse_where_not_possible
from recbole_jepa4rec.model.ranking_head import ranking_head
from recbole_jepa4rec.model.rollout import pulled_back
from recbole_jepa4rec.model.sentence_model import SentenceModel
from recbole_jepa4rec.model.starting_point import save_starting_point, starting_point
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.tensor_cache import default_cache_dir
from recbole_jepa4rec.text.token_batch import ALL_PREFIXES, RANDOM


class JEPA4Rec(SentenceModel):
    """RecBole's shell around a :class:`~recbole_jepa4rec.model.jepa.JointEmbeddingModel`.

    It is pre-trained by L_PT = L_S-I + lambda_1 L_MLM + lambda_2 L_map (paper 3.3), then finetuned
    (paper 3.4), at last with the item side frozen, as RecFormer does.

    Args:
        config: a RecBole config with the keys of ``properties/model/JEPA4Rec.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    settings: ClassVar[type[SentenceSettings]] = JEPA4RecSettings
    core: JointEmbeddingModel

    def made_core(
        self, settings: SentenceSettings, dataset: Any, device: torch.device
    ) -> JointEmbeddingModel:
        """The core that settings ask for, each of its parts made here.

        RecFormer has a fixed copy for a target encoder, and no predictor.
        """
        self.layer_decay, self.freezes_words = settings.layer_decay, settings.freeze_word_embeddings
        tokenizer, encoder, mlm_head = starting_point(settings, dataset.item_text)
        at_once = encoder.config.attends_at_once(device)
        refuse_where_not_possible(settings, at_once, device)
        sentences = ItemSentences.of(settings, dataset.item_text, tokenizer)
        if encoder.config.frozen_layers:
            cache_dir = Path(settings.cache_dir or default_cache_dir())
            outputs = FrozenOutputs(sentences, settings.max_sequence_tokens, cache_dir)
            encoder.keep_frozen_outputs(outputs)
        if encoder.config.whitening and not settings.checkpoint:
            encoder.to(device)
            table = ItemTable(sentences, settings.max_sequence_tokens, settings.tokens_per_batch)
            encoder.whiten(table.encode(encoder, sentences.used, shared=False))
        target_encoder, predictor = FixedCopy(encoder), None
        width = encoder.config.hidden_size
        if isinstance(settings, JEPA4RecSettings):
            if settings.collapse_prevention == "ema":
                target_encoder = ExponentialMovingAverage(encoder, *settings.ema_schedule)
            predictor = Predictor(width)
        return JointEmbeddingModel(
            sentences=sentences,
            encoder=encoder,
            target_encoder=target_encoder,
            mlm_head=mlm_head,
            predictor=predictor,
            objective=Objective.of(settings),
            max_sequence_tokens=settings.max_sequence_tokens,
            tokens_per_batch=settings.tokens_per_batch,
            head=ranking_head(settings, self.max_seq_length, dataset, width),
        )

    @property
    def label(self) -> str:
        """What tables call the model, which name the targets of a pass (``training_targets``)."""
        targets = {RANDOM: "one random target", ALL_PREFIXES: "all prefixes"}
        return f"{type(self).__name__} ({targets[self.training_targets]}{self.head_label})"

    @property
    def weights_by_pace(self) -> Mapping[float, Sequence[nn.Parameter]]:
        """The encoder's layers move the slower the lower they are (``layer_decay``)."""
        layers, by_pace = self.core.encoder.config.num_layers, defaultdict[float, Any](list)
        for name, weight in self.named_parameters():
            depth = depth_below(name.removeprefix("core.encoder."), layers)
            by_pace[self.layer_decay**depth].append(weight)
        return by_pace

    def begin_phase(self, phase: str, steps: int) -> None:
        """Enter the phase of that name, of so many steps."""
        super().begin_phase(phase, steps)
        encoder, stand_still = self.core.encoder, phase == PRETRAIN and self.freezes_words
        words = encoder.embedding.tokens
        words.requires_grad_(not (stand_still or encoder.config.frozen_layers))
        self.core.begin_phase(steps, items_frozen=phase == FINETUNE_FROZEN_ITEMS)

    @property
    def rolls_out(self) -> bool:
        """A latent can re-enter where there is a predictor: RecFormer has none."""
        return self.core.predictor is not None

    @property
    def most_steps(self) -> int:
        """Of a rollout whose latents leave room for an item of the history."""
        core = self.core
        return min(core.encoder.config.max_item_positions, core.max_sequence_tokens) - 1

    def rollout(
        self, histories: PackedHistories, steps: int, projection: str, items: int | None = None
    ) -> Iterator[RolloutStep]:
        """Predict the next item, let it re-enter, predict the one after it.

        A head is told of the items that earlier steps ranked first as if they had been met.

        Args:
            histories: ``B`` of them, with ``older`` items if a head is to know of these.
            steps: 1 to ``most_steps``.
            projection: of what re-enters, see ``rollout.PROJECTIONS``.
            items: ids below this one may be chosen; ``None``: all.
        """
        latents, met, end = list[Tensor](), histories, items or self.n_items
        table = self.core.candidate_vectors()[1:end]
        for step in range(steps):
            vectors = self.core.encode_histories(histories, latents)
            cosines = self.core.cosines_of(vectors)
            scores = self.with_head(cosines, met)
            best = 1 + scores[:, 1:end].topk(1, dim=1).indices[:, 0].cpu()
            made = RolloutStep(cosines, scores, best)
            yield made
            if step + 1 < steps:
                logits = scores[:, 1:end] / (1 if self.head else self.temperature)
                latents.append(pulled_back(vectors, logits, table, projection))
                met = met.followed_by(made.best, self.max_seq_length)

    def kept_from_start(self, weights: Mapping[str, Tensor], same_items: bool) -> tuple[str, ...]:
        """As of a head; and the map of latents that re-enter, if the checkpoint has none.

        Raises:
            ValueError: for a part that the checkpoint has and this model has not.
        """
        kept, ours = super().kept_from_start(weights, same_items), self.core.reentry is not None
        theirs = any(name.startswith("core.reentry.") for name in weights)
        if theirs and not ours:
            steps = self.core.objective.rollout_steps
            allowed = "allowed with this checkpoint, which was trained to roll out: 2 or more"
            raise ValueError(f"rollout_steps is {steps}; {allowed}")
        return (*kept, "core.reentry.*") if ours and not theirs else kept

    def prepare_run_folder(self, folder: Path) -> None:
        """Keep tokenizer and architecture beside the weights: together they encode any text."""
        save_starting_point(folder, self.core.sentences.tokenizer, self.core.encoder.config)


class RecFormer(JEPA4Rec):
    """JEPA4Rec without target encoder, predictor and mapping loss (Li et al. 2023, 2305.13731).

    It is pre-trained by L_PT = L_IIC + lambda L_MLM (RecFormer, Eq. 10: the item-item contrastive
    and the masked language modelling task), then finetuned in two stages (Algorithm 1).

    Args:
        config: a RecBole config with the keys of ``properties/model/RecFormer.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    settings = RecFormerSettings
