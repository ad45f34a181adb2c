"""What is looked at of the keys that RecBole's code alone reads, and of those it has given up."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from recbole_jepa4rec.config.registry import MODELS, has_loss_type, is_known
from recbole_jepa4rec.config.run_settings import ATTRIBUTE_KEYS, Loss
from recbole_jepa4rec.config.settings import (
    AtLeastZero,
    Count,
    LoadCol,
    Settings,
    ShareBelowOne,
    Switch,
    Whole,
    refusal,
)

RENAMED = {
    **dict.fromkeys(["neg_sampling", "training_neg_sample_args"], "train_neg_sample_args"),
    "training_neg_sample_num": "train_neg_sample_args.sample_num",
    "training_neg_sample_distribution": "train_neg_sample_args.distribution",
    "train_neg_sample_args.by": "train_neg_sample_args.sample_num",
    "train_neg_sample_args.strategy": "train_neg_sample_args.sample_num",
    "eval_setting": "eval_args",
    "group_by_user": "eval_args.group_by",
    **dict.fromkeys(["leave_one_num", "leave_one_mode", "split_ratio"], "eval_args.split"),
    **dict.fromkeys(["min_user_inter_num", "max_user_inter_num"], "user_inter_num_interval"),
    **dict.fromkeys(["min_item_inter_num", "max_item_inter_num"], "item_inter_num_interval"),
    **dict.fromkeys(["lowest_val", "highest_val", "equal_val", "not_equal_val"], "val_interval"),
    **dict.fromkeys(["drop_filter_field", "drop_preload_weight"], "unused_col"),
    "fields_in_same_space": "alias_of_item_id",
    "max_seq_length": "MAX_ITEM_LIST_LENGTH",
    **dict.fromkeys(["config_file", "config_file_list"], "config_files"),
}
"""Keys of older versions of RecBole, and what to write now."""

PICKLES = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")

THEIRS: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_layers", "n_heads", "num_layers", "save_step"), Count),
    **dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob"), ShareBelowOne),
    "worker": Annotated[int, Field(ge=0, le=1024)],
}
"""What RecBole's models may be given where their own default is a number; some have lists."""

OF_DATA: dict[str, Any] = {
    "gpu_id": str | int,
    "normalize_all": Switch,
    **dict.fromkeys(("unload_col", "unused_col"), LoadCol),
    **dict.fromkeys(("val_interval", "seq_len", "discretization"), dict[str, Any] | None),
    **dict.fromkeys(("normalize_field", "numerical_features"), list[str] | None),
    **dict.fromkeys(("alias_of_user_id", "alias_of_item_id"), list[str] | None),
}
"""What others may be given whose default does not tell."""

TRANSFORMS = ("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined")

DRAWING = ("FPMC", "TransRec", "DIN")
"""RecBole's models whose only loss needs negative items."""

DRAWING_FOR_NOTHING = ("SINE", "RepeatNet")
"""RecBole's models for which it draws them by cross-entropy too; others are refused by RecBole."""

IDLE = {
    "checkpoint_dir": "a run writes into one folder (write run_dir, or runs_path)",
    "metric_decimal_place": "metrics are written with all their digits",
    "valid_metric_bigger": "of every metric that selects a model more is better",
    **dict.fromkeys(
        ["kg_reverse_r", "entity_kg_num_interval", "relation_kg_num_interval"],
        "no model here reads a knowledge graph",
    ),
    **dict.fromkeys(
        ["alias_of_entity_id", "alias_of_relation_id"], "no model here reads a knowledge graph"
    ),
    "require_pow": "no sequential model reads it",
    "threshold": "no sequential model reads labels of interactions",
    "preload_weight": "no sequential model of RecBole reads it",
    "additional_feat_suffix": "no sequential model of RecBole reads further files",
}
"""Keys that no run reads, and why."""


class NegativeSettings(Settings):
    """What ``train_neg_sample_args`` holds."""

    distribution: Literal["uniform", "popularity"] | None = "uniform"
    """Of the drawn items; None draws none."""
    sample_num: Count = 1
    """Items for each target."""
    alpha: AtLeastZero = 1.0
    """Power of the popularity."""
    dynamic: bool = False
    """Whether the model ranks candidates, of which the best is taken."""
    candidate_num: Whole = 0
    """How many."""

    @model_validator(mode="after")
    def _has_candidates(self) -> NegativeSettings:
        if self.dynamic and not self.candidate_num:
            raise ValueError("candidate_num 0 must be a whole number from 1 where dynamic is True")
        return self


