"""LlamaRec as a RecBole sequential model (Yue et al. 2023, arXiv 2311.02089)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import PartlyOnCPU, sent
from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.language_model_settings import LlamaRecSettings
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import PhasedModel
from recbole_jepa4rec.model.language_model import Verbaliser, finetuned_language_model
from recbole_jepa4rec.model.loss import zero_of
from recbole_jepa4rec.model.reranking import (
    Retriever,
    had_before,
    rerank,
    retrieve,
    training_candidates,
)
from recbole_jepa4rec.text.ranking_prompt import RankingPrompt


class LlamaRec(PhasedModel, PartlyOnCPU):
    """A retriever's best items, ordered anew by a language model that reads their titles.

    The ranker is a causal language model with LoRA weights, asked for the letter of one candidate;
    it learns to tell the next item from sampled negatives by the cross-entropy over the letters'
    logits, or by its own next-token loss, as the authors' code (section 3.3, ``answer_loss``). All
    other items follow in the retriever's order, so that the ranking is full.

    Departs from the paper in the wording of the default prompt and in the default loss, both keys,
    and in that an epoch has one target a user.

    LoRA weights alone are saved; language model and retriever are named by the config, the
    retriever's weights are known by their digest.

    Args:
        config: a RecBole config with the keys of ``properties/model/LlamaRec.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
        retriever: trained on the same data; the run finds it, or trains it first.

    Raises:
        ValueError: for a setting that does not fit; names it.
    """

    needs_retriever = True
    training_targets = "random"
    loss_weights = {"letter": 1.0}
    on_cpu = ("retriever_digest",)
    retriever_digest: Tensor

    def __init__(self, config: Any, dataset: Any, retriever: Retriever | None = None) -> None:
        super().__init__(config, dataset)
        if retriever is None:
            raise ValueError("LlamaRec needs a retriever, which RecBole's own scripts do not find")
        settings = LlamaRecSettings.of(config)
        self.seed = settings.seed
        self.num_candidates = settings.num_candidates
        self.answer_loss, self.filters_history = settings.answer_loss, settings.filter_history
        self.tokens_per_batch = settings.tokens_per_batch
        self.language_model_name = Path(settings.language_model).name
        self.retriever = retriever
        self.prompt, self.verbaliser = _ranker(settings, dataset, config["device"])
        # of the retriever that these weights were trained beside; zeros before there is one
        self.register_buffer("retriever_digest", torch.zeros(32, dtype=torch.uint8))

    @classmethod
    def refuse_settings(cls, config: Any, dataset: Any) -> None:
        """Make the ranker, in vain, rather than refuse it when its retriever has been trained."""
        _ranker(LlamaRecSettings.of(config), dataset, config["device"])

    @property
    def label(self) -> str:
        """What the model is called in tables."""
        return f"LlamaRec ({self.language_model_name}, retriever {self.retriever.label})"

    @property
    def reads_whole_history(self) -> bool:
        """Where a history's items leave the ranking, those that the window has cut off do too."""
        return self.filters_history

    @property
    def item_tokens(self) -> Tensor:
        """Tokens of a prompt with one item as history, ``[N]`` on the CPU.

        Summed over a longer history they exceed what its prompt takes; ``max_sequence_tokens``
        bounds both.
        """
        return self.prompt.title_tokens + self.prompt.fixed_tokens

    @property
    def tokens_seen(self) -> int:
        """Tokens that the language model has read so far."""
        return self.verbaliser.tokens_seen

    def begin_phase(self, phase: str, steps: int) -> None:
        """Training begins, beside this retriever."""
        super().begin_phase(phase, steps)
        self.retriever_digest.copy_(self.retriever.digest)

    def losses(self, histories: PackedHistories) -> tuple[Tensor, ...]:
        """Cross-entropy of the true item's letter among those of the candidates (section 3.3).

        With ``answer_loss`` "vocabulary", of letter and end token among all tokens. It is this
        process's part of that of all processes' histories.
        """
        targets = histories.targets
        if len(targets) == 0:
            trained = next(weight for weight in self.parameters() if weight.requires_grad)
            return (processes.shard_of_mean(zero_of(trained), 0),)
        keys = derive(self.seed, self.epoch, histories.users, targets)
        candidates, place = training_candidates(
            targets, histories.padded(), self.n_items, self.num_candidates, keys
        )
        prompts = self.prompt.encode(_items_of(histories), candidates.tolist())
        if self.answer_loss == "vocabulary":
            end = self.prompt.tokenizer.eos_token_id
            loss = self.verbaliser.answer_loss(prompts, place, end)
        else:
            logits = self.verbaliser(prompts)
            loss = F.cross_entropy(logits, sent(place, logits.device))
        return (processes.shard_of_mean(loss, len(targets)),)

    @torch.no_grad()
    def scores(self, histories: PackedHistories) -> Tensor:
        """Scores of all items, ``[B, N]``: the retriever's, but for the items it retrieves.

        These come first, in the order of their letters' logits; the padding item has -inf. With
        ``filter_history`` no item of the history is retrieved.

        Raises:
            ValueError: if the weights were trained beside another retriever.
        """
        digest = self.retriever_digest
        if digest.any() and not torch.equal(digest, self.retriever.digest):
            raise ValueError(
                "LlamaRec's weights were trained beside another retriever than "
                f"{self.retriever.folder!r} holds"
            )
        scores = self.retriever.scores(histories)
        open_to_all = scores
        if self.filters_history:
            had = sent(had_before(histories, self.n_items), scores.device)
            open_to_all = scores.masked_fill(had, -torch.inf)
        items, retrieved = retrieve(open_to_all, self.num_candidates)
        shown = torch.where(retrieved, items, 0).tolist()  # the retrieved ones stand first
        pools = [[item for item in row if item] for row in shown]
        prompts = self.prompt.encode(_items_of(histories), pools)
        logits = self.verbaliser.in_batches(prompts, self.tokens_per_batch)
        return rerank(scores, items, retrieved, logits)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights that are trained, and the retriever's digest; no frozen weight."""
        kept = {name for name, weight in self.named_parameters() if weight.requires_grad}
        state = super().state_dict(*args, **kwargs)
        for name in [name for name in state if name not in {*kept, "retriever_digest"}]:
            del state[name]
        return state


