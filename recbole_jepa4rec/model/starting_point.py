"""Where training starts: from nothing, from a language model's weights, or from one of our runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from logging import getLogger
from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.base.weight_files import read_description
from recbole_jepa4rec.config.sentence_settings import (
    EncoderSettings,
    ItemTextSettings,
    SentenceSettings,
)
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.pretrained import load_pretrained
from recbole_jepa4rec.model.transformer import EncoderConfig, MLMHead
from recbole_jepa4rec.text.tokenizer import load_tokenizer, save_tokenizer, train_wordpiece

TOKENIZER_FILE, ENCODER_FILE = "tokenizer.json", "encoder.json"

FREE = ("dropout", "attention_dropout", "attention", "compile_layers", "frozen_layers")
"""Settings of the encoder that a checkpoint does not decide."""

READING = ("item_local_layers", "pooling", "whitening", "training_targets")
"""Settings that decide how a language model's layers are used."""


def starting_point(
    settings: SentenceSettings, item_text: pd.DataFrame
) -> tuple[Tokenizer, SentenceEncoder, MLMHead]:
    """What the keys ``checkpoint`` and ``encoder_checkpoint`` name; with neither, from nothing.

    The weights of a run are still to be loaded; those of a language model are there.

    Raises:
        ValueError: if a key typed by the user contradicts the checkpoint's architecture, or if its
            position tables are too short.
    """
    if settings.encoder_checkpoint:
        return _from_language_model(settings, settings.encoder_checkpoint)
    tokenizer, shape = of_run_or_nothing(settings, item_text)
    return tokenizer, SentenceEncoder(shape), MLMHead(shape)


def of_run_or_nothing(
    settings: ItemTextSettings, item_text: pd.DataFrame
) -> tuple[Tokenizer, EncoderConfig]:
    """Tokenizer and shape of the run that ``checkpoint`` names; else a new vocabulary's."""
    if settings.checkpoint:
        return _of_run(settings, Path(settings.checkpoint))
    tokenizer = train_wordpiece(_training_text(item_text), settings.vocab_size)
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_token_positions": settings.max_sequence_tokens,
        "max_item_positions": settings.MAX_ITEM_LIST_LENGTH + 1,
        **EncoderSettings().model_dump(),
        **settings.model_dump(include=set(EncoderSettings.model_fields)),
    }
    return tokenizer, EncoderConfig.of(shape)


def save_starting_point(folder: Path, tokenizer: Tokenizer, encoder: EncoderConfig) -> None:
    """Keep beside the weights what is needed to load them again."""
    save_tokenizer(tokenizer, folder / TOKENIZER_FILE)
    with atomic_write(folder / ENCODER_FILE) as file:
        file.write(json.dumps(encoder.model_dump(), indent=1).encode())


def _training_text(item_text: pd.DataFrame) -> Iterable[str]:
    """Attribute names once for each item that has the attribute, as in its sentence, and values."""
    for name in item_text.columns:
        values = item_text[name][item_text[name] != ""]
        yield from values
        yield from [name.replace("_", " ")] * len(values)


def _from_language_model(
    settings: SentenceSettings, source: str
) -> tuple[Tokenizer, SentenceEncoder, MLMHead]:
    pretrained = load_pretrained(
        source,
        settings.encoder_config,
        max_token_positions=settings.max_sequence_tokens,
        max_item_positions=settings.MAX_ITEM_LIST_LENGTH + 1,
        **settings.model_dump(include={"attention_window", "use_token_type", *READING, *FREE}),
    )
    for note in pretrained.notes:
        getLogger().info(f"{source}: {note}")
    _refuse_contradiction(settings, pretrained.config, source)
    encoder, mlm_head = SentenceEncoder(pretrained.config), MLMHead(pretrained.config)
    encoder.load_state_dict(pretrained.encoder_state)
    if pretrained.mlm_head_state is not None:
        mlm_head.load_state_dict(pretrained.mlm_head_state)
    return _load_tokenizer(pretrained.tokenizer_source, pretrained.config), encoder, mlm_head


def _of_run(settings: ItemTextSettings, path: Path) -> tuple[Tokenizer, EncoderConfig]:
    """Tokenizer and architecture that ``save_starting_point`` has left beside a run's weights.

    Raises:
        ValueError: if there are none, or the settings ask for others.
    """
    folder = path if path.is_dir() else path.parent
    for name in (TOKENIZER_FILE, ENCODER_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"checkpoint={path}: no {name} beside the weights; expected the run folder of a "
                "text model (LLMJEPA's with a language model needs language_model as well)"
            )
    shape = _read_encoder(folder / ENCODER_FILE)
    if settings.training_targets != shape.training_targets:
        raise ValueError(
            f"training_targets={settings.training_targets}; the checkpoint {folder} reads "
            f"histories as training_targets={shape.training_targets} does, write that"
        )
    _refuse_contradiction(settings, shape, str(path))
    for key, needed, held in (
        ("max_sequence_tokens", settings.max_sequence_tokens, shape.max_token_positions),
        ("MAX_ITEM_LIST_LENGTH", settings.MAX_ITEM_LIST_LENGTH, shape.max_item_positions - 1),
    ):
        if needed > held:
            raise ValueError(f"{key}={needed}; the checkpoint {folder} allows at most {held}")
    shape = EncoderConfig.of({**shape.model_dump(), **settings.model_dump(include=set(FREE))})
    return _load_tokenizer(folder / TOKENIZER_FILE, shape), shape


def _read_encoder(file: Path) -> EncoderConfig:
    """The shape that ``save_starting_point`` wrote."""
    described = read_description(file)
    unknown = [name for name in described if name not in EncoderConfig.model_fields]
    try:
        if unknown:
            raise ValueError(f"{', '.join(unknown[:3])} is unknown")
        return EncoderConfig.of(described)
    except ValueError as error:
        raise ValueError(f"{file} describes no encoder of ours: {error}") from None


def _load_tokenizer(source: str | Path, encoder: EncoderConfig) -> Tokenizer:
    """The tokenizer that belongs to an encoder, whose table has a row for each token."""
    tokenizer = load_tokenizer(source)
    largest = max(tokenizer.get_vocab().values())
    if largest >= encoder.vocab_size:
        raise ValueError(
            f"the tokenizer of {source} has ids up to {largest}; its encoder has "
            f"{encoder.vocab_size} token vectors"
        )
    return tokenizer


def _refuse_contradiction(settings: ItemTextSettings, encoder: EncoderConfig, source: str) -> None:
    """The checkpoint's architecture wins over defaults, but not over what the user asked for."""
    fields = type(settings).model_fields
    for key in (key for key in EncoderSettings.model_fields if key in fields and key not in FREE):
        given, default = getattr(settings, key), fields[key].default
        if given not in (default, getattr(encoder, key)):
            raise ValueError(
                f"{key}={given} contradicts {source}, which has {getattr(encoder, key)}"
            )