def refuse_theirs(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check keys that are RecBole's alone: by their defaults, or by what is known of them.

    Raises:
        ValueError: for the first value that cannot be used; says what is allowed.
    """
    for key, default in defaults.items():
        if key in PICKLES and settings[key]:
            raise ValueError(f"{key} is not supported: RecBole would pickle")
        if key == "loss_type":
            kind: Any = Loss
        elif key in OF_DATA:
            kind = OF_DATA[key]
        elif isinstance(default, bool):
            kind = Switch
        elif isinstance(default, (int, float)):
            kind = THEIRS.get(key, float)
        elif isinstance(default, str):
            kind = str | None
        else:
            continue
        try:
            _adapter(kind).validate_python(settings[key])
        except ValidationError:
            line = refusal(key, settings[key], _adapter(kind).json_schema())
            raise ValueError(line) from None


def refuse_transform(model: str, settings: Mapping[str, Any], default: str | None) -> None:
    """Check what becomes of a batch: models read what their own transformation makes.

    Args:
        model: its name.
        settings: of the run.
        default: the model's own ``transform``.

    Raises:
        ValueError: for another one, of a model that we know; for none that RecBole has; for a share
            of masked items that masks none.
    """
    transform = settings.get("transform")
    if transform != default and is_known(model):
        raise ValueError(f"transform {transform!r} must be {default!r}: {model} reads no other")
    if transform not in (None, *TRANSFORMS):
        raise ValueError(f"transform is {transform!r}; allowed: null, {', '.join(TRANSFORMS)}")
    if transform == "mask_itemseq":
        ratio, items = settings.get("mask_ratio"), settings["MAX_ITEM_LIST_LENGTH"]
        if not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise ValueError(f"mask_ratio {ratio!r} must be a number above 0 to 1")
        if int(ratio * items) < 1:
            raise ValueError(f"mask_ratio {ratio} of MAX_ITEM_LIST_LENGTH {items} masks no item")


def refuse_negatives(model: str, settings: Mapping[str, Any], given: bool) -> None:
    """Check how negative items are drawn, and that they are where a loss needs them, no other.

    Args:
        model: its name.
        settings: of the run.
        given: whether ``train_neg_sample_args`` is.

    Raises:
        ValueError: for a value that cannot be used, or a loss that does not go with it.
    """
    arguments, loss = settings.get("train_neg_sample_args"), settings.get("loss_type")
    try:
        drawn = NegativeSettings.of(arguments or {"distribution": None})
    except ValueError as error:
        raise ValueError(f"train_neg_sample_args.{error}") from error
    draws = drawn.distribution is not None
    if not draws and (model in DRAWING or (loss == "BPR" and model != "BERT4Rec")):
        whose = model if model in DRAWING else f"loss_type {loss}"
        raise ValueError(
            f"train_neg_sample_args is {arguments!r}, and {whose} needs negative items; allowed: "
            "distribution uniform or popularity"
        )
    by_entropy = loss == "CE" and has_loss_type(model) and model not in DRAWING_FOR_NOTHING
    if draws and given and (by_entropy or model in MODELS):
        whose = model if model in MODELS else "loss_type CE"
        raise ValueError(
            f"train_neg_sample_args {arguments!r} must be null: {whose} reads no drawn items"
        )


def refuse_idle(model: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse what a run would take and not read; a user's own class may read anything.

    Args:
        model: its name.
        settings: of the run.
        defaults: what they are where nothing is given.

    Raises:
        ValueError: for the first such key; says why it has no effect.
    """
    if not is_known(model):
        return
    for key, why in IDLE.items():
        if settings.get(key) != defaults.get(key):
            raise ValueError(f"{key} {settings[key]!r} has no effect: {why}")
    if model in MODELS and settings.get("shuffle") is False:
        raise ValueError(f"shuffle False has no effect: {model} draws by seed, epoch and user")
    reads_columns = model == "DIN" or any(key in defaults for key in ATTRIBUTE_KEYS)
    if reads_columns or settings.get("val_interval"):
        return
    before = defaults.get("load_col") or {}
    for suffix, names in (settings.get("load_col") or {}).items():
        if suffix != "inter" and names and names != before.get(suffix):
            raise ValueError(
                f"load_col.{suffix} {names!r} has no effect: {model} reads no columns of .{suffix}"
            )


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
