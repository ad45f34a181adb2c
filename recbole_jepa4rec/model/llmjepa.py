"""LLM-JEPA as a RecBole sequential model (after Huang, LeCun and Balestriero 2025, 2509.14252)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.config.language_model_settings import LLMJEPASettings
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.language_encoder import (
    LanguageEncoder,
    encoder_from_nothing,
    encoder_of_language_model,
)
from recbole_jepa4rec.model.loss import contrastive_loss, mapping_loss, mlm_loss, zero_of
from recbole_jepa4rec.model.objective import RankingObjective
from recbole_jepa4rec.model.ranking_head import Entries, Queries, ranking_head
from recbole_jepa4rec.model.sentence_model import SentenceModel
from recbole_jepa4rec.model.sentence_ranker import SentenceRanker
from recbole_jepa4rec.model.starting_point import of_run_or_nothing, save_starting_point
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch, with_tokens_behind


@dataclass(frozen=True, kw_only=True)
class TwoViews(RankingObjective):
    """What is learnt of a history and its next item; ``LLMJEPASettings`` says what each means."""

    next_token_weight: float
    jepa_weight: float
    jepa_distance: str
    jepa_dropout: float
    stop_gradient: bool

    @property
    def loss_weights(self) -> dict[str, float]:
        """The terms of L and their weights, without those of weight zero."""
        weights = {"next_token": self.next_token_weight, "jepa": self.jepa_weight}
        return {name: weight for name, weight in weights.items() if weight}


class LLMJEPA(SentenceModel):
    """RecBole's shell around a causal language model.

    It is pre-trained by L = gamma CE + lambda d(predictor(h_history), h_item): the cross-entropy of
    the next item's tokens after the history, and the distance of two views, what the history
    predicts and what the next item is by itself, each the last layer's state at its end. Then it is
    finetuned to rank by a softmax over all items, as JEPA4Rec is.

    Departs from the authors' code, which reads text and code of one program: all histories of a
    user that end at an item share one causal pass, in which later items see the predictor's tokens
    of earlier ones.

    Args:
        config: a RecBole config with the keys of ``properties/model/LLMJEPA.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    settings = LLMJEPASettings
    core: LanguageModelJEPA

    def made_core(
        self, settings: LLMJEPASettings, dataset: Any, device: torch.device
    ) -> LanguageModelJEPA:
        """The core that settings ask for, each of its parts made here."""
        name, special = settings.language_model, None
        self.language_model_name = None if name is None else Path(name).name
        if name is None:
            tokenizer, shape = of_run_or_nothing(settings, dataset.item_text)
            encoder = encoder_from_nothing(shape, settings.predictor_tokens)
        else:
            tokenizer, special, encoder = encoder_of_language_model(name, settings, device)
        width = encoder.config.hidden_size
        return LanguageModelJEPA(
            sentences=ItemSentences.of(settings, dataset.item_text, tokenizer, special),
            encoder=encoder,
            objective=TwoViews.of(settings),
            max_sequence_tokens=settings.max_sequence_tokens,
            tokens_per_batch=settings.tokens_per_batch,
            head=ranking_head(settings, self.max_seq_length, dataset, width),
        )

    @property
    def label(self) -> str:
        """What tables call the model: its language model, and the weight and kind of the distance.

        Where there is no such weight it is a language model alone.
        """
        aim = self.core.objective
        named = self.language_model_name or "from nothing"
        views = "no JEPA term"
        if aim.jepa_weight:
            views = f"{aim.jepa_distance} {aim.jepa_weight:g}"
            views += ", stop-gradient" * aim.stop_gradient
        return f"LLMJEPA ({named}, {views}{self.head_label})"

    @property
    def item_tokens(self) -> Tensor:
        """Tokens that each item takes in a history, ``[N]`` on the CPU."""
        return super().item_tokens + len(self.core.encoder.predictor_ids)

    @property
    def weights_by_pace(self) -> Mapping[float, Sequence[nn.Parameter]]:
        """All that train, at one pace."""
        return {1.0: [weight for weight in self.parameters() if weight.requires_grad]}

    def prepare_run_folder(self, folder: Path) -> None:
        """Keep tokenizer and shape of a language model from nothing; another one is named."""
        if self.language_model_name is None:
            save_starting_point(folder, self.core.sentences.tokenizer, self.core.encoder.config)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights that are trained, each once, and buffers; no frozen weight."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        others = {name for name, _ in self.named_parameters(remove_duplicate=False)} - trained
        state = super().state_dict(*args, **kwargs)
        for name in others & state.keys():
            del state[name]
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = False, assign: bool = False) -> Any:
        """Take weights of ``state_dict``, which lacks the frozen ones."""
        return super().load_state_dict(state_dict, strict=False, assign=assign)


