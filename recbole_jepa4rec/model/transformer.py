"""The parts of a sentence encoder: embeddings, Transformer layers, MLM head (JEPA4Rec, 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from recbole_jepa4rec.config.sentence_settings import EncoderSettings, TrainingTargets, Window
from recbole_jepa4rec.config.settings import Count, Positive, ShareBelowOne
from recbole_jepa4rec.model.attention import SelfAttention
from recbole_jepa4rec.model.attention_layout import AttentionLayout, FewQueries
from recbole_jepa4rec.model.packed_attention import NARROWEST_HEAD, PackedMask
from recbole_jepa4rec.text.token_batch import RANDOM, TokenBatch

Layout = AttentionLayout | PackedMask
"""Who sees whom in a packed batch, for a call a bucket or for one call."""

TOKEN_TYPES = 3
"""[CLS], attribute name, attribute value."""

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda hidden: F.gelu(hidden, approximate="tanh"),
    "relu": F.relu,
}
Activation = Literal["gelu", "gelu_new", "relu"]


class EncoderConfig(EncoderSettings):
    """Shape of a sentence encoder: what settings decide, and what follows from vocabulary and data.

    How a history is read depends on ``training_targets``. ``random``: the paper's way, newest item
    first, every token sees every other, one [CLS] in front, which predicts the one next item.
    ``all_prefixes``: oldest item first, tokens see their own item and earlier ones, a [CLS] behind
    each item, which predicts the item after it; attention is dense.
    """

    vocab_size: Count
    """Tokens, V."""
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    """Attention heads; they divide hidden_size."""
    intermediate_size: Count
    max_token_positions: Count = 1024
    """Longest sequence, in tokens."""
    max_item_positions: Count = 51
    """Items of a history plus one for [CLS]."""
    attention_window: Window | None = 64
    dropout: ShareBelowOne = 0.1
    layer_norm_eps: Positive = 1e-12
    """Of every LayerNorm."""
    activation: Activation = "gelu"
    """Of the feed-forward networks."""
    training_targets: TrainingTargets = RANDOM

    @model_validator(mode="after")
    def _has_the_layers(self) -> EncoderConfig:
        self.refuse_remainder("hidden_size", "num_heads")
        if self.item_local_layers > self.num_layers:
            raise ValueError(
                f"item_local_layers is {self.item_local_layers}; allowed in an encoder of "
                f"{self.num_layers} layers: 0 to {self.num_layers}"
            )
        if self.attention == "flex" and self.hidden_size < NARROWEST_HEAD * self.num_heads:
            raise ValueError(
                f"attention is 'flex'; allowed with hidden_size={self.hidden_size} and num_heads="
                f"{self.num_heads}, heads of less than {NARROWEST_HEAD} dimensions: buckets"
            )
        return self

    def attends_at_once(self, device: torch.device) -> bool:
        """Whether attention is one call a layer there; see the key ``attention``."""
        if self.attention is not None:
            return self.attention == "flex"
        is_wide = self.hidden_size >= NARROWEST_HEAD * self.num_heads
        return device.type == "cuda" and is_wide and not self.attention_dropout


class SentenceEmbedding(nn.Module):
    """LayerNorm(token + token position + token type + item position).

    Where items are read by themselves, item positions are added later, where items meet.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.reads_items_alone = config.item_local_layers > 0
        self.tokens = nn.Embedding(config.vocab_size, size)
        self.token_positions = nn.Embedding(config.max_token_positions, size)
        self.token_types = nn.Embedding(TOKEN_TYPES, size) if config.use_token_type else None
        self.item_positions = nn.Embedding(config.max_item_positions, size)
        self.norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, batch: TokenBatch, places: Tensor | None = None, latents: Tensor | None = None
    ) -> Tensor:
        """Embed a packed batch, ``[T, D]``; latents ``[P, D]`` stand for the tokens at places."""
        total = with_rows(self.tokens(batch.input_ids), places, latents)
        total = total + self.token_positions(batch.token_positions)
        if not self.reads_items_alone:
            total = total + self.positions_of_items(batch)
        if self.token_types is not None:
            total = total + self.token_types(batch.token_types)
        return self.dropout(self.norm(total))

    def positions_of_items(self, batch: TokenBatch) -> Tensor:
        """D_n of each token's item, ``[T, D]``."""
        return self.item_positions(batch.item_positions)


class EncoderLayer(nn.Module):
    """Attention and feed-forward network, each with dropout, residual and LayerNorm behind it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention = SelfAttention(
            size, config.num_heads, config.attention_window, config.attention_dropout
        )
        self.attention_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.expand = nn.Linear(size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, size)
        self.output_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(
        self,
        hidden: Tensor,
        layout: Layout,
        tokens: Tensor | None = None,
        queries: FewQueries | None = None,
    ) -> Tensor:
        """Packed tokens ``[T, D]`` to ``[T, D]``, or to ``[M, D]`` at ``tokens``.

        Where ``queries`` says where these stand, no other token attends.
        """
        if queries is not None and isinstance(layout, AttentionLayout):
            attended = self.attention.at_cls(hidden, layout, queries)
        else:
            attended = self.attention(hidden, layout, tokens)
        if tokens is not None:
            hidden = hidden.index_select(0, tokens)
        hidden = self.attention_norm(hidden + self.dropout(attended))
        expanded = self.activation(self.expand(hidden))
        return self.output_norm(hidden + self.dropout(self.contract(expanded)))


class MLMHead(nn.Module):
    """Scores of every vocabulary entry; the token embeddings serve as output weights.

    Args:
        config: the encoder's shape.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(initialise)

    def asked(self, hidden: Tensor) -> Tensor:
        """What hidden states ask of the vocabulary's vectors, ``[M, D]`` to ``[M, D]``.

        The product of both and ``bias`` are the logits, which are too many to be held.
        """
        return self.norm(F.gelu(self.transform(hidden)))


def identity(size: int) -> nn.Linear:
    """A linear map that changes nothing yet."""
    unchanging = nn.Linear(size, size, device="meta")  # whose first weights nobody draws
    unchanging.weight = nn.Parameter(torch.eye(size))
    unchanging.bias = nn.Parameter(torch.zeros(size))
    return unchanging


def initialise(module: nn.Module) -> None:
    """Initial values of an encoder from nothing; item positions start at zero.

    Departs from BERT's N(0, 0.02²) for linear maps: their variance is 1 / inputs, so that narrow
    encoders pass on as much of a token as wide ones do. At 64 dimensions BERT's values leave the
    vectors of all items almost equal, and the contrastive losses learn nothing for epochs.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, SentenceEmbedding):
        nn.init.zeros_(module.item_positions.weight)


def with_rows(hidden: Tensor, places: Tensor | None, rows: Tensor | None) -> Tensor:
    """``[T, D]`` with other rows ``[P, D]`` in places ``[P]``."""
    if places is None or rows is None:
        return hidden
    return hidden.index_copy(0, places, rows.to(hidden.dtype))
