"""Random numbers keyed by what they are drawn for (seed, epoch, user, ...), never by batch order.

A number is a pure function of its key, so that neither the composition of a batch nor the number
of processes changes what a user's sequence is masked with or which target it is given.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Draw(IntEnum):
    """What a random number is for: the last part of every key."""

    SHUFFLE = 0
    TARGET = 1
    HELD_OUT = 2
    HISTORY_MASK = 3
    NEXT_ITEM_MASK = 4
    MASKED_ITEM = 5
    CANDIDATES = 6
    SELECTED = 7
    FATE = 8
    REPLACEMENT = 9
    WORD_DROP = 10
    ITEM_DROP = 11
    AUGMENTATION = 12
    CODE_DROP = 13
    CODE = 14
    CHOICE = 15
    TRAIN_FRACTION = 16
    REVEALED_WORD = 17
    DIRECTIONS = 18
    ROLLOUT = 19
    JEPA_DROPOUT = 20


def derive(key: Tensor | int, *parts: Tensor | int) -> Tensor:
    """Fold ``parts`` into ``key``: the key of one draw among those made under ``key``.

    Args:
        key: integers, any shape (a plain int is a key too).
        *parts: integers that broadcast with ``key``.

    Returns:
        int64 tensor of the broadcast shape.
    """
    state = _mix(torch.as_tensor(key, dtype=torch.int64))
    for part in parts:
        state = _mix(state ^ _mix(torch.as_tensor(part, dtype=torch.int64) + _signed(_GOLDEN)))
    return state


def uniform(key: Tensor) -> Tensor:
    """One float32 in ``[0, 1)`` for each key, of the key's shape."""
    return _shift(_mix(key), 40).to(torch.float32) * 2.0**-24


def normal(key: Tensor) -> Tensor:
    """One standard normal float32 for each key, of the key's shape (Box and Muller 1958)."""
    radius = (-2 * (1 - uniform(derive(key, 0))).log()).sqrt()
    return radius * (2 * math.pi * uniform(derive(key, 1))).cos()


def below(key: Tensor, bound: Tensor | int) -> Tensor:
    """One integer in ``[0, bound)`` for each key; ``bound >= 1`` broadcasts with the key."""
    return _shift(_mix(key), 1) % bound


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014); int64 products wrap as wanted."""
    state = (state ^ _shift(state, 30)) * _signed(_MIX_1)
    state = (state ^ _shift(state, 27)) * _signed(_MIX_2)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical right shift, which torch lacks for signed integers."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