class LanguageModelJEPA(SentenceRanker):
    """A causal language model that reads items and histories, and what it learns by.

    The [CLS] of its sentences is what ends a text; ``max_sequence_tokens`` counts none of the
    tokens that serve as its predictor. Items are never frozen.
    """

    encoder: LanguageEncoder
    objective: TwoViews

    def pretrain_losses(
        self, histories: PackedHistories, keys: Tensor, step: Tensor | int = 0
    ) -> dict[str, Tensor]:
        """The terms that ``TwoViews.loss_weights`` names, unweighted; ``keys`` key nothing."""
        aim = self.objective
        longest = int(histories.lengths.max()) if len(histories) else 0
        followed = histories.followed_by(histories.targets, longest + 1)
        batch = self._read(followed)
        read = self._queries(followed, batch)
        kept = read.prefix < followed.lengths[read.row]  # an item follows
        queries, ends = Queries(histories, read.row[kept], read.prefix[kept]), batch.cls_index[kept]
        places = next_tokens(batch, self.encoder.predictor_ids.start)
        self.tokens_seen += batch.num_tokens
        states = self.encoder(batch, torch.cat([ends, places]))
        predicted, hidden = states.split([len(ends), len(places)])
        losses = {}
        if aim.next_token_weight:
            (labels,) = self._sent((batch.input_ids[places + 1],))
            loss = mlm_loss(*self.encoder.factors(hidden), labels)  # the same softmax
            losses["next_token"] = processes.shard_of_mean(loss, len(places))
        if aim.jepa_weight:
            losses["jepa"] = self._jepa_term(queries, predicted, step)
        return losses

    def _jepa_term(self, queries: Queries, predicted: Tensor, step: Tensor | int) -> Tensor:
        """The distance of what ``Q`` histories predict, ``[Q, D]``, and their next items."""
        aim = self.objective
        if uniform(derive(step, Draw.JEPA_DROPOUT)) < aim.jepa_dropout:
            return zero_of(predicted)
        wanted = self._wanted([queries])
        distinct = torch.unique(processes.all_gather(wanted))
        own = self._single(self._sentence_of(processes.shard(distinct)))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not aim.stop_gradient):
            items = processes.all_gather(self._encode(own))
        (positive,) = self._sent((torch.searchsorted(distinct, wanted),))
        added = self._added(queries, distinct) if aim.jepa_distance == "infonce" else []
        loss = jepa_loss(predicted, items, positive, aim.jepa_distance, aim.temperature, added)
        return processes.shard_of_mean(loss, len(wanted))

    def _read(self, histories: PackedHistories, left: int = 0) -> TokenBatch:
        """Histories with the predictor's tokens behind each item."""
        return with_tokens_behind(super()._read(histories, left), self.encoder.predictor_ids)


def jepa_loss(
    predicted: Tensor,
    items: Tensor,
    positive: Tensor,
    distance: str,
    temperature: float,
    added: Sequence[Entries] = (),
) -> Tensor:
    """How far predictions are from the vectors of the items that came.

    Args:
        predicted: ``[Q, D]``.
        items: vectors of distinct items, ``[C, D]``.
        positive: which of them came, ``[Q]``.
        distance: ``"cosine"``: 1 - cosine; ``"squared"``: mean square over the dimensions;
            ``"infonce"``: cross-entropy of cosine / tau among all ``C``.
        temperature: tau, of the last.
        added: to some of its logits, by a ranking head.

    Returns:
        Mean over ``Q``; zero for none.
    """
    if distance == "infonce":
        return contrastive_loss(predicted, items, positive, temperature, added=added)
    came = F.embedding(positive, items)
    if distance == "squared":
        return mapping_loss(predicted, came, "mean", stop_gradient=False)
    if len(predicted) == 0:
        return zero_of(predicted, items)
    return 1 - F.cosine_similarity(predicted.float(), came.float(), dim=1).mean()


def next_tokens(batch: TokenBatch, first: int) -> Tensor:
    """Places behind which a token of a next item stands, its end included, ``[M]``.

    As in the authors' code the first view is not learnt: of the oldest item no token is.

    Args:
        batch: histories and their targets, the predictor's tokens between them.
        first: id of the predictor's first token, which none is to foretell.
    """
    follows = (batch.item_positions[1:] > 1) & (batch.input_ids[1:] < first)
    return follows.nonzero()[:, 0]
