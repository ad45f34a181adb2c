"""LlamaRec as a RecBole sequential model (Yue et al. 2023, arXiv 2311.02089)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.evaluation.reranking import rerank, retrieve, training_candidates
from recbole_jepa4rec.model.language_model import PRECISIONS, add_lora, load_language_model
from recbole_jepa4rec.model.loss import zero_of
from recbole_jepa4rec.model.verbaliser import Verbaliser
from recbole_jepa4rec.runner.retriever import (
    Retriever,
    is_folder,
    retriever_config,
    train_retriever,
)
from recbole_jepa4rec.text.ranking_prompt import LETTERS, RankingPrompt


class LlamaRec(SequentialRecommender):
    """A retriever's best items, ordered anew by a language model that reads their titles.

    The retriever is any sequential model: one out of a run folder, or one that is trained first,
    into ``<run_dir>/retriever``. The ranker is a causal language model with LoRA weights, asked
    for the letter of one candidate; it learns to tell the next item from sampled negatives by the
    cross-entropy over the letters' logits (section 3.3). All other items follow in the retriever's
    order, so that the ranking is full.

    LoRA weights alone are saved; language model and retriever are named by the config, the
    retriever's weights are known by their digest.

    Args:
        config: a RecBole config with the keys of ``properties/model/LlamaRec.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.

    Raises:
        ValueError: for a setting that does not fit; names it.
    """

    input_type = InputType.POINTWISE
    trains_all_prefixes = False
    loss_weights = {"letter": 1.0}
    retriever_digest: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        _check(config, self.n_items)
        self.config, self.dataset, self.epoch = config, dataset, 0
        self.num_candidates = config["num_candidates"]
        titles = _titles(dataset.item_text, config["title_field"])
        self.retriever = self._find_retriever()
        language_model, tokenizer = load_language_model(
            config["language_model"], config["language_model_precision"]
        )
        self.prompt = RankingPrompt(
            tokenizer,
            titles,
            self.num_candidates,
            config["max_title_tokens"],
            config["max_history_titles"],
            config["max_sequence_tokens"],
        )
        language_model = add_lora(
            language_model,
            rank=config["lora_r"],
            alpha=config["lora_alpha"],
            dropout=config["lora_dropout"],
            target_modules=config["lora_target_modules"],
        )
        self.verbaliser = Verbaliser(language_model, self.prompt.letters)
        # of the retriever that these weights were trained beside; zeros before there is one
        self.register_buffer("retriever_digest", torch.zeros(32, dtype=torch.uint8))

    @property
    def label(self) -> str:
        """What the model is called in tables."""
        name = Path(self.config["language_model"]).name
        retriever = self.retriever.label if self.retriever else self.config["retriever"]
        return f"LlamaRec ({name}, retriever {retriever})"

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
        """Training begins: of the retriever, where that is still to come, then of this model."""
        self.retriever_digest.copy_(self._ready_retriever().digest)

    def begin_epoch(self, epoch: int) -> None:
        """Number the epoch, which keys its random draws."""
        self.epoch = epoch

    def begin_step(self, step: int) -> None:
        """Nothing depends on the step's number."""

    def weights_moved(self) -> None:
        """Nothing is kept that depends on the weights."""

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """Cross-entropy of the true item's letter among those of the candidates (section 3.3).

        It is this process's part of that of all processes' rows.
        """
        targets = interaction[self.POS_ITEM_ID]
        if len(targets) == 0:
            trained = next(weight for weight in self.parameters() if weight.requires_grad)
            return (processes.shard_of_mean(zero_of(trained), 0),)
        keys = derive(self.config["seed"], self.epoch, interaction[self.USER_ID], targets)
        candidates, place = training_candidates(
            targets, interaction[self.ITEM_SEQ], self.n_items, self.num_candidates, keys
        )
        prompts = self.prompt.encode(self._histories(interaction), candidates.tolist())
        loss = F.cross_entropy(self.verbaliser(prompts), place)
        return (processes.shard_of_mean(loss, len(targets)),)

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item, ``[B]``."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    @torch.no_grad()
    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, ``[B, N]``: the retriever's, but for the items it retrieves.

        These come first, in the order of their letters' logits; the padding item has -inf.

        Raises:
            ValueError: if the weights were trained beside another retriever.
        """
        retriever = self._ready_retriever()
        digest = self.retriever_digest.cpu()
        if digest.any() and not torch.equal(digest, retriever.digest):
            raise ValueError(
                "LlamaRec's weights were trained beside another retriever than "
                f"{str(retriever.folder)!r} holds"
            )
        scores = retriever.scores(interaction)
        items, retrieved = retrieve(scores, self.num_candidates)
        counts = retrieved.sum(dim=1).tolist()  # the retrieved ones stand first
        pools = [row[:count] for row, count in zip(items.tolist(), counts, strict=True)]
        prompts = self.prompt.encode(self._histories(interaction), pools)
        logits = self.verbaliser.in_batches(prompts, self.config["tokens_per_batch"])
        return rerank(scores, items, retrieved, logits)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights that are trained, and the retriever's digest; no frozen weight."""
        kept = {name for name, weight in self.named_parameters() if weight.requires_grad}
        state = super().state_dict(*args, **kwargs)
        for name in [name for name in state if name not in {*kept, "retriever_digest"}]:
            del state[name]
        return state

    def _histories(self, interaction: Any) -> list[list[int]]:
        """Items of each row, oldest first."""
        lengths = interaction[self.ITEM_SEQ_LEN].tolist()
        rows = interaction[self.ITEM_SEQ].tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def _find_retriever(self) -> Retriever | None:
        """The retriever, or None where it is to be trained first.

        Raises:
            ValueError: if it cannot be found, or has nowhere to be trained.
        """
        name, config = self.config["retriever"], self.config
        if is_folder(name):
            return self._shared(Retriever(Path(name), config, self.dataset))
        if config["run_dir"] and processes.world_size() > 1:
            raise ValueError(
                f"retriever {name!r} would be trained first, by one process; allowed with "
                f"{processes.world_size()}: the run folder of a trained one"
            )
        if config["run_dir"]:
            retriever_config(config)  # refuses now what cannot be trained later
            return None
        if not config["checkpoint"]:
            raise ValueError(
                f"retriever {name!r} is trained inside a run folder, which this call has not; "
                "name the run folder of a trained one"
            )
        folder = Path(config["checkpoint"]) / "retriever"
        return self._shared(Retriever(folder, config, self.dataset))

    @staticmethod
    def _shared(retriever: Retriever) -> Retriever:
        """The same, its item vectors made by all processes before each ranks users of its own."""
        if processes.world_size() > 1 and hasattr(retriever.model, "item_vectors"):
            retriever.model.item_vectors()
        return retriever

    def _ready_retriever(self) -> Retriever:
        """The retriever, trained first if need be."""
        if self.retriever is None:
            folder = Path(self.config["run_dir"]) / "retriever"
            train_retriever(retriever_config(self.config), folder)
            self.retriever = Retriever(folder, self.config, self.dataset)
        return self.retriever


