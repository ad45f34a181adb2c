"""How packed sequences are laid out for attention: whole in padded buckets, or in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_FILL = 0.85
"""Sequences share a bucket if the shortest has at least this share of the longest one's tokens."""

MIN_FILL_FOR_CLS = 0.5
"""The same where only [CLS] attend, in the first layer: padding costs little there, calls more."""

DENSE_WINDOWS = 3
"""Up to this many windows, one masked matrix a sequence is cheaper than blocks (measured, AVX2)."""


@dataclass(frozen=True)
class AttentionLayout:
    """Where each token of a packed batch stands in its group's slots; shared by all layers.

    It follows from lengths and items alone, and is made on the CPU; the encoder sends it.

    Attributes:
        token_of_slot: token in each slot of all groups, ``[P]``; padding repeats a first token.
        slot_of_token: slot of each token, ``[T]``.
        place_of_token: where its attention is found, ``[T]``: in its slot, but that of a global
            [CLS] behind all slots.
        sizes: slots of each group.
        groups: sequences attended together.
    """

    token_of_slot: Tensor
    slot_of_token: Tensor
    place_of_token: Tensor
    sizes: list[int]
    groups: list[SlotGroup]

    @classmethod
    def of(
        cls,
        lengths: Tensor,
        window: int | None,
        item_positions: Tensor | None = None,
        min_fill: float = MIN_FILL,
    ) -> AttentionLayout:
        """Lay out sequences that stand one behind the other in a packed batch.

        Args:
            lengths: tokens of each sequence, ``[B]``, at least 1.
            window: local attention window in tokens, or None for dense attention.
            item_positions: item of each token, ``[T]``, where none may see a later item; dense
                attention only.
            min_fill: share of the longest sequence's tokens that the others of a bucket have.

        """
        starts = lengths.cumsum(0) - lengths
        buckets = list(_buckets(lengths, window, min_fill))
        groups, tokens = [], []
        for sequences in buckets:
            group, positions = _slots(lengths[sequences], window)
            groups.append(group)
            tokens.append(starts[sequences][group.sequence, None] + positions)
        token_of_slot = torch.cat([places.flatten() for places in tokens])
        seen = torch.cat([group.seen.flatten() for group in groups]).nonzero().flatten()
        slot_of_token = torch.empty(int(lengths.sum()), dtype=torch.long)
        slot_of_token[token_of_slot[seen]] = seen
        place_of_token = slot_of_token
        if window:
            place_of_token = slot_of_token.clone()
            place_of_token[starts] = len(token_of_slot) + torch.cat(buckets).argsort()
        if item_positions is not None:
            pairs = zip(groups, tokens, strict=True)
            groups = [replace(g, item_positions=item_positions[places]) for g, places in pairs]
        sizes = [places.numel() for places in tokens]
        return cls(token_of_slot, slot_of_token, place_of_token, sizes, groups)

    def queries_at(self, tokens: Tensor) -> FewQueries:
        """Where some tokens stand, as tables of a few queries a sequence.

        Args:
            tokens: some tokens of the batch, in blocks only [CLS], ``[Q]``.
        """
        slots = self.slot_of_token[tokens]
        ends = torch.tensor(self.sizes).cumsum(0)
        group_of_token = torch.bucketize(slots, ends, right=True)
        tables, base = [], 0
        place = torch.empty_like(slots)
        for number, group in enumerate(self.groups):
            mine = (group_of_token == number).nonzero().flatten()
            slot = slots[mine] - (ends[number] - self.sizes[number])
            row = torch.div(slot, group.seen.shape[1], rounding_mode="floor")
            sequence = group.sequence[row]
            order = sequence.argsort(stable=True)
            counts = torch.bincount(sequence, minlength=len(group.first_row))
            table = slots.new_zeros(len(counts), int(counts.max()))
            nth = torch.empty_like(order)
            nth[order] = torch.arange(len(order))
            nth -= (counts.cumsum(0) - counts)[sequence]
            table[sequence, nth] = slot - row * group.seen.shape[1]
            place[mine] = base + sequence * table.shape[1] + nth
            tables.append(table)
            base += table.numel()
        return FewQueries(tables, place)


@dataclass(frozen=True)
class FewQueries:
    """Tokens that alone attend in a layer, a few of each sequence.

    Attributes:
        tables: for each group the slots of its sequences' tokens, in the sequence's first row,
            ``[S, n]`` with any slot where a sequence has fewer than ``n``.
        place: of every token when the tables stand one after the other, flattened, ``[Q]``.
    """

    tables: list[Tensor]
    place: Tensor


