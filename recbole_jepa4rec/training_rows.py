"""Which users train, which are held out, and which target each gets in an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_jepa4rec.histories import Histories
from recbole_jepa4rec.keyed_random import Draw, below, derive, uniform


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
