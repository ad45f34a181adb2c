"""Attention in one call over a whole packed batch, which a GPU likes: FlexAttention and its mask.

Where ``attention_layout`` makes a call for each bucket of sequences of like length, here a mask
says who sees whom, and blocks of it in which nobody sees anybody are left out. On the CPU, where
tests compare both, torch has the forward pass alone, and holds all scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from recbole_jepa4rec.config.sentence_settings import EncoderSettings

BLOCK = 128
"""Tokens to a side of a block of the mask."""

NARROWEST_HEAD = 16
"""Dimensions of a head, at least, that FlexAttention takes."""


@dataclass(frozen=True)
class PackedMask:
    """Which tokens of a packed batch ask, and what they see; made on the CPU, sent by the encoder.

    A token sees the tokens of its sequence whose place lies between two bounds, and those at place
    0. With a window a place is a position, and [CLS] have projections of their own: behind the
    tokens' keys stand the same tokens' keys for [CLS], and a sequence has two numbers, the second
    for these. Batches are padded to few sizes, by sequences of padding.

    Attributes:
        queries: sequence, lowest and highest place seen of each token that asks, int ``[3, Q]``.
        keys: sequence and place of each token that is seen, int ``[2, K]``.
        blocks: whether anybody sees anybody, bool ``[Q / BLOCK, K / BLOCK]``.
        size: tokens of the padded batch, P.
        tokens: that ask, padded, ``[Q]``; ``None``: all of the batch.
        cls: places of [CLS] among those that ask, ``[G]``; ``None`` without keys of their own.
        only_cls: whether [CLS] alone ask, so that all keys are those for them.
    """

    queries: Tensor
    keys: Tensor
    blocks: Tensor
    size: int
    tokens: Tensor | None
    cls: Tensor | None
    only_cls: bool

    @classmethod
    def of(
        cls,
        lengths: Tensor,
        window: int | None,
        item_positions: Tensor | None = None,
        tokens: Tensor | None = None,
        only_cls: bool = False,
    ) -> PackedMask:
        """The mask of sequences that stand one behind the other in a packed batch.

        Args:
            lengths: tokens of each sequence, ``[B]``, at least 1.
            window: local attention window in tokens, or None for dense attention.
            item_positions: item of each token from 1, ``[T]``, where none may see a later item;
                dense attention only.
            tokens: the tokens that ask, ``[M]``; None: all.
            only_cls: whether these are [CLS] alone.
        """
        total = int(lengths.sum())
        size = padded_size(total)
        sizes = torch.cat([lengths, _padding(size - total)])
        sequence = 2 * torch.arange(len(sizes)).repeat_interleave(sizes)
        place = lowest = highest = torch.zeros_like(sequence)
        if item_positions is not None:
            place = highest = F.pad(item_positions, (0, size - total), value=1)
        keys, asking = torch.stack([sequence, place]), sequence
        has_own_keys = window is not None and not only_cls
        if window is not None and not only_cls:
            place = torch.arange(size) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
            lowest, highest = place - window // 2, place + window // 2
            asking = sequence + (place == 0)
            for_cls = torch.stack([sequence + 1, torch.zeros_like(place)])
            keys = torch.cat([torch.stack([sequence, place]), for_cls], dim=1)
        queries = torch.stack([asking, lowest, highest])
        if tokens is not None:
            tokens = F.pad(tokens, (0, padded_size(len(tokens)) - len(tokens)))
            queries = queries[:, tokens]
        at_cls = (queries[0] % 2).nonzero()[:, 0] if has_own_keys else None
        return cls(
            queries.int(), keys.int(), _blocks(queries, keys), size, tokens, at_cls, only_cls
        )

    def padded(self, hidden: Tensor) -> Tensor:
        """Tokens ``[T, D]`` with the padding that the mask counts on, ``[P, D]``."""
        return F.pad(hidden, (0, 0, 0, self.size - len(hidden)))

    @cached_property
    def block_mask(self) -> BlockMask:
        """What FlexAttention is told, where the tensors lie; shared by all layers."""
        counts = self.blocks.sum(dim=1, dtype=torch.int32)[None, None]
        first = self.blocks.int().argsort(dim=1, descending=True, stable=True)[None, None]
        asking, lowest, highest = self.queries.unbind()
        sequence, place = self.keys.unbind()

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            is_near = (lowest[query] <= place[key]) & (place[key] <= highest[query])
            return (asking[query] == sequence[key]) & (is_near | (place[key] == 0))

        return BlockMask.from_kv_blocks(counts, first.int(), BLOCK_SIZE=BLOCK, mask_mod=sees)


def attend_packed(query: Tensor, key: Tensor, value: Tensor, mask: PackedMask) -> Tensor:
    """Attention of all tokens that ask, compiled where there is a GPU.

    Args:
        query: ``[Q, H, d]``.
        key: ``[K, H, d]``.
        value: ``[K, H, d]``.
        mask: what a query sees.

    Returns:
        ``[Q, H, d]``.
    """
    heads = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    is_compiling = torch.compiler.is_compiling()
    kernel: Any = flex_attention if is_compiling else _kernel(query.device.type)
    attended = kernel(*heads, block_mask=mask.block_mask)
    return attended[0].transpose(0, 1)


def padded_size(tokens: int) -> int:
    """The next of a few numbers of tokens, of which compiled code is to know few.

    They are multiples of ``BLOCK``, and from 1024 on eight to each doubling.
    """
    step = max(BLOCK, 1 << max(tokens - 1, 1).bit_length() >> 4)
    return max(BLOCK, -(-tokens // step) * step)


def refuse_where_not_possible(
    settings: EncoderSettings, at_once: bool, device: torch.device
) -> None:
    """Refuse one call on a device that cannot compile it, or not train with it.

    Args:
        settings: of the encoder.
        at_once: whether attention is to be one call there.
        device: of the run.

    Raises:
        ValueError: says what is allowed.
    """
    given = f"attention is {settings.attention or 'null'!r}"
    if at_once and device.type == "cpu":
        raise ValueError(f"{given}, which trains on a GPU; allowed on a CPU: buckets, null")
    if at_once and device.type == "cuda" and not find_spec("triton"):
        raise ValueError(f"{given}, which needs triton on a GPU; allowed without: buckets")
    if settings.compile_layers and not at_once:
        raise ValueError(f"compile_layers is True, but {given} and no single call; allowed: False")


@cache
def _kernel(device_type: str) -> Any:
    """FlexAttention, compiled once a process for a GPU, for every number of tokens.

    Code for each number would soon be more than torch compiles; the rest then holds all scores.
    """
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


def _padding(tokens: int) -> Tensor:
    """Lengths of sequences of padding, of a block each, so that they cost no attention."""
    whole, rest = divmod(tokens, BLOCK)
    return torch.tensor([BLOCK] * whole + [rest] * (rest > 0), dtype=torch.long)


def _blocks(queries: Tensor, keys: Tensor) -> Tensor:
    """Blocks in which somebody may see somebody, by the extremes of both sides.

    Args:
        queries: sequence, lowest and highest place seen, ``[3, Q]``.
        keys: sequence and place, ``[2, K]``.
    """
    least_query, most_query = (q[:, :, None] for q in _extremes(queries))
    least_key, most_key = (k[:, None] for k in _extremes(keys))
    is_shared = (least_query[0] <= most_key[0]) & (least_key[0] <= most_query[0])
    is_near = (least_query[1] <= most_key[1]) & (least_key[1] <= most_query[2])
    return is_shared & (is_near | (least_key[1] == 0))


def _extremes(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest number of each block, ``[N, L]`` to twice ``[N, L / BLOCK]``."""
    least, most = numbers.unflatten(1, (-1, BLOCK)).aminmax(dim=2)
    return least, most
