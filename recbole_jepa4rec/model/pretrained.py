"""Starts the sentence encoder from published weights: Longformer, RoBERTa, BERT, RecFormer.

The loader of transformers draws what a checkpoint lacks at random, and knows no item positions.
Here every weight is taken by its name, a misfit is refused, and each rule that changes something
leaves a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from recbole_jepa4rec.base.checkpoint import refuse_misfits
from recbole_jepa4rec.base.weight_files import locate, read_description, read_tensors
from recbole_jepa4rec.config.settings import Count, Positive, Settings, Whole
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.transformer import (
    TOKEN_TYPES,
    Activation,
    EncoderConfig,
    MLMHead,
    identity,
)
from recbole_jepa4rec.text.token_batch import ALL_PREFIXES

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

_WRAPPERS = re.compile(
    r"^(?:_forward_module\.|module\.|model\.)*(?:(?:bert|longformer|roberta)\.)?"
)
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_ITEM_POSITIONS = "embeddings.item_position_embeddings.weight"
_EMBEDDING = {
    "embedding.tokens.weight": "embeddings.word_embeddings.weight",
    "embedding.token_positions.weight": _POSITIONS,
    "embedding.token_types.weight": _TYPES,
    "embedding.item_positions.weight": _ITEM_POSITIONS,
    "embedding.norm.weight": "embeddings.LayerNorm.weight",
    "embedding.norm.bias": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.global_qkv": (
        "attention.self.query_global",
        "attention.self.key_global",
        "attention.self.value_global",
    ),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "expand": ("intermediate.dense",),
    "contract": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}
_MLM_HEADS = (
    {"transform": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
    {
        "transform": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
)


class PublishedConfig(Settings):
    """What is read of a ``config.json`` of transformers."""

    model_type: Literal["bert", "longformer", "roberta"]
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    intermediate_size: Count
    layer_norm_eps: Positive
    hidden_act: Activation
    pad_token_id: Whole
    attention_window: list[int] | int | None = None

    @property
    def first_position(self) -> int:
        """Row of the first token's position."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1


@dataclass(frozen=True)
class PretrainedEncoder:
    """Weights in our names.

    Attributes:
        config: shape of the ``SentenceEncoder`` that they fit.
        encoder_state: its ``state_dict``.
        mlm_head_state: that of its ``MLMHead``, or None if the checkpoint has no such head.
        tokenizer_source: folder of the tokenizer that belongs to the weights.
        notes: what was done to the weights, one sentence each.
    """

    config: EncoderConfig
    encoder_state: dict[str, Tensor]
    mlm_head_state: dict[str, Tensor] | None
    tokenizer_source: str
    notes: list[str]


def load_pretrained(
    source: str | Path, encoder_config: str | Path | None = None, **chosen: Any
) -> PretrainedEncoder:
    """Read published weights and fit them to the sentence encoder.

    Args:
        source: a folder or hub name in transformers' formats, or a state-dict file (RecFormer's).
        encoder_config: folder or hub name with the config and tokenizer of a state-dict file; by
            default the file's own folder.
        **chosen: what ``EncoderConfig`` has and the checkpoint does not decide.

    Raises:
        ValueError: if something is missing, truncated, of another architecture or shape.
    """
    path = locate(source)
    folder = locate(encoder_config) if encoder_config else path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        key = "encoder_config" if encoder_config else "encoder_checkpoint"
        raise ValueError(
            f"{key}: no config.json in {folder}, which must describe the weights; encoder_config "
            "names a folder that has one"
        )
    described = read_description(folder / "config.json")
    try:
        published = PublishedConfig.of(described)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    config = EncoderConfig.of(
        {
            "vocab_size": published.vocab_size,
            "hidden_size": published.hidden_size,
            "num_layers": published.num_hidden_layers,
            "num_heads": published.num_attention_heads,
            "intermediate_size": published.intermediate_size,
            "layer_norm_eps": published.layer_norm_eps,
            "activation": published.hidden_act,
            **chosen,
        }
    )
    tensors = {_plain_name(name): tensor.float() for name, tensor in read_tensors(path).items()}
    notes: list[str] = []
    _fit_embedding(tensors, config, published.first_position, notes)
    _fit_attention(tensors, config, published.attention_window, notes)
    states = _translate(tensors, config, str(path), notes)
    return PretrainedEncoder(config, *states, str(folder), notes)