@dataclass(frozen=True)
class SlotGroup:
    """Sequences attended in one call: ``R`` rows of ``C`` slots, some of them padding.

    A row is a whole sequence, or (``halo``) a block of one that also sees the rows before and
    after. Slot 0 of every block holds its sequence's [CLS], so it is found without copying keys.

    Attributes:
        local_mask: what a slot attends to, bool, broadcasts to ``[R, 1, C, keys]``; None: all.
        seen: slots that hold a token, each token once, bool ``[R, C]``.
        sequence: sequence of each row within the group, ``[R]``.
        first_row: first row of each sequence, ``[S]``.
        halo: whether a row sees its neighbours.
        item_positions: item of each slot, where none may see a later item, ``[R, C]``.
    """

    local_mask: Tensor | None
    seen: Tensor
    sequence: Tensor
    first_row: Tensor
    halo: bool
    item_positions: Tensor | None = None

    @cached_property
    def mask(self) -> Tensor | None:
        """What a slot attends to, bool, broadcasts to ``[R, 1, C, keys]``; None: everything."""
        if self.item_positions is None:
            return self.local_mask
        earlier = self.item_positions[:, None] <= self.item_positions[:, :, None]
        return (self.seen[:, None] & earlier)[:, None]

    def mask_of(self, table: Tensor) -> Tensor:
        """What the queries at slots ``[S, n]`` attend to in each row, bool ``[R, n, C]``."""
        if self.item_positions is None:
            return self.seen[:, None].expand(-1, table.shape[1], -1)
        own = self.item_positions.gather(1, table)
        return self.seen[:, None] & (self.item_positions[:, None] <= own[:, :, None])

    def queries(self, slots: Tensor) -> Tensor:
        """Slots ``[R * C, H, d]`` as ``[R, H, C, d]``."""
        return slots.unflatten(0, self.seen.shape).transpose(1, 2)

    def keys(self, slots: Tensor) -> Tensor:
        """What each row sees: ``[R, H, C, d]``, with halo ``[R, H, 3 C, d]`` (a view)."""
        if not self.halo:
            return self.queries(slots)
        width = self.seen.shape[1]
        slots = F.pad(slots, (0, 0, 0, 0, width, width))
        return slots.unfold(0, 3 * width, width).transpose(-1, -2)

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax of ``[R, Q, C]`` over all rows of a sequence."""
        if not self.halo:
            return scores.softmax(-1)
        of_row = scores.detach().amax(-1)  # [R, Q]
        peak = of_row.new_full((len(self.first_row), of_row.shape[1]), float("-inf"))
        peak.scatter_reduce_(0, self.sequence[:, None].expand_as(of_row), of_row, "amax")
        exponential = (scores - peak[self.sequence, :, None]).exp()
        total = self.total(exponential.sum(-1)).index_select(0, self.sequence)
        return exponential / total[..., None]

    def total(self, rows: Tensor) -> Tensor:
        """Sum of rows ``[R, ...]`` over each sequence, ``[S, ...]``."""
        if not self.halo:
            return rows
        total = rows.new_zeros(len(self.first_row), *rows.shape[1:])
        return total.index_add(0, self.sequence, rows)


def _buckets(lengths: Tensor, window: int | None, min_fill: float) -> Iterator[Tensor]:
    """Sequences of similar length, those for blocks apart."""
    longest = DENSE_WINDOWS * window if window else int(lengths.max())
    if (lengths > longest).any():
        yield (lengths > longest).nonzero().flatten()
    order = lengths.argsort(stable=True)
    ascending = lengths[order]
    end = int((ascending <= longest).sum())
    while end:
        begin = int(torch.searchsorted(ascending, min_fill * ascending[end - 1].double()))
        yield order[begin:end]
        end = begin


def _slots(lengths: Tensor, window: int | None) -> tuple[SlotGroup, Tensor]:
    """A bucket's slots; and the position within its sequence of each slot's token, ``[R, C]``."""
    if window and lengths.max() > DENSE_WINDOWS * window:
        return _blocks(lengths, window)
    return _rows(lengths, window)


def _rows(lengths: Tensor, window: int | None) -> tuple[SlotGroup, Tensor]:
    """One row a sequence, padded to the longest; and each slot's position in its sequence."""
    position = torch.arange(int(lengths.max()))
    real = position < lengths[:, None]  # [R, C]
    mask = None if real.all() else real[:, None, None]
    if window and len(position) > window // 2 + 1:
        near = (position[:, None] - position).abs() <= window // 2
        near[:, 0] = True
        mask = real[:, None, None] & near
    every = torch.arange(len(lengths))
    return SlotGroup(mask, real, every, every, halo=False), position * real


def _blocks(lengths: Tensor, window: int) -> tuple[SlotGroup, Tensor]:
    """Rows of [CLS] and ``window // 2`` tokens; and each slot's position in its sequence."""
    half = window // 2
    count = (lengths - 1 + half - 1) // half
    sequence = torch.arange(len(lengths)).repeat_interleave(count)
    first_row = count.cumsum(0) - count
    block = torch.arange(len(sequence)) - first_row[sequence]
    slot = torch.arange(half + 1)
    position = block[:, None] * half + slot
    token = (slot > 0) & (position < lengths[sequence, None])  # [R, C]
    is_cls = (slot == 0).expand_as(token)

    last = block + 1 == count[sequence]
    before = token.roll(1, 0) & (block > 0)[:, None]
    after = token.roll(-1, 0) & ~last[:, None]
    exists = torch.cat([before, token | is_cls, after], 1)  # [R, 3 C]
    offset = torch.cat([slot - half, slot, slot + half])
    near = (offset - slot[:, None]).abs() <= half
    near[:, half + 1] = True
    mask = (exists[:, None] & near)[:, None]
    seen = token | is_cls & (block == 0)[:, None]
    return SlotGroup(mask, seen, sequence, first_row, halo=True), position * token
