"""Longformer and BERT of transformers on a sentence encoder's weights, fed with padded batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LongformerConfig, LongformerForMaskedLM

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.pretrained import published_names
from recbole_jepa4rec.model.transformer import TOKEN_TYPES
from recbole_jepa4rec.text.token_batch import TokenBatch

_POSITIONS = "embeddings.position_embeddings.weight"
_ITEM_POSITIONS = "embeddings.item_position_embeddings.weight"


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Token sequences, one a row, filled up behind with padding; ``L`` slots in each of ``B`` rows.

    Attributes:
        input_ids: vocabulary ids, int64 ``[B, L]``.
        token_types: as in ``TokenBatch``, ``[B, L]``.
        token_positions: as in ``TokenBatch``, ``[B, L]``.
        item_positions: as in ``TokenBatch``, ``[B, L]``.
        real: which slots hold a token, bool ``[B, L]``; in the order of the packed batch.
    """

    input_ids: Tensor
    token_types: Tensor
    token_positions: Tensor
    item_positions: Tensor
    real: Tensor

    @classmethod
    def of(cls, batch: TokenBatch, multiple: int = 1) -> PaddedBatch:
        """Pad to the longest sequence, or from there to a multiple of ``multiple`` slots."""
        width = -(-int(batch.lengths.max()) // multiple) * multiple
        slots = torch.arange(width, device=batch.offsets.device)
        real = slots < batch.lengths[:, None]
        return cls(
            spread(batch.input_ids, real),
            spread(batch.token_types, real),
            spread(batch.token_positions, real),
            spread(batch.item_positions, real),
            real,
        )


def spread(values: Tensor, real: Tensor, fill: int = 0) -> Tensor:
    """Values of packed tokens ``[T, ...]`` at their slots ``[B, L, ...]``, ``fill`` at padding."""
    padded = values.new_full((*real.shape, *values.shape[1:]), fill)
    padded[real] = values
    return padded


class PaddedEncoder(nn.Module):
    """A model of transformers that reads what a sentence encoder reads, on copies of its weights.

    Item positions, which transformers lacks, are added to the word embeddings it is given, as
    RecFormer adds them. In Longformer [CLS] alone is global.

    Args:
        model: ``BertModel`` or ``LongformerModel`` of the encoder's shape.
        encoder: whose weights are copied.

    Raises:
        ValueError: if a weight of the model is none of the encoder's.
    """

    def __init__(self, model: Any, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.model = model
        self.item_positions = nn.Embedding.from_pretrained(
            encoder.embedding.item_positions.weight.detach().clone(), freeze=False
        )
        self.config = encoder.config
        self.is_longformer = model.config.model_type == "longformer"
        copied = _renamed(encoder, first_position=int(self.is_longformer))
        if missing := sorted(dict(model.named_parameters()).keys() - copied.keys()):
            raise ValueError(f"the encoder has nothing for {', '.join(missing[:3])}")
        model.load_state_dict(copied, strict=False)

    def padded(self, batch: TokenBatch) -> PaddedBatch:
        """Pad to the longest sequence; for Longformer to a multiple of its window."""
        padded = PaddedBatch.of(batch, self.config.attention_window or 1)
        return sent(padded, self.item_positions.weight.device)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Hidden states of all slots, ``[B, L, D]``."""
        words = self.model.embeddings.word_embeddings(batch.input_ids)
        inputs = {
            "inputs_embeds": words + self.item_positions(batch.item_positions),
            "token_type_ids": batch.token_types,
            "position_ids": batch.token_positions,
            "attention_mask": batch.real.long(),
        }
        if self.is_longformer:  # row 0 of its positions is that of padding
            inputs["position_ids"] = (batch.token_positions + 1) * batch.real
            inputs["global_attention_mask"] = torch.zeros_like(batch.token_types)
            inputs["global_attention_mask"][:, 0] = 1
        return self.model(**inputs).last_hidden_state


def longformer(encoder: SentenceEncoder, dropout: float = 0.0) -> LongformerForMaskedLM:
    """An untrained Longformer of an encoder's shape, with its masked-token head.

    Args:
        encoder: one with an attention window.
        dropout: of hidden states and of attention probabilities.
    """
    config = LongformerConfig(
        **_shape(encoder, dropout),
        attention_window=encoder.config.attention_window or 0,
        max_position_embeddings=encoder.config.max_token_positions + 1,
    )
    return LongformerForMaskedLM(config)


def padded_longformer(encoder: SentenceEncoder) -> PaddedEncoder:
    """Longformer on an encoder's weights, without dropout."""
    return PaddedEncoder(longformer(encoder).longformer, encoder)


def padded_bert(encoder: SentenceEncoder) -> PaddedEncoder:
    """BERT on the weights of an encoder with dense attention, without dropout."""
    config = BertConfig(
        **_shape(encoder, 0.0), max_position_embeddings=encoder.config.max_token_positions
    )
    return PaddedEncoder(BertModel(config, add_pooling_layer=False), encoder)


@torch.no_grad()
def largest_difference(encoder: nn.Module, padded: Any, batch: TokenBatch) -> float:
    """Largest absolute difference of hidden states at real tokens, both in eval mode.

    Args:
        encoder: a ``SentenceEncoder``.
        padded: a ``PaddedEncoder``.
        batch: what both read.
    """
    slots = padded.padded(batch)
    difference = encoder.eval()(batch) - padded.eval()(slots)[slots.real]
    return float(difference.abs().max())


def refuse_difference(name: str, difference: float, allowed: float = 1e-3) -> None:
    """Stop where two modules do not compute the same.

    Raises:
        SystemExit: if they differ by ``allowed`` or more.
    """
    if not difference < allowed:
        raise SystemExit(f"{name} differs by {difference:.1e}: nothing to compare")


def _shape(encoder: SentenceEncoder, dropout: float) -> dict[str, Any]:
    """An encoder's shape in transformers' names."""
    config = encoder.config
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.activation,
        "layer_norm_eps": config.layer_norm_eps,
        "type_vocab_size": TOKEN_TYPES,
        "pad_token_id": 0,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


def _renamed(encoder: SentenceEncoder, first_position: int) -> dict[str, Tensor]:
    """An encoder's weights in transformers' names; rows before ``first_position`` are zero."""
    own, renamed = encoder.state_dict(), dict[str, Tensor]()
    for ours, weight in own.items():
        theirs = published_names(ours)
        renamed.update(zip(theirs, weight.chunk(len(theirs)), strict=True))
    del renamed[_ITEM_POSITIONS]
    renamed[_POSITIONS] = F.pad(renamed[_POSITIONS], (0, 0, first_position, 0))
    return renamed