def _check(config: Any, num_items: int) -> None:
    """Refuse settings that do not fit together or are none of the words allowed."""
    if config["train_stage"] != "finetune":
        raise ValueError(f"train_stage is {config['train_stage']!r}; allowed: finetune")
    precision = config["language_model_precision"]
    if precision not in PRECISIONS:
        raise ValueError(
            f"language_model_precision is {precision!r}; allowed: {', '.join(PRECISIONS)}"
        )
    if not isinstance(config["retriever_settings"], dict):
        raise ValueError(
            f"retriever_settings is {config['retriever_settings']!r}; allowed: a mapping of keys"
        )
    most = min(len(LETTERS), num_items - 1)
    if config["num_candidates"] > most:
        reason = "letters" if most == len(LETTERS) else "items in the data set"
        raise ValueError(
            f"num_candidates is {config['num_candidates']}; allowed: 2 to {most}, the {reason}"
        )


def _titles(item_text: Any, field: str | None) -> list[str]:
    """What the prompts call every internal item id.

    Raises:
        ValueError: if there is no such attribute, or no item has it.
    """
    field = field or item_text.columns[0]
    if field not in item_text.columns:
        raise ValueError(f"title_field {field!r} is none of {', '.join(item_text.columns)}")
    titles = item_text[field].tolist()
    if not any(titles):
        raise ValueError(f"title_field {field!r} is empty for every item")
    return titles
