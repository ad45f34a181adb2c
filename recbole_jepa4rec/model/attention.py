"""Self-attention over packed sequences: dense, or Longformer's local and global (section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_jepa4rec.model.attention_layout import AttentionLayout, FewQueries, SlotGroup
from recbole_jepa4rec.model.packed_attention import PackedMask, attend_packed


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
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.global_qkv = nn.Linear(hidden_size, 3 * hidden_size) if window else None
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden: Tensor,
        layout: AttentionLayout | PackedMask,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Attend within each sequence.

        Args:
            hidden: packed tokens, ``[T, D]``; padded where a mask says who sees whom.
            layout: the batch's layout, for the same window, or the mask of ``tokens``.
            tokens: the tokens wanted, ``[M]``; None: all.

        Returns:
            ``[T, D]``, or ``[M, D]``.
        """
        if isinstance(layout, PackedMask):
            asking = hidden if tokens is None else hidden.index_select(0, tokens)
            return self.output(self._at_once(asking, hidden, layout))
        padded = hidden.index_select(0, layout.token_of_slot)
        projected = self.qkv(padded).split(layout.sizes)
        attended = [self._local(*pair) for pair in zip(projected, layout.groups, strict=True)]
        if self.global_qkv is not None:
            first = [group.first_row.new_zeros(len(group.first_row), 1) for group in layout.groups]
            attended += self._of_few(padded, layout, first, self.global_qkv)
        places = layout.place_of_token if tokens is None else layout.place_of_token[tokens]
        return self.output(torch.cat(attended).index_select(0, places))

    def at_cls(self, hidden: Tensor, layout: AttentionLayout, queries: FewQueries) -> Tensor:
        """What ``forward`` gives at [CLS] tokens, without projecting any other token.

        Args:
            hidden: packed tokens, ``[T, D]``.
            layout: the batch's layout, for the same window.
            queries: some of the [CLS], ``Q`` of them.

        Returns:
            ``[Q, D]``.
        """
        padded = hidden.index_select(0, layout.token_of_slot)
        attended = self._of_few(padded, layout, queries.tables, self.global_qkv or self.qkv)
        return self.output(torch.cat(attended).index_select(0, queries.place))

    def _at_once(self, asking: Tensor, seen: Tensor, mask: PackedMask) -> Tensor:
        """Attention of all tokens that ask in one call, ``[Q, D]`` and ``[T, D]`` -> ``[Q, D]``."""
        every, for_cls = self.qkv, self.global_qkv
        if mask.only_cls and for_cls is not None:
            every, for_cls = for_cls, None
        query, key_value = _query(every, asking), _key_value(every, seen)
        if for_cls is not None:
            assert mask.cls is not None
            of_cls = _query(for_cls, asking.index_select(0, mask.cls))
            query = query.index_copy(0, mask.cls, of_cls)
            key_value = torch.cat([key_value, _key_value(for_cls, seen)])
        key, value = key_value.view(len(key_value), 2, self.num_heads, -1).unbind(1)
        query = query.view(len(query), self.num_heads, -1)
        return attend_packed(query, key, value, mask).flatten(1)

    def _local(self, qkv: Tensor, group: SlotGroup) -> Tensor:
        """Attention of every slot to its row's keys, ``[R * C, 3 D]`` -> ``[R * C, D]``."""
        query, key, value = qkv.view(len(qkv), 3, self.num_heads, -1).unbind(1)
        query, key, value = group.queries(query), group.keys(key), group.keys(value)
        dropout = self.dropout if self.training else 0.0
        attended = attend(query, key, value, group.mask, dropout)
        return attended.transpose(1, 2).reshape(len(qkv), -1)

    def _of_few(
        self, slots: Tensor, layout: AttentionLayout, tables: list[Tensor], qkv: nn.Linear
    ) -> list[Tensor]:
        """Attention of a few tokens to their sequences, ``[P, D]`` -> ``[S * n, D]`` a group."""
        triples = zip(slots.split(layout.sizes), layout.groups, tables, strict=True)
        return [self._few_queries(rows, group, table, qkv) for rows, group, table in triples]

    def _few_queries(
        self, slots: Tensor, group: SlotGroup, table: Tensor, qkv: nn.Linear
    ) -> Tensor:
        """Attention of ``n`` queries to their sequence, ``[R * C, D]`` -> ``[S * n, D]``.

        They are few, so the projections move to their side: q·(K x) = (Kᵀ q)·x and
        Σ p (V x) = V Σ p x.
        """
        rows = slots.view(*group.seen.shape, -1)  # [R, C, D]
        weights = qkv.weight.view(3, self.num_heads, -1, rows.shape[-1])  # each [H, d, D]
        biases = qkv.bias.view(3, self.num_heads, -1)
        shape = (*table.shape, self.num_heads)  # [S, n, H]

        asking = rows[group.first_row[:, None], table]  # [S, n, D]
        query = torch.einsum("snD,hdD->snhd", asking, weights[0]) + biases[0]
        query = query * query.shape[-1] ** -0.5
        probe = torch.einsum("snhd,hdD->snhD", query, weights[1]).flatten(1, 2)
        probe = probe.index_select(0, group.sequence)
        shift = (query * biases[1]).sum(-1).flatten(1).index_select(0, group.sequence)[..., None]
        scores = (probe @ rows.transpose(1, 2) + shift).float()  # [R, n * H, C]
        hidden = ~group.mask_of(table).repeat_interleave(shape[2], 1)
        attention = group.softmax(scores.masked_fill(hidden, float("-inf")))
        attention = F.dropout(attention, self.dropout, self.training)

        context = group.total((attention.to(rows.dtype) @ rows).float())
        context = context.view(*shape, rows.shape[-1])
        value = torch.einsum("snhD,hdD->snhd", context, weights[2])
        value = value + group.total(attention.sum(-1)).view(*shape, 1) * biases[2]
        return value.flatten(2).flatten(0, 1).to(torch.promote_types(probe.dtype, slots.dtype))


def _query(qkv: nn.Linear, hidden: Tensor) -> Tensor:
    """The first third of what a projection gives, ``[Q, D]``."""
    size = qkv.in_features
    return F.linear(hidden, qkv.weight[:size], qkv.bias[:size])


def _key_value(qkv: nn.Linear, hidden: Tensor) -> Tensor:
    """The rest of it, ``[T, 2 D]``."""
    size = qkv.in_features
    return F.linear(hidden, qkv.weight[size:], qkv.bias[size:])


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Scaled dot-product attention by the kernel that was measured to be faster.

    In bfloat16 on a CPU two plain products are 2 to 6 times faster, forward and backward, than
    torch's fused kernel (512 to 40 keys, ``benchmarks/README.md``); elsewhere the fused one is as
    fast or faster, and needs less memory.

    Args:
        query: ``[R, H, C, d]``.
        key: ``[R, H, K, d]``.
        value: ``[R, H, K, d]``.
        mask: what a query sees, bool, broadcasts to ``[R, H, C, K]``; None: everything.
        dropout: of the probabilities.

    Returns:
        ``[R, H, C, d]``.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(
            ~mask, float("-inf")
        )
    return F.dropout(scores.softmax(-1), dropout, dropout > 0) @ value
