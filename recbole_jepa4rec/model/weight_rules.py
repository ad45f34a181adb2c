"""Rules that fit published weights to the sentence encoder; each that applies leaves a note."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_jepa4rec.model.encoder import TOKEN_TYPES, EncoderConfig
from recbole_jepa4rec.text.token_batch import ALL_PREFIXES

_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_ITEM_POSITIONS = "embeddings.item_position_embeddings.weight"


def fit_embedding(
    tensors: dict[str, Tensor], config: EncoderConfig, first_position: int, notes: list[str]
) -> None:
    """Make the position and type tables those of ``config``.

    Args:
        tensors: checkpoint's weights by plain name; changed in place.
        config: the encoder to be built.
        first_position: row of the first token's position.
        notes: what was done is appended.

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


def fit_attention(
    tensors: dict[str, Tensor],
    config: EncoderConfig,
    window: int | list[int] | None,
    notes: list[str],
) -> None:
    """Copy or drop global projections, as the window of ``config`` wants it.

    Args:
        tensors: checkpoint's weights by plain name; changed in place.
        config: the encoder to be built.
        window: the checkpoint's own attention window (of each layer), if it has any.
        notes: what was done is appended.
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
