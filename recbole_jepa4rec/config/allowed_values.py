"""Which values a setting may have, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from recbole_jepa4rec.config.registry import LOSSES
from recbole_jepa4rec.config.syntax import SUBKEYS

WHOLE = {
    **dict.fromkeys(["epochs", "pretrain_epochs", "frozen_items_epochs", "stopping_step"], 0),
    **dict.fromkeys(["eval_step", "items_per_step"], 0),
    **{"save_step": 1, "nproc": 1, "group_offset": 0},
    **dict.fromkeys(["train_batch_size", "pretrain_batch_size", "eval_batch_size"], 1),
    **dict.fromkeys(["hidden_size", "num_layers", "num_heads", "intermediate_size"], 1),
    **dict.fromkeys(["MAX_ITEM_LIST_LENGTH", "tokens_per_batch", "accumulation_steps"], 1),
    **dict.fromkeys(["max_attribute_tokens", "max_sequence_tokens", "num_candidates"], 2),
    **dict.fromkeys(["max_title_tokens", "max_history_titles", "lora_r", "lora_alpha"], 1),
    **dict.fromkeys(["n_layers", "n_heads", "n_experts", "code_digits", "sinkhorn_iterations"], 1),
    **{"vocab_size": 10, "code_values": 2, "max_text_tokens": 3, "permutation_epochs": 0},
}
"""Whole numbers and the least that each may be."""

SHARES = {
    **dict.fromkeys(["history_mask_ratio", "next_item_mask_ratio", "warmup_ratio"], "to 1"),
    **dict.fromkeys(["ema_momentum", "ema_final_momentum", "pretrain_time_ratio"], "to 1"),
    **dict.fromkeys(["dropout", "attention_dropout", "pretrain_validation_ratio"], "to below 1"),
    **dict.fromkeys(["hidden_dropout_prob", "attn_dropout_prob"], "to below 1"),
    **dict.fromkeys(["adaptor_dropout_prob", "word_drop_ratio"], "to below 1"),
    **dict.fromkeys(["item_drop_ratio", "item_drop_share", "code_replacement_ratio"], "to 1"),
    **{"lora_dropout": "to below 1", "retriever_time_ratio": "to 1"},
}
"""Numbers from 0, and where they end."""

RATES = ("learning_rate", "pretrain_learning_rate", "weight_decay", "sequence_sequence_weight")

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
"""RecBole takes any other for adam."""

LEVELS = ("debug", "info", "warning", "error", "critical")


def refuse_values(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check the value of every key that a default makes a number, a switch or one of ours.

    Raises:
        ValueError: for the first value that cannot be used; says what is allowed.
    """
    for key, default in defaults.items():
        value = settings[key]
        if isinstance(default, bool) and not isinstance(value, (bool, type(None))):
            raise ValueError(f"{key} {value!r} must be True or False")
        if _is_number(default) and not _is_number(value):
            raise ValueError(f"{key} {value!r} must be a number")
        fits, allowed = (_NUMBERS if _is_number(default) else _OTHERS).get(key, (None, ""))
        if fits and not fits(value):
            raise ValueError(f"{key} {value!r} must be {allowed}")
    if settings.get("transform") == "mask_itemseq":
        _refuse_no_mask(settings)


def _refuse_no_mask(settings: Mapping[str, Any]) -> None:
    """RecBole's BERT4Rec masks at most this share of the longest history, rounded down."""
    ratio, items = settings["mask_ratio"], settings["MAX_ITEM_LIST_LENGTH"]
    if int(ratio * items) < 1:
        raise ValueError(f"mask_ratio {ratio} of MAX_ITEM_LIST_LENGTH {items} masks no item")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _is_positive(value: Any) -> bool:
    return value is None or (_is_number(value) and value > 0)


def _is_window(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 2 and value % 2 == 0)


def _is_clipping(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    return _is_number(value.get("max_norm")) and set(value) <= SUBKEYS["clip_grad_norm"]


def _is_load_col(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    return all(names == "*" or _is_names(names) for names in value.values())


def _is_intervals(value: Any) -> bool:
    """Whether RecBole can parse ``[A,B];(C,D)``, and no interval ends before it begins."""
    try:
        for part in str("[0,inf)" if value is None else value).split(";"):
            first, *inside, last = [*part.strip()]
            left, right = map(float, "".join(inside).split(","))
            if first not in "[(" or last not in "])" or not left <= right:
                return False
    except ValueError:
        return False
    return True


_Rule = tuple[Callable[[Any], bool], str]


def _whole(least: int) -> _Rule:
    return lambda x: type(x) is int and x >= least, f"a whole number from {least}"


_count_or_none: _Rule = (
    lambda x: x is None or (type(x) is int and x >= 1),
    "null or a whole number from 1",
)


def _share(end: str) -> _Rule:
    return lambda x: 0 <= x < 1 or (x == 1 and end == "to 1"), f"a number from 0 {end}"


_NUMBERS: dict[str, _Rule] = {
    **{key: _whole(least) for key, least in WHOLE.items()},
    **{key: _share(end) for key, end in SHARES.items()},
    "seed": (lambda x: type(x) is int and 0 <= x < 2**32, f"a whole number from 0 to {2**32 - 1}"),
    **dict.fromkeys(RATES, (lambda x: x >= 0, "a number from 0")),
    **dict.fromkeys(
        ["score_memory_mib", "pretrain_memory_mib"], (_is_positive, "a positive number")
    ),
}
"""Looked at where the default is a number; RecBole's models use some of these names otherwise."""

_OTHERS: dict[str, _Rule] = {
    **dict.fromkeys(["checkpoint_steps", "world_size", "port"], _count_or_none),
    "max_train_seconds": (_is_positive, "a positive number"),
    "attention_window": (_is_window, "null or an even whole number from 2"),
    "clip_grad_norm": (_is_clipping, "null or a mapping with the number max_norm"),
    "loss_type": (lambda x: x in LOSSES, f"one of {', '.join(LOSSES)}"),
    "learner": (lambda x: str(x).lower() in LEARNERS, f"one of {', '.join(LEARNERS)}"),
    "state": (lambda x: str(x).lower() in LEVELS, f"one of {', '.join(LEVELS)}"),
    "load_col": (_is_load_col, "null or a mapping from a file's suffix to '*' or a list of names"),
    "item_text_fields": (
        lambda x: x is None or (bool(x) and _is_names([x] if isinstance(x, str) else x)),
        "null, a name or a list of names",
    ),
    **dict.fromkeys(
        ("user_inter_num_interval", "item_inter_num_interval"),
        (_is_intervals, "an interval such as '[5,inf)'"),
    ),
}
