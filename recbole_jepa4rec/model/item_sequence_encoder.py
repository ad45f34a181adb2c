"""SASRec's encoder over item vectors instead of item ids (Kang and McAuley 2018)."""

from __future__ import annotations

import torch
from recbole.model.layers import TransformerEncoder
from torch import Tensor, nn

MASKED = -10000.0
"""Added to attention scores of what must not be seen: its softmax is exactly 0 in float32."""


class ItemSequenceEncoder(nn.Module):
    """RecBole's Transformer under a causal mask, over item vectors and positions.

    Parts are named as in RecBole's SASRec, so that its weights, and those of models built on it,
    fit.

    Args:
        max_length: positions.
        hidden_size: dimensions ``D`` of item vectors and output.
        n_layers: Transformer layers.
        n_heads: attention heads.
        inner_size: width of the feed-forward layers.
        hidden_dropout_prob: dropout of the input and of each sublayer.
        attn_dropout_prob: dropout of attention probabilities.
        hidden_act: activation of the feed-forward layers.
        layer_norm_eps: epsilon of the layer norms.
        initializer_range: standard deviation of the first weights.
    """

    def __init__(
        self,
        max_length: int,
        hidden_size: int,
        n_layers: int,
        n_heads: int,
        inner_size: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        layer_norm_eps: float,
        initializer_range: float,
    ) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(max_length, hidden_size)
        self.trm_encoder = TransformerEncoder(
            n_layers=n_layers,
            n_heads=n_heads,
            hidden_size=hidden_size,
            inner_size=inner_size,
            hidden_dropout_prob=hidden_dropout_prob,
            attn_dropout_prob=attn_dropout_prob,
            hidden_act=hidden_act,
            layer_norm_eps=layer_norm_eps,
        )
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = nn.Dropout(hidden_dropout_prob)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, items: Tensor) -> Tensor:
        """What each prefix says: output ``n`` sees the items up to the ``n``-th.

        Padding stands behind the items, where no output of theirs sees it.

        Args:
            items: item vectors, oldest first, ``[B, L, D]``, at most ``max_length`` of them.

        Returns:
            Sequence vectors, ``[B, L, D]``.
        """
        length = items.shape[1]
        hidden = self.dropout(self.LayerNorm(items + self.position_embedding.weight[:length]))
        future = torch.full((length, length), MASKED, device=items.device).triu(1)
        layers = self.trm_encoder(hidden, future[None, None], output_all_encoded_layers=False)
        return layers[-1]
