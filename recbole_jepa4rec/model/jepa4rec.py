"""JEPA4Rec as a RecBole sequential model (Nguyen and Le: JEPA4Rec; paper section 3)."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.model_settings import (
    ItemTextSettings,
    JEPA4RecSettings,
    SentenceSettings,
)
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import (
    FINETUNE,
    FINETUNE_FROZEN_ITEMS,
    PRETRAIN,
    RolloutStep,
)
from recbole_jepa4rec.model.encoder import depth_below
from recbole_jepa4rec.model.item_table import ItemTable
from recbole_jepa4rec.model.items_alone import FrozenOutputs
from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.model.moving_average import ExponentialMovingAverage, FixedCopy
from recbole_jepa4rec.model.objective import Objective, Predictor
from recbole_jepa4rec.model.packed_attention import refuse_where_not_possible
from recbole_jepa4rec.model.ranking_head import RankingHead, ranking_head
from recbole_jepa4rec.model.rollout import pulled_back
from recbole_jepa4rec.model.similarity_model import SimilarityModel
from recbole_jepa4rec.model.starting_point import save_starting_point, starting_point
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.tensor_cache import default_cache_dir
from recbole_jepa4rec.text.token_batch import ALL_PREFIXES, RANDOM


class JEPA4Rec(SimilarityModel):
    """RecBole's shell: reads the settings, builds the parts, hands them to the core.

    The core, a :class:`~recbole_jepa4rec.model.jepa.JointEmbeddingModel`, never sees a config. It
    is pre-trained by L_PT = L_S-I + lambda_1 L_MLM + lambda_2 L_map (paper 3.3), then finetuned
    (paper 3.4), at last with the item side frozen, as RecFormer does.

    Args:
        config: a RecBole config with the keys of ``properties/model/JEPA4Rec.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    settings: ClassVar[type[ItemTextSettings]] = JEPA4RecSettings

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings.of(config)
        self.seed, self.training_targets = settings.seed, settings.training_targets
        self.phase, self.epoch, self.step = FINETUNE, 0, 0
        self._resumed_epoch: int | None = None
        text = dataset.item_text
        self.temperature = settings.temperature
        head = functools.partial(
            ranking_head, settings, self.max_seq_length, dataset.histories, text
        )
        self.core = self.made_core(settings, text, head, config["device"])

    def made_core(
        self,
        settings: ItemTextSettings,
        item_text: pd.DataFrame,
        head: Callable[[int], RankingHead | None],
        device: torch.device | str,
    ) -> JointEmbeddingModel:
        """The core that settings ask for; see ``joint_embedding_model``."""
        assert isinstance(settings, SentenceSettings)
        self.layer_decay, self.freezes_words = settings.layer_decay, settings.freeze_word_embeddings
        return joint_embedding_model(settings, item_text, head, device)

    @property
    def label(self) -> str:
        """What tables call the model, which name the targets of a pass (``training_targets``)."""
        targets = {RANDOM: "one random target", ALL_PREFIXES: "all prefixes"}
        return f"{type(self).__name__} ({targets[self.training_targets]}{self.head_label})"

    @property
    def head(self) -> RankingHead | None:
        """What is added to the cosines."""
        return self.core.head

    @property
    def fits_any_catalogue(self) -> bool:
        """Items are known by their text alone."""
        return True

    @property
    def item_tokens(self) -> Tensor:
        """Tokens that each item takes in a history, ``[N]`` on the CPU."""
        sentences = self.core.sentences
        tokens = sentences.sentence_lengths[sentences.sentence_of_item]
        return tokens + 1 if self.training_targets == ALL_PREFIXES else tokens  # each a [CLS]

    @property
    def weights_by_pace(self) -> Mapping[float, Sequence[nn.Parameter]]:
        """The encoder's layers move the slower the lower they are (``layer_decay``)."""
        layers, by_pace = self.core.encoder.config.num_layers, defaultdict[float, Any](list)
        for name, weight in self.named_parameters():
            depth = depth_below(name.removeprefix("core.encoder."), layers)
            by_pace[self.layer_decay**depth].append(weight)
        return by_pace

    @property
    def tokens_seen(self) -> int:
        """Tokens the context encoder has read so far, but for those of the item table."""
        return self.core.tokens_seen

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The loss terms of the current phase, in the order of :meth:`losses`."""
        aims = self.core.objective
        return aims.loss_weights if self.phase == PRETRAIN else aims.finetune_weights

    def begin_phase(self, phase: str, steps: int) -> None:
        """Enter the phase of that name, of so many steps."""
        self.phase = phase
        encoder, stand_still = self.core.encoder, phase == PRETRAIN and self.freezes_words
        words = encoder.embedding.tokens
        words.requires_grad_(not (stand_still or encoder.config.frozen_layers))
        self.core.begin_phase(steps, items_frozen=phase == FINETUNE_FROZEN_ITEMS)

    def begin_epoch(self, key: int) -> None:
        """Begin an epoch, whose random draws this keys, and make the item table it reads."""
        goes_on, self._resumed_epoch = key == self._resumed_epoch, None
        self.epoch = key
        if self.phase != PRETRAIN and self.core.reads_item_table and not goes_on:
            self.core.item_vectors()

    def begin_step(self, step: int) -> None:
        """Number the step within its epoch; the sampled items of finetuning depend on it."""
        self.step = step

    def weights_moved(self) -> None:
        """The optimizer has made a step."""
        super().weights_moved()
        self.core.weights_moved()

    def losses(self, histories: PackedHistories) -> tuple[Tensor, ...]:
        """Weighted terms of L_PT or L_FT, named by :attr:`loss_weights`."""
        keys = derive(self.seed, self.epoch, histories.users, histories.targets)
        step = derive(self.seed, self.epoch, self.step)
        pretrains = self.phase == PRETRAIN
        learn = self.core.pretrain_losses if pretrains else self.core.finetune_losses
        losses = learn(histories, keys, step)
        return tuple(weight * losses[name] for name, weight in self.loss_weights.items())

    def cosines(self, histories: PackedHistories) -> Tensor:
        """Cosine with every item, padding item included, ``[B, N]``."""
        return self.core.cosines(histories)

    @property
    def rolls_out(self) -> bool:
        """A latent can re-enter where there is a predictor: RecFormer has none."""
        return self.core.predictor is not None

    @property
    def most_steps(self) -> int:
        """Of a rollout."""
        return self.core.most_steps

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

    def item_vectors(self) -> Tensor:
        """Vectors of all distinct item sentences, ``[S, D]``."""
        return self.core.item_vectors()[self.core.sentences.used.start :]

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

    def resumable_state(self) -> dict[str, Any]:
        """What training goes on from: the weights, and the table that the epoch began with."""
        weights, table = self.state_dict(), self.core.table_of_epoch()
        return {"weights": weights, "item_table": table, "epoch": self.epoch}

    def load_resumable_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``resumable_state`` returned, in the same phase."""
        self.load_state_dict(state["weights"])
        if state["item_table"] is not None:
            self.core.item_table.hold(state["item_table"].to(self.core.encoder.device))
            self._resumed_epoch = state["epoch"]

    def prepare_run_folder(self, folder: Path) -> None:
        """Keep tokenizer and architecture beside the weights: together they encode any text."""
        save_starting_point(folder, self.core.sentences.tokenizer, self.core.encoder.config)


