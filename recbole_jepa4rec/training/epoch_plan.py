"""Which targets share a step in an epoch, and how many items a step trains to predict."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.data.histories import Histories
from recbole_jepa4rec.text.token_batch import fill_batches
from recbole_jepa4rec.training.phase import Phase
from recbole_jepa4rec.training.training_rows import history_tokens, target_positions, window_ends


def epoch_key(phase: Phase, epoch: int) -> int:
    """What keys an epoch's random draws, different in every phase."""
    return phase.number * 1_000_000 + epoch


def plan_epoch(
    histories: Histories, phase: Phase, epoch: int, model: Any, config: Any
) -> list[Tensor]:
    """The targets of an epoch in batches, which a number of sequences and of tokens bounds.

    Both bounds are those of one process; several share batches as many times as large.

    Args:
        histories: all users' interactions.
        phase: who trains, and how many sequences a batch has at most.
        epoch: number of the epoch within the phase.
        model: says whether it trains all prefixes, and the tokens of each item if it reads any.
        config: settings of the run.

    Returns:
        Positions of the targets in ``histories.items``, one tensor a batch.
    """
    max_items, key = config["MAX_ITEM_LIST_LENGTH"], epoch_key(phase, epoch)
    if model.trains_all_prefixes:
        targets = window_ends(histories, phase.users, config["seed"], key, max_items)
    else:
        targets = target_positions(histories, phase.users, config["seed"], key)
    sequences = phase.batch_size * processes.world_size()
    if model.item_tokens is None:
        return list(targets.split(sequences))
    tokens = history_tokens(
        histories, targets, model.item_tokens, max_items, config["max_sequence_tokens"]
    )
    room = config["tokens_per_batch"] * processes.world_size()
    return list(targets.split(fill_batches(tokens, room, sequences)))


def count_targets(histories: Histories, positions: Tensor, model: Any, max_items: int) -> int:
    """Items that the histories before these positions are trained to predict."""
    if not model.trains_all_prefixes:
        return len(positions)
    before = positions - histories.offsets[histories.users[positions]]
    return int(before.clamp(max=max_items).sum())
