"""The settings that every run has, and those of kinds of models: RecBole's, and ours in phases.

What several models have stands in a class above theirs, here or in the files beside.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from recbole_jepa4rec.config.protocol import (
    PROTOCOL,
    refuse_other_protocol,
    selecting_metrics,
    split_names,
)
from recbole_jepa4rec.config.settings import (
    AtLeastZero,
    Clipping,
    Count,
    Interval,
    Learner,
    Level,
    LoadCol,
    Names,
    Positive,
    Seed,
    Settings,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    ThreeWeights,
    TopK,
    Whole,
)

Precision = Literal["fp32", "bf16", "fp16"]
Stage = Literal["pretrain", "finetune", "both"]
Loss = Literal["CE", "BPR"]
"""Cross-entropy over all items, or one sampled negative a target."""

ATTRIBUTE_KEYS = ("item_attribute", "selected_features")
"""Keys of RecBole's models that name columns of ``.item``: one, or a list."""


class RecBoleSettings(Settings):
    """Keys of RecBole's for every model that we read as well, or check; with its defaults.

    The others are looked at in ``recbole_keys``.
    """

    seed: Seed = 2020
    """Random seed."""
    reproducibility: bool = True
    """Whether or not to make results reproducible."""
    state: Level = "INFO"
    """Logging level."""
    show_progress: bool = True
    """Whether or not to show the progress bar of every epoch."""
    use_gpu: bool = True
    """Whether or not to use GPU."""
    epochs: Whole = 300
    """The number of training epochs."""
    train_batch_size: Count = 2048
    """The training batch size."""
    learner: Learner = "adam"
    """The name of used optimizer."""
    learning_rate: AtLeastZero = 0.001
    """Learning rate."""
    weight_decay: AtLeastZero = 0.0
    """The weight decay value (L2 penalty) for optimizers."""
    clip_grad_norm: Clipping = None
    """The args of clip_grad_norm_ which will clip gradient norm of model."""
    train_neg_sample_args: dict[str, Any] | None = None
    """Negative sampling configuration for model training."""
    enable_amp: bool = False
    """Whether or not to use mixed precision training."""
    enable_scaler: bool = False
    """Whether or not to use GradScaler in mixed precision training."""
    eval_step: Whole = 1
    """The number of training epochs before an evaluation on the valid dataset."""
    stopping_step: Whole = 10
    """The threshold for validation-based early stopping."""
    eval_batch_size: Count = 4096
    """The evaluation batch size."""
    MAX_ITEM_LIST_LENGTH: Count = 50
    """Maximum length of each generated sequence."""
    load_col: LoadCol = {"inter": ["user_id", "item_id"]}
    """The suffix of atomic files: (list) field names to be loaded."""
    user_inter_num_interval: Interval = "[0,inf)"
    """User interval for filtering inter, such as [A,B] / [A,B) / (A,B) / (A,B]."""
    item_inter_num_interval: Interval = "[0,inf)"
    """Item interval for filtering inter, such as [A,B] / [A,B) / (A,B) / (A,B]."""
    rm_dup_inter: Literal["first", "last"] | None = None
    """Whether to remove duplicated user-item interactions."""
    benchmark_filename: Annotated[list[str] | None, BeforeValidator(split_names)] = None
    """List of pre-split user-item interaction suffix."""


