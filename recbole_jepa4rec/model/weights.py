"""Starts the sentence encoder from published Longformer, RoBERTa, BERT or RecFormer weights."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_jepa4rec.base.weight_files import locate, read_description, read_tensors
from recbole_jepa4rec.model.encoder import EncoderConfig, MLMHead, SentenceEncoder
from recbole_jepa4rec.model.weight_names import encoder_names, mlm_head_names, plain_name
from recbole_jepa4rec.model.weight_rules import fit_attention, fit_embedding

MODEL_TYPES = ("bert", "longformer", "roberta")

IGNORED = (
    "pooler.*",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "cls.seq_relationship.*",
    "cls.predictions.decoder.*",
    "lm_head.decoder.*",
    "item_embedding.*",
)
"""Entries of a checkpoint that the encoder has no use for."""

_TYPES = {"layer_norm_eps": ((int, float), "a number"), "hidden_act": ((str,), "a name")}


@dataclass(frozen=True)
class PretrainedEncoder:
    """Weights in our names.

    Attributes:
        config: shape of the ``SentenceEncoder`` that they fit.
        encoder_state: its ``state_dict``.
        mlm_head_state: that of its ``MLMHead``, or None if the checkpoint has no such head.
        tokenizer_source: folder of the tokenizer that belongs to the weights.
        model_type: ``bert``, ``longformer`` or ``roberta``.
        notes: what was done to the weights, one sentence each.
    """

    config: EncoderConfig
    encoder_state: dict[str, Tensor]
    mlm_head_state: dict[str, Tensor] | None
    tokenizer_source: str
    model_type: str
    notes: list[str]


def load_pretrained(
    source: str | Path,
    *,
    attention_window: int | None,
    max_item_positions: int = 51,
    max_token_positions: int = 1024,
    dropout: float = 0.1,
    attention_dropout: float = 0.0,
    use_token_type: bool = True,
    training_targets: str = "random",
    encoder_config: str | Path | None = None,
) -> PretrainedEncoder:
    """Read published weights and fit them to the sentence encoder.

    Args:
        source: a folder or hub name in transformers' formats, or a state-dict file (RecFormer's).
        attention_window: local window in tokens, or None for dense attention.
        max_item_positions: items of a history plus one for [CLS].
        max_token_positions: longest sequence, in tokens.
        dropout: of the encoder to be built.
        attention_dropout: of the encoder to be built.
        use_token_type: whether the encoder embeds token types.
        training_targets: how the encoder reads histories, see ``EncoderConfig``.
        encoder_config: folder or hub name with the config and tokenizer of a state-dict file; by
            default the file's own folder.

    Returns:
        The weights, and a note for every rule that changed them.

    Raises:
        ValueError: if something is missing, truncated, of another architecture or shape.
    """
    path = locate(source)
    folder = locate(encoder_config) if encoder_config else path if path.is_dir() else path.parent
    description = read_description(folder / "config.json")
    config = EncoderConfig(
        max_token_positions=max_token_positions,
        max_item_positions=max_item_positions,
        attention_window=attention_window,
        dropout=dropout,
        attention_dropout=attention_dropout,
        use_token_type=use_token_type,
        training_targets=training_targets,
        **_shape(description, folder / "config.json"),
    )
    tensors = {plain_name(name): tensor.float() for name, tensor in read_tensors(path).items()}
    notes: list[str] = []
    model_type = description["model_type"]
    first_position = 0 if model_type == "bert" else description["pad_token_id"] + 1
    fit_embedding(tensors, config, first_position, notes)
    fit_attention(tensors, config, description.get("attention_window"), notes)
    return PretrainedEncoder(
        config, *_translate(tensors, config, str(path), notes), str(folder), model_type, notes
    )


def _shape(description: dict[str, Any], file: Path) -> dict[str, Any]:
    """The part of ``EncoderConfig`` that a checkpoint decides."""
    for key, allowed in (
        ("model_type", MODEL_TYPES),
        ("position_embedding_type", ("absolute",)),
        ("is_decoder", (False,)),
    ):
        value = description.get(key, None if key == "model_type" else allowed[0])
        if value not in allowed:
            expected = ", ".join(map(str, allowed))
            raise ValueError(f"{file}: {key} is {value!r} (allowed: {expected})")
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "layer_norm_eps": "layer_norm_eps",
        "activation": "hidden_act",
    }
    missing = [name for name in (*names.values(), "pad_token_id") if name not in description]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}")
    for name in (*names.values(), "pad_token_id"):
        types, expected = _TYPES.get(name, ((int,), "a whole number"))
        if type(description[name]) not in types:
            raise ValueError(f"{file}: {name} is {description[name]!r} (allowed: {expected})")
    return {ours: description[name] for ours, name in names.items()}


def _translate(
    tensors: dict[str, Tensor], config: EncoderConfig, source: str, notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Rename, refusing what is missing, of another shape or unknown."""
    with torch.device("meta"):
        encoder, head = SentenceEncoder(config).state_dict(), MLMHead(config).state_dict()
    names = dict(encoder_names(config))
    head_names = mlm_head_names(tensors, head)
    shapes = {names[0]: head[ours].shape for ours, names in head_names.items()}
    for ours in encoder:
        rows, *rest = encoder[ours].shape
        shapes.update({name: [rows // len(names[ours]), *rest] for name in names[ours]})

    unused = [name for name in tensors if any(fnmatchcase(name, entry) for entry in IGNORED)]
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    for name in (name for name in tensors if name not in unused):
        shape = list(tensors[name].shape)
        if name not in shapes:
            faults.append(f"{name} {shape} is unknown")
        elif shape != list(shapes[name]):
            faults.append(f"{name} is {shape} instead of {list(shapes[name])}")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"weights in {source} do not fit: {'; '.join(faults[:3])}{more}")
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    states = [
        {ours: torch.cat([tensors[name] for name in table[ours]]) for ours in table}
        for table in (names, head_names)
    ]
    return states[0], states[1] or None
