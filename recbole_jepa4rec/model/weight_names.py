"""The names that transformers gives to the weights of the sentence encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from recbole_jepa4rec.model.encoder import EncoderConfig

_WRAPPERS = re.compile(
    r"^(?:_forward_module\.|module\.|model\.)*(?:(?:bert|longformer|roberta)\.)?"
)
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

_EMBEDDING = {
    "tokens.weight": "word_embeddings.weight",
    "token_positions.weight": "position_embeddings.weight",
    "token_types.weight": "token_type_embeddings.weight",
    "item_positions.weight": "item_position_embeddings.weight",
    "norm.weight": "LayerNorm.weight",
    "norm.bias": "LayerNorm.bias",
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


def plain_name(name: str) -> str:
    """A checkpoint's name without wrappers' and the architecture's prefix."""
    name = _WRAPPERS.sub("", name)
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def encoder_names(config: EncoderConfig) -> Iterator[tuple[str, list[str]]]:
    """Our name of every encoder weight, and those of the checkpoint that make it, stacked."""
    for ours, name in _EMBEDDING.items():
        if ours != "token_types.weight" or config.use_token_type:
            yield f"embedding.{ours}", [f"embeddings.{name}"]
    for layer in range(config.num_layers):
        for ours, names in _LAYER.items():
            if ours == "attention.global_qkv" and config.attention_window is None:
                continue
            for kind in ("weight", "bias"):
                sources = [f"encoder.layer.{layer}.{name}.{kind}" for name in names]
                yield f"layers.{layer}.{ours}.{kind}", sources


def mlm_head_names(tensors: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, list[str]]:
    """The same of the masked-token head; nothing if the checkpoint has none."""
    for table in _MLM_HEADS:
        if f"{table['transform']}.weight" in tensors:
            parts = {ours: ours.partition(".") for ours in head}
            return {ours: [table[part] + dot + kind] for ours, (part, dot, kind) in parts.items()}
    return {}