def joint_embedding_model(
    settings: SentenceSettings,
    item_text: pd.DataFrame,
    head: Callable[[int], RankingHead | None],
    device: torch.device | str = "cpu",
) -> JointEmbeddingModel:
    """The core that settings ask for, each of its parts built here.

    Args:
        settings: JEPA4Rec's; others have a fixed copy for a target encoder, and no predictor.
        item_text: one row an item, see ``ItemSentences.build``.
        head: makes what is added to the similarity, for item vectors of a width; ``None``: nothing.
        device: of the run.
    """
    cache_dir = Path(settings.cache_dir or default_cache_dir())
    tokenizer, encoder, mlm_head = starting_point(settings, item_text)
    at_once = encoder.config.attends_at_once(torch.device(device))
    refuse_where_not_possible(settings, at_once, torch.device(device))
    sentences = ItemSentences.build(
        item_text,
        tokenizer,
        max_attribute_tokens=settings.max_attribute_tokens,
        cache_dir=cache_dir,
        address=settings.address,
        sentence_format=settings.sentence_format,
    )
    if encoder.config.frozen_layers:
        outputs = FrozenOutputs(sentences, settings.max_sequence_tokens, cache_dir)
        encoder.keep_frozen_outputs(outputs)
    if encoder.config.whitening and not settings.checkpoint:
        encoder.to(device)
        table = ItemTable(sentences, settings.max_sequence_tokens, settings.tokens_per_batch)
        encoder.whiten(table.encode(encoder, sentences.used, shared=False))
    target_encoder, predictor = FixedCopy(encoder), None
    if isinstance(settings, JEPA4RecSettings):
        if settings.collapse_prevention == "ema":
            target_encoder = ExponentialMovingAverage(encoder, *settings.ema_schedule)
        predictor = Predictor(encoder.config.hidden_size)
    aims = {field.name for field in fields(Objective)}
    return JointEmbeddingModel(
        sentences=sentences,
        encoder=encoder,
        target_encoder=target_encoder,
        mlm_head=mlm_head,
        predictor=predictor,
        objective=Objective(**settings.model_dump(include=aims)),
        max_sequence_tokens=settings.max_sequence_tokens,
        tokens_per_batch=settings.tokens_per_batch,
        head=head(encoder.config.hidden_size),
    )
