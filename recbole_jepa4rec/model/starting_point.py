"""Where training starts: from nothing, from a language model's weights, or from one of our runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas as pd
import tokenizers
from torch import Tensor

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.base.weight_files import read_description
from recbole_jepa4rec.model.encoder import EncoderConfig
from recbole_jepa4rec.model.weights import load_pretrained
from recbole_jepa4rec.text.tokenizer import load_tokenizer, save_tokenizer, train_wordpiece

ARCHITECTURE_KEYS = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
    "attention_window",
    "use_token_type",
    "training_targets",
)
TOKENIZER_FILE, ENCODER_FILE = "tokenizer.json", "encoder.json"
_TYPES: dict[Any, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "int | None": (int, type(None)),
}


@dataclass(frozen=True)
class StartingPoint:
    """A tokenizer, an architecture, and the weights of a language model if there are any."""

    tokenizer: tokenizers.Tokenizer
    encoder: EncoderConfig
    encoder_weights: dict[str, Tensor] | None = None
    mlm_head_weights: dict[str, Tensor] | None = None


def starting_point(config: Any, item_text: pd.DataFrame) -> StartingPoint:
    """Choose by the keys ``checkpoint`` and ``encoder_checkpoint``; with neither, from nothing.

    Raises:
        ValueError: if both keys are set, if a key typed by the user contradicts the
            checkpoint's architecture, or if its position tables are too short.
    """
    if config["checkpoint"] and config["encoder_checkpoint"]:
        raise ValueError(
            f"checkpoint={config['checkpoint']!r} and encoder_checkpoint="
            f"{config['encoder_checkpoint']!r} are both set; allowed: one of them"
        )
    if config["checkpoint"]:
        return _from_run(config)
    if config["encoder_checkpoint"]:
        return _from_language_model(config)
    return _from_nothing(config, item_text)


def save_starting_point(
    folder: Path, tokenizer: tokenizers.Tokenizer, encoder: EncoderConfig
) -> None:
    """Keep beside the weights what is needed to load them again."""
    save_tokenizer(tokenizer, folder / TOKENIZER_FILE)
    with atomic_write(folder / ENCODER_FILE) as file:
        file.write(json.dumps(asdict(encoder), indent=1).encode())


def _from_nothing(config: Any, item_text: pd.DataFrame) -> StartingPoint:
    tokenizer = train_wordpiece(_training_text(item_text), config["vocab_size"])
    encoder = EncoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_token_positions=config["max_sequence_tokens"],
        max_item_positions=config["MAX_ITEM_LIST_LENGTH"] + 1,
        dropout=config["dropout"],
        attention_dropout=config["attention_dropout"],
        **{key: config[key] for key in ARCHITECTURE_KEYS},
    )
    return StartingPoint(tokenizer, encoder)


def _training_text(item_text: pd.DataFrame) -> Iterable[str]:
    """Attribute names once for each item that has the attribute, as in its sentence, and values."""
    for name in item_text.columns:
        values = item_text[name][item_text[name] != ""]
        yield from values
        yield from [name.replace("_", " ")] * len(values)


def _from_language_model(config: Any) -> StartingPoint:
    pretrained = load_pretrained(
        config["encoder_checkpoint"],
        encoder_config=config["encoder_config"],
        attention_window=config["attention_window"],
        max_token_positions=config["max_sequence_tokens"],
        max_item_positions=config["MAX_ITEM_LIST_LENGTH"] + 1,
        dropout=config["dropout"],
        attention_dropout=config["attention_dropout"],
        use_token_type=config["use_token_type"],
        training_targets=config["training_targets"],
    )
    for note in pretrained.notes:
        getLogger().info(f"{config['encoder_checkpoint']}: {note}")
    _refuse_contradiction(config, pretrained.config, config["encoder_checkpoint"])
    return StartingPoint(
        _load_tokenizer(pretrained.tokenizer_source, pretrained.config),
        pretrained.config,
        pretrained.encoder_state,
        pretrained.mlm_head_state,
    )


def _from_run(config: Any) -> StartingPoint:
    path = Path(config["checkpoint"])
    folder = path if path.is_dir() else path.parent
    for name in (TOKENIZER_FILE, ENCODER_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"checkpoint={config['checkpoint']}: no {name} beside the weights; expected the "
                "run folder of a text model"
            )
    encoder = _read_encoder(folder / ENCODER_FILE)
    if config["training_targets"] != encoder.training_targets:
        raise ValueError(
            f"training_targets={config['training_targets']}; the checkpoint {folder} reads "
            f"histories as training_targets={encoder.training_targets} does, write that"
        )
    _refuse_contradiction(config, encoder, config["checkpoint"])
    for key, needed, held in (
        ("max_sequence_tokens", config["max_sequence_tokens"], encoder.max_token_positions),
        ("MAX_ITEM_LIST_LENGTH", config["MAX_ITEM_LIST_LENGTH"], encoder.max_item_positions - 1),
    ):
        if needed > held:
            raise ValueError(f"{key}={needed}; the checkpoint {folder} allows at most {held}")
    encoder = replace(
        encoder, dropout=config["dropout"], attention_dropout=config["attention_dropout"]
    )
    return StartingPoint(_load_tokenizer(folder / TOKENIZER_FILE, encoder), encoder)


def _read_encoder(file: Path) -> EncoderConfig:
    """The shape that ``save_starting_point`` wrote."""
    described = read_description(file)
    known = {field.name: field for field in fields(EncoderConfig)}
    faults = [f"{name} is unknown" for name in described if name not in known]
    for name, field in known.items():
        if name in described and type(described[name]) not in _TYPES[field.type]:
            faults.append(f"{name} is {described[name]!r} (allowed: {field.type})")
        elif name not in described and field.default is MISSING:
            faults.append(f"{name} is missing")
    if faults:
        raise ValueError(f"{file} describes no encoder of ours: {'; '.join(faults[:3])}")
    try:
        return EncoderConfig(**described)
    except ValueError as error:
        raise ValueError(f"{file} describes no encoder of ours: {error}") from None


def _load_tokenizer(source: str | Path, encoder: EncoderConfig) -> tokenizers.Tokenizer:
    """The tokenizer that belongs to an encoder, whose table has a row for each token."""
    tokenizer = load_tokenizer(source)
    largest = max(tokenizer.get_vocab().values())
    if largest >= encoder.vocab_size:
        raise ValueError(
            f"the tokenizer of {source} has ids up to {largest}; its encoder has "
            f"{encoder.vocab_size} token vectors"
        )
    return tokenizer


def _refuse_contradiction(config: Any, encoder: EncoderConfig, source: str) -> None:
    """The checkpoint's architecture wins over defaults, but not over what the user asked for."""
    for key in ARCHITECTURE_KEYS:
        asked = config[key] != config.internal_config_dict[key]
        if asked and config[key] != getattr(encoder, key):
            raise ValueError(
                f"{key}={config[key]} contradicts {source}, which has {getattr(encoder, key)}"
            )
