"""The settings of models around a causal language model: LLMJEPA and LlamaRec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recbole_jepa4rec.config.run_settings import PhasedSettings
from recbole_jepa4rec.config.sentence_settings import ItemTextSettings
from recbole_jepa4rec.config.settings import (
    AtLeastTwo,
    AtLeastZero,
    Count,
    Settings,
    Share,
    ShareBelowOne,
    Whole,
)


class LanguageModelSettings(Settings):
    """Of a model that finetunes a causal language model by low-rank weights."""

    language_model_precision: Literal["fp32", "bf16", "fp16", "int8"] | None = None
    """fp32, bf16, fp16, int8 (on a GPU, with bitsandbytes): what its frozen weights are held in;
    None: fp32, on a GPU bf16."""
    gradient_checkpointing: bool | None = None
    """Whether a step computes each layer again on its way back instead of holding what it said: of
    7 billion weights about 30 GB instead of 150; None: on a GPU."""
    lora_r: Count = 8
    """Rank of the trained weights."""
    lora_alpha: Count = 32
    """They are scaled by lora_alpha / lora_r."""
    lora_dropout: ShareBelowOne = 0.05
    """Of what they read."""
    lora_target_modules: list[str] | str = ["q_proj", "v_proj"]
    """Ends of the names of the layers that get them."""


class LLMJEPASettings(ItemTextSettings, LanguageModelSettings):
    """Of LLMJEPA."""

    language_model: str | None = None
    """Folder or hub name of a causal language model, which learns by LoRA; None: one from
    nothing, of the shape below."""
    hidden_size: Count = 64
    """D."""
    num_layers: Count = 1
    """Transformer layers."""
    num_heads: Count = 2
    """Attention heads."""
    intermediate_size: Count = 128
    """Width of the feed-forward layers."""
    lora_r: Count = 16
    training_targets: Literal["all_prefixes"] = "all_prefixes"
    """all_prefixes: a history ends at each item, which the one after it follows."""

    next_token_weight: AtLeastZero = 1.0
    """gamma, of the cross-entropy of the next item's tokens after the history."""
    jepa_weight: AtLeastZero = 0.1
    """lambda, of the distance between what the history predicts and what the next item is."""
    jepa_distance: Literal["cosine", "squared", "infonce"] = "cosine"
    """cosine: 1 - cosine; squared: mean over the dimensions; infonce: softmax of cosine / tau among
    the next items of the batch."""
    jepa_dropout: ShareBelowOne = 0.0
    """Share of the steps of pre-training that leave it out."""
    predictor_tokens: Whole = 1
    """k, tokens behind a history that turn what it says into what it predicts."""
    stop_gradient: bool = False
    """Whether the next item's vector is a target without gradient."""

    max_attribute_tokens: AtLeastTwo = 16
    vocab_size: Annotated[int, Field(ge=10, le=500_000)] = 4000
    items_per_step: Whole = 512
    tokens_per_batch: Count = 10240
    epochs: Whole = 8
    learning_rate: AtLeastZero = 0.003

    @model_validator(mode="after")
    def _has_one_language_model(self) -> LLMJEPASettings:
        named = self.language_model
        idle = ["hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size"]
        if named is None:
            idle = [*LanguageModelSettings.model_fields]
        self.refuse_idle(idle, "language_model")
        if named is None and not self.checkpoint:
            self.refuse_remainder("hidden_size", "num_heads", each=2)
        return self

    @model_validator(mode="after")
    def _learns_by_something(self) -> LLMJEPASettings:
        if self.pretrains and not (self.next_token_weight or self.jepa_weight):
            raise ValueError(
                "next_token_weight and jepa_weight are 0; allowed with pretrain_epochs: one above 0"
            )
        return self


class LlamaRecSettings(PhasedSettings, LanguageModelSettings):
    """Of LlamaRec."""

    retriever: str = "SASRec"
    """Model that is trained first, or the run folder of a trained one."""
    retriever_settings: dict[str, Any] = {}
    """Settings of a retriever that is trained first; else its own defaults."""
    retriever_time_ratio: Share = 0.5
    """Share of max_train_seconds that its training may use."""
    num_candidates: Annotated[int, Field(ge=2, le=26)] = 20
    """Items it retrieves, and candidates of a training prompt; 26 at most."""
    MAX_ITEM_LIST_LENGTH: Count = 50
    """Items of a history that the retriever reads, at most."""

    title_field: str | None = None
    """Attribute that names an item; None is the first text attribute."""
    max_history_titles: Count = 20
    """Titles of a history; older ones are left out."""
    max_title_tokens: Count = 32
    """Tokens of a title."""
    max_sequence_tokens: AtLeastTwo = 2048
    """Tokens of a prompt; past that the oldest titles are left out."""
    prompt_format: Literal["alpaca", "llamarec"] = "alpaca"
    """alpaca: with its preamble, a title on each line; llamarec: the authors', without it, the
    titles of a history numbered."""
    answer_loss: Literal["letters", "vocabulary"] = "letters"
    """letters: cross-entropy over those of the candidates; vocabulary: over all tokens, on the
    letter and the end token behind it."""

    language_model: str = "meta-llama/Llama-2-7b-hf"
    """Folder or hub name of a causal language model."""

    train_stage: Literal["finetune"] = "finetune"
    """finetune: there is no pre-training."""
    epochs: Whole = 10
    """At most; in each, one target a user."""
    frozen_items_epochs: Whole = 0
    """No items are there to freeze."""
    train_batch_size: Count = 16
    """Prompts a step, at most; tokens_per_batch bounds them too."""
    tokens_per_batch: Count = 32768
    """Tokens that the language model reads at once."""
    learning_rate: AtLeastZero = 0.0001
    """Peak."""
    stopping_step: Whole = 3
    train_neg_sample_args: dict[str, Any] | None = None
    """None: negatives are drawn where the prompts are made."""