def published_names(ours: str) -> list[str]:
    """Names that transformers gives to what makes one of the encoder's weights, stacked."""
    if ours in _EMBEDDING:
        return [_EMBEDDING[ours]]
    layer, _, rest = ours.removeprefix("layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return [f"encoder.layer.{layer}.{name}.{kind}" for name in _LAYER[part]]


def _plain_name(name: str) -> str:
    """A checkpoint's name without wrappers' and the architecture's prefix."""
    name = _WRAPPERS.sub("", name)
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _fit_embedding(
    tensors: dict[str, Tensor], config: EncoderConfig, first_position: int, notes: list[str]
) -> None:
    """Make the position and type tables those of ``config``, in place.

    Raises:
        ValueError: if a table is missing or has no rows of ``hidden_size``, or item positions
            were learned in the other order.
    """
    positions = _table(tensors, _POSITIONS, config.hidden_size, first_position)
    types = _table(tensors, _TYPES, config.hidden_size)
    wanted = config.max_token_positions
    if first_position:
        notes.append(f"token positions start at the checkpoint's row {first_position}")
    if wanted > len(positions):
        notes.append(f"{len(positions)} token positions extended to {wanted} by repetition")
    elif wanted < len(positions):
        notes.append(f"first {wanted} of {len(positions)} token positions kept")
    positions = positions[torch.arange(wanted) % len(positions)]

    if not config.use_token_type:
        positions = positions + types[0]
        del tensors[_TYPES]
        notes.append("token types are off: type row 0 added to every token position")
    elif len(types) < TOKEN_TYPES:
        tensors[_TYPES] = types[:1].repeat(TOKEN_TYPES, 1)
        notes.append(f"all {TOKEN_TYPES} token types start as type row 0")
    elif len(types) > TOKEN_TYPES:
        tensors[_TYPES] = types[:TOKEN_TYPES]
        notes.append(f"first {TOKEN_TYPES} of {len(types)} token types kept")
    tensors[_POSITIONS] = positions

    items = positions.new_zeros(config.max_item_positions, positions.shape[1])
    held = 0
    if _ITEM_POSITIONS in tensors:
        if config.training_targets == ALL_PREFIXES:
            raise ValueError(
                f"the weights hold {_ITEM_POSITIONS}, learned on histories read newest first; "
                "allowed with them: training_targets='random'"
            )
        own = _table(tensors, _ITEM_POSITIONS, config.hidden_size)[: len(items)]
        held = len(own)
        items[:held] = own
    tensors[_ITEM_POSITIONS] = items
    if held < len(items):
        notes.append(f"item positions from {held} on start at zero")


def _fit_attention(
    tensors: dict[str, Tensor],
    config: EncoderConfig,
    window: int | list[int] | None,
    notes: list[str],
) -> None:
    """Copy or drop global projections, in place, as the window of ``config`` wants it.

    The checkpoint's own ``window`` is one for all layers, one for each, or none.
    """
    present = [name for name in tensors if "_global." in name]
    if config.attention_window is None:
        for name in present:
            del tensors[name]
        if present:
            notes.append("attention is dense: global projections dropped")
        return
    windows = window if isinstance(window, list) else [window] if window else []
    if set(windows) - {config.attention_window}:
        before = ", ".join(map(str, sorted(set(windows))))
        notes.append(f"attention window is {config.attention_window} instead of {before}")
    if not present:
        local = [name for name in tensors if ".attention.self." in name]
        for name in local:
            layer, kind = name.rsplit(".", 1)
            tensors[f"{layer}_global.{kind}"] = tensors[name]
        notes.append("global projections copied from the local ones")


def _table(tensors: dict[str, Tensor], name: str, hidden_size: int, first_row: int = 0) -> Tensor:
    """Rows of an embedding from ``first_row`` on, at least one."""
    if name not in tensors:
        raise ValueError(f"the weights do not fit: {name} is missing")
    table = tensors[name]
    if table.ndim != 2 or table.shape[1] != hidden_size or len(table) <= first_row:
        shape = list(table.shape)
        raise ValueError(f"the weights do not fit: {name} is {shape} instead of […, {hidden_size}]")
    return table[first_row:]


def _translate(
    tensors: dict[str, Tensor], config: EncoderConfig, source: str, notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Rename, refusing what is missing, of another shape or unknown."""
    with torch.device("meta"):
        encoder, head = SentenceEncoder(config).state_dict(), MLMHead(config).state_dict()
    mapped = {ours: encoder.pop(ours) for ours in [*encoder] if ours.startswith("map.")}
    names = {ours: published_names(ours) for ours in encoder}
    head_names = _mlm_head_names(tensors, head)
    shapes = {theirs: list(head[ours].shape) for ours, (theirs,) in head_names.items()}
    for ours in encoder:
        rows, *rest = encoder[ours].shape
        shapes.update({name: [rows // len(names[ours]), *rest] for name in names[ours]})

    unused = [name for name in tensors if any(fnmatchcase(name, entry) for entry in IGNORED)]
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    refuse_misfits(f"weights in {source} do not fit", used, shapes)
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    states = [
        {ours: torch.cat([tensors[name] for name in table[ours]]) for ours in table}
        for table in (names, head_names)
    ]
    if mapped:
        unchanging = identity(config.hidden_size).state_dict()
        states[0] |= {f"map.{name}": value for name, value in unchanging.items()}
    return states[0], states[1] or None


def _mlm_head_names(tensors: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, list[str]]:
    """The checkpoint's name of each weight of the masked-token head; nothing if it has none."""
    for table in _MLM_HEADS:
        if f"{table['transform']}.weight" in tensors:
            parts = {ours: ours.partition(".") for ours in head}
            return {ours: [table[part] + dot + kind] for ours, (part, dot, kind) in parts.items()}
    return {}