class RunSettings(RecBoleSettings):
    """Keys that every run has beside RecBole's: ``properties/overall.yaml``."""

    eval_args: dict[str, Any] = {**PROTOCOL, "mode": "full"}
    """Leave one out in time order; every item is ranked."""
    metrics: Names = ["Recall", "NDCG", "MRR"]
    """Of those in docs/protocol.md, in any case; the uncut mrr is always there."""
    topk: TopK = [10]
    """Cut-offs, in items."""
    valid_metric: str = "NDCG@10"
    """Selects the best epoch on validation."""
    filter_history: bool = False
    """Whether items of the user's history leave the ranking."""
    train_fraction: ShareAboveZero = 1.0
    """Share of the users whose training parts are trained on, drawn by seed, the smaller within the
    larger; validation and test stay."""
    score_memory_mib: Positive | None = None
    """MiB that the scores of one evaluation batch may take; None: 256, of a GPU a sixteenth."""

    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of products of float32 on a GPU: highest; high and medium: of TF32, for speed."""

    max_train_seconds: Positive | None = None
    """Stop after the step under way; the best weights are tested."""
    checkpoint: str | None = None
    """Run folder or weights file to start from."""
    resume: str | None = None
    """Run folder to go on in, from its newest whole checkpoint."""
    checkpoint_steps: Count | None = None
    """Steps between checkpoints within an epoch; after each epoch there is one anyway."""

    nproc: Count = 1
    """Processes on this machine, one for each GPU."""
    ip: str = "localhost"
    """Machine that has the first of them."""
    port: Count | None = None
    """Where they meet; None is a free one."""
    world_size: Count | None = None
    """Processes on all machines; None is nproc."""
    group_offset: Whole = 0
    """Number of this machine's first process among them."""

    item_text_fields: Names | None = None
    """Columns of .item, in order; None is all text columns but the id."""
    cache_dir: str | None = None
    """Folder of tokenized items; None is the user's cache folder."""
    address: str | None = None
    """Ray cluster that tokenizes items, auto or HOST:PORT; None is this process."""

    runs_path: str = "runs"
    """A run writes <runs_path>/<dataset>/<model>/<stamp>-<id>."""
    run_dir: str | None = None
    """Folder to write instead."""
    log_mlflow: bool = False
    """Whether MLflow is told settings, curves and test metrics; RecBole's log_wandb does so with
    Weights & Biases."""

    @model_validator(mode="after")
    def _measures_by_the_protocol(self) -> RunSettings:
        """Refuse what the evaluation cannot honour."""
        refuse_other_protocol(self.eval_args)
        metrics = [self.metrics] if isinstance(self.metrics, str) else self.metrics
        topk = [self.topk] if isinstance(self.topk, int) else self.topk
        selecting = selecting_metrics(metrics, topk)
        if self.valid_metric.lower() not in selecting:
            allowed = ", ".join(selecting)
            cut_off = self.valid_metric.rpartition("@")[2]
            if self.valid_metric == type(self).model_fields["valid_metric"].default:
                raise ValueError(
                    f"topk {self.topk!r} with metrics {self.metrics!r} lacks valid_metric "
                    f"{self.valid_metric!r} (add {cut_off}, or give valid_metric: {allowed})"
                )
            raise ValueError(
                f"valid_metric {self.valid_metric!r} is not measured, or selects no model "
                f"(allowed: {allowed})"
            )
        return self


class UntrainedSettings(RunSettings):
    """Of a model that counts when it is made: Popularity, Markov and STAR."""

    epochs: Whole = 0
    """Nothing is trained: the model counts when it is made."""
    train_neg_sample_args: dict[str, Any] | None = None
    """No negative items are drawn."""


class CausalSettings(RunSettings):
    """Of RecBole's models that read a history from left to right: SASRec, GRU4Rec and others."""

    training_targets: Literal["all_prefixes", "rows"] = "all_prefixes"
    """all_prefixes: one pass over a history trains the item after each item; rows: RecBole's way, a
    row for each prefix. The loss is the same."""


class FeatureSettings(CausalSettings):
    """Of FDSA, SASRecF and GRU4RecF."""

    selected_features: list[str] | str | None = None
    """Item attributes; None is the text column of .item with the fewest distinct words."""


class S3RecSettings(CausalSettings):
    """Of S3Rec: both stages in one run, attributes from any data."""

    item_attribute: str | None = None
    """Item attribute; None is the text column of .item with the fewest distinct words."""
    train_stage: Stage = "both"
    """pretrain, finetune (with --checkpoint or pre_model_path), both."""
    pretrain_epochs: Whole = 5
    """Of pre-training; RecBole's 500 take days on a CPU."""
    pretrain_batch_size: Count = 256
    """Rows a step of pre-training, at most."""
    pretrain_memory_mib: Positive = 1024
    """MiB that the attributes of such a step may take; fewer rows share it where they take more."""
    pretrain_time_ratio: Share = 0.5
    """Share of max_train_seconds that pre-training may use when finetuning follows."""


class PhasedSettings(RunSettings):
    """Of a model that is trained in phases."""

    train_stage: Stage = "both"
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