def _ranker(
    settings: LlamaRecSettings, dataset: Any, device: torch.device
) -> tuple[RankingPrompt, Verbaliser]:
    """What writes the prompts, and what answers them; refuses a setting that does not fit."""
    items = dataset.item_num - 1
    if settings.num_candidates > items:
        raise ValueError(
            f"num_candidates is {settings.num_candidates}; allowed: 2 to {items}, the items in "
            "the data set"
        )
    titles = _titles(dataset.item_text, settings.title_field)
    language_model, tokenizer = finetuned_language_model(settings.language_model, settings, device)
    if settings.answer_loss == "vocabulary" and tokenizer.eos_token_id is None:
        raise ValueError(
            f"answer_loss is 'vocabulary', and language_model {settings.language_model!r} has no "
            "end token; allowed: letters"
        )
    prompt = RankingPrompt(
        tokenizer,
        titles,
        settings.num_candidates,
        settings.max_title_tokens,
        settings.max_history_titles,
        settings.max_sequence_tokens,
        settings.prompt_format,
    )
    return prompt, Verbaliser(language_model, prompt.letters)


def _titles(item_text: Any, field: str | None) -> list[str]:
    """What the prompts call every internal item id; refuses an attribute that no item has."""
    field = field or item_text.columns[0]
    if field not in item_text.columns:
        raise ValueError(f"title_field {field!r} is none of {', '.join(item_text.columns)}")
    titles = item_text[field].tolist()
    if not any(titles):
        raise ValueError(f"title_field {field!r} is empty for every item")
    return titles


def _items_of(histories: PackedHistories) -> list[list[int]]:
    """Items of each history, oldest first."""
    parts = histories.items.split(histories.lengths.tolist())
    return [part.tolist() for part in parts]
