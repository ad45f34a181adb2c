"""Self-attention over packed sequences: dense, or Longformer's local and global (section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_jepa4rec.model.attention_layout import AttentionLayout, SlotGroup


class SelfAttention(nn.Module):
    """Multi-head attention in which sequences never see each other.

    With ``window`` a token attends to ``window // 2`` tokens on each side and to its sequence's
    [CLS]; the [CLS] attends to the whole sequence through projections of its own.

    Args:
        hidden_size: ``D``, a multiple of ``num_heads``.
        num_heads: attention heads.
        window: tokens seen locally, or None for dense attention.
        dropout: dropout of attention probabilities, in [0, 1).
    """

    def __init__(
        self, hidden_size: int, num_heads: int, window: int | None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}"
            )
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.global_qkv = nn.Linear(hidden_size, 3 * hidden_size) if window else None
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, hidden: Tensor, layout: AttentionLayout, tokens: Tensor | None = None
    ) -> Tensor:
        """Attend within each sequence.

        Args:
            hidden: packed tokens, ``[T, D]``.
            layout: the batch's layout, for the same window.
            tokens: the tokens wanted, ``[M]``; None: all.

        Returns:
            ``[T, D]``, or ``[M, D]``.
        """
        padded = hidden.index_select(0, layout.token_of_slot)
        projected = self.qkv(padded).split(layout.sizes)
        attended = [self._local(*pair) for pair in zip(projected, layout.groups, strict=True)]
        if self.global_qkv is not None:
            attended += self._of_cls(padded, layout, self.global_qkv)
        slots = layout.slot_of_token if tokens is None else layout.slot_of_token[tokens]
        return self.output(torch.cat(attended).index_select(0, slots))

    def cls(self, hidden: Tensor, layout: AttentionLayout) -> Tensor:
        """What ``forward`` gives at each [CLS], without projecting any other token, ``[B, D]``."""
        padded = hidden.index_select(0, layout.token_of_slot)
        attended = self._of_cls(padded, layout, self.global_qkv or self.qkv)
        return self.output(torch.cat(attended).index_select(0, layout.place_of_sequence))

    def _local(self, qkv: Tensor, group: SlotGroup) -> Tensor:
        """Attention of every slot to its row's keys, ``[R * C, 3 D]`` -> ``[R * C, D]``."""
        query, key, value = qkv.view(len(qkv), 3, self.num_heads, -1).unbind(1)
        query, key, value = group.queries(query), group.keys(key), group.keys(value)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, group.mask, dropout)
        return attended.transpose(1, 2).reshape(len(qkv), -1)

    def _of_cls(self, slots: Tensor, layout: AttentionLayout, qkv: nn.Linear) -> list[Tensor]:
        """Attention of each [CLS] to its whole sequence, ``[P, D]`` -> ``[S, D]`` of each group."""
        pairs = zip(slots.split(layout.sizes), layout.groups, strict=True)
        return [self._one_query(rows, group, qkv) for rows, group in pairs]

    def _one_query(self, slots: Tensor, group: SlotGroup, qkv: nn.Linear) -> Tensor:
        """Global attention, ``[R * C, D]`` -> ``[S, D]``.

        There is one query a sequence, so the projections move to its side: q·(K x) = (Kᵀ q)·x and
        Σ p (V x) = V Σ p x.
        """
        rows = slots.view(*group.seen.shape, -1)  # [R, C, D]
        query_weight, key_weight, value_weight = qkv.weight.view(
            3, self.num_heads, -1, rows.shape[-1]
        )  # each [H, d, D]
        query_bias, key_bias, value_bias = qkv.bias.view(3, self.num_heads, -1)

        query = torch.einsum("sD,hdD->shd", rows[group.first_row, 0], query_weight) + query_bias
        query = query * query.shape[-1] ** -0.5
        probe = torch.einsum("shd,hdD->shD", query, key_weight)[group.sequence]  # [R, H, D]
        shift = (query * key_bias).sum(-1)[group.sequence, :, None]
        scores = (probe @ rows.transpose(1, 2) + shift).float()  # [R, H, C]
        scores = scores.masked_fill(~group.seen[:, None], float("-inf"))
        weights = F.dropout(group.softmax(scores), self.dropout, self.training)

        context = group.total((weights.to(rows.dtype) @ rows).float())  # [S, H, D]
        value = torch.einsum("shD,hdD->shd", context, value_weight)
        value = value + group.total(weights.sum(-1))[..., None] * value_bias
        return value.flatten(1).to(torch.promote_types(probe.dtype, slots.dtype))
