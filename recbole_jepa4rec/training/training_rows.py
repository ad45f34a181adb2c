"""Which users train, which targets an epoch has, and which of them share a step."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import Draw, below, derive, uniform
from recbole_jepa4rec.data.histories import Histories


def trainable_users(histories: Histories) -> Tensor:
    """Users whose training part holds a history and a target, internal ids ``[U']``."""
    return torch.nonzero(histories.train_end - histories.offsets[:-1] >= 2)[:, 0]


def held_out_users(users: Tensor, share: float, seed: int) -> Tensor:
    """Which of the users validate pre-training instead of taking part in it, bool ``[U']``."""
    return uniform(derive(seed, users, Draw.HELD_OUT)) < share


def target_positions(histories: Histories, users: Tensor, seed: int, epoch: int) -> Tensor:
    """One target for each user, drawn uniformly from the training part, in shuffled order.

    Args:
        histories: all users' interactions.
        users: who trains in this epoch, ``[U']``.
        seed: of the run.
        epoch: number of the epoch among all epochs of the run.

    Returns:
        Positions of the targets in ``histories.items``, ``[U']``. The draw for a user depends on
        the seed, the epoch and the user alone.
    """
    keys = derive(seed, epoch, users)
    first = histories.offsets[users] + 1
    targets = first + below(derive(keys, Draw.TARGET), histories.train_end[users] - first)
    return targets[torch.argsort(derive(keys, Draw.SHUFFLE))]


def window_ends(histories: Histories, users: Tensor, seed: int, epoch: int, window: int) -> Tensor:
    """Targets so far apart that the windows before them hold every other target as well.

    For training on all prefixes: a row's window and its target give one target an item, so every
    interaction of the training part that has a history is trained on in every epoch. The newest
    always ends a window; the ends before it are shifted at random, so that windows differ between
    epochs (and the newest ``window`` targets overlap with the ones before). Where
    ``max_sequence_tokens`` cuts a window, its oldest targets are left out.

    Args:
        histories: all users' interactions.
        users: who trains in this epoch, ``[U']``.
        seed: of the run.
        epoch: number of the epoch among all epochs of the run.
        window: items of a window.

    Returns:
        Positions of the targets in ``histories.items``, in shuffled order, at least one a user.
    """
    keys = derive(seed, epoch, users)
    targets = histories.train_end[users] - histories.offsets[users] - 1
    shift = 1 + below(derive(keys, Draw.TARGET), window)
    beyond = (targets - shift + window - 1) // window
    counts = 1 + torch.where(targets > window, beyond, torch.zeros_like(beyond))
    row = torch.arange(len(users)).repeat_interleave(counts)
    nth = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    back = torch.where(nth > 0, shift[row] + (nth - 1) * window, torch.zeros_like(nth))
    ends = histories.train_end[users][row] - 1 - back
    return ends[torch.argsort(derive(keys[row], Draw.SHUFFLE, nth))]


def history_tokens(
    histories: Histories, targets: Tensor, item_tokens: Tensor, max_items: int, max_tokens: int
) -> Tensor:
    """Tokens of the history before each target, ``[R]``.

    Args:
        histories: all users' interactions.
        targets: positions of the targets, ``[R]``.
        item_tokens: tokens that each item takes, ``[N]``.
        max_items: newest items of a history that are read.
        max_tokens: tokens of a history that are read.
    """
    read = torch.cat([torch.zeros(1, dtype=torch.int64), item_tokens[histories.items].cumsum(0)])
    first = torch.maximum(histories.offsets[histories.users[targets]], targets - max_items)
    return (read[targets] - read[first]).clamp(max=max_tokens)
