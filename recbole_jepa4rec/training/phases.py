"""The phases of training: which users, targets and batches each has, and where one stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import Draw, below, derive, uniform
from recbole_jepa4rec.data.histories import Histories
from recbole_jepa4rec.model.base import (
    FINETUNE,
    FINETUNE_FROZEN_ITEMS,
    PERMUTATION,
    PRETRAIN,
    PhasedModel,
)
from recbole_jepa4rec.text.token_batch import fill_batches

FINETUNING = (
    (PERMUTATION, 3, "permutation_epochs"),
    (FINETUNE, 1, "epochs"),
    (FINETUNE_FROZEN_ITEMS, 2, "frozen_items_epochs"),
)
"""Phases after pre-training in their order: name, number, and the key that counts their epochs."""

Validate = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own optimizer and schedule.

    Attributes:
        name: ``PRETRAIN``, ``PERMUTATION``, ``FINETUNE`` or ``FINETUNE_FROZEN_ITEMS``.
        number: position among all phases; keys the random draws.
        epochs: at most so many.
        batch_size: sequences a batch, at most, in one process.
        learning_rate: its peak.
        warmup_steps: in which it rises; ``None`` is the share of them that ``warmup_ratio`` gives.
        clipping: of gradients, ``clip_grad_norm``; ``None`` is none.
        stopping_step: validations without improvement before it ends; 0 for any number.
        users: internal ids of the users who train, ``[U']``.
        validate: metric values on held-out data; ``None`` where nothing is held out.
        deadline: of ``time.monotonic()``, or infinity.
        earliest_target: share of a training part after which ``random`` targets are drawn.
        least_history: items before such a target, at least: 0 or 1.
    """

    name: str
    number: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int | None
    clipping: dict[str, Any] | None
    stopping_step: int
    users: Tensor
    validate: Validate | None
    deadline: float
    earliest_target: float = 0.0
    least_history: int = 1

    def epoch_key(self, epoch: int) -> int:
        """What keys an epoch's random draws, different in every phase."""
        return self.number * 1_000_000 + epoch


@dataclass
class PhasePosition:
    """How far a phase has come, between two steps.

    Attributes:
        phase: its number.
        epochs_run: epochs of the run that are over.
        epoch: the one under way, of the phase.
        batches: that it has trained so far.
        sequences: in these.
        sums: of each loss term's mean over a batch, times the batch's sequences.
        since_best: validations since the best one.
        is_over: whether no epoch is left.
        learns_permutation: whether the model had a permutation to learn first.
    """

    phase: int
    epochs_run: int
    epoch: int = 0
    batches: int = 0
    sequences: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    is_over: bool = False
    learns_permutation: bool = False

    def next_epoch(self, is_last: bool) -> None:
        """An epoch was trained, and validated where it had to be."""
        self.epoch, self.epochs_run = self.epoch + 1, self.epochs_run + 1
        self.batches, self.sequences, self.sums = 0, 0, {}
        self.is_over = is_last


def phases_of(
    config: Any,
    stage: str,
    histories: Histories,
    model: PhasedModel,
    validate_held_out: Callable[[Tensor], dict[str, float]],
    validate: Validate | None,
    began: float,
    deadline: float,
) -> Iterator[Phase]:
    """The phases of a stage that have epochs, in order.

    Args:
        config: settings of the run.
        stage: ``pretrain``, ``finetune`` or ``both``.
        histories: of the training rows.
        model: says, after pre-training, whether it has a permutation to learn first.
        validate_held_out: metrics of the targets at these positions, of users held out of
            pre-training.
        validate: metrics of the validation rows; ``None`` where there are none.
        began: when training began, in seconds of ``time.monotonic()``.
        deadline: when it has to end, in the same seconds, or infinity.
    """
    users = trainable_users(histories)
    if stage != "finetune" and config["pretrain_epochs"]:
        held_out = held_out_users(users, config["pretrain_validation_ratio"], config["seed"])
        last = histories.train_end[users[held_out]] - 1
        share = config["pretrain_time_ratio"] if stage == "both" else 1.0
        yield Phase(
            name=PRETRAIN,
            number=0,
            epochs=config["pretrain_epochs"],
            batch_size=config["pretrain_batch_size"],
            learning_rate=config["pretrain_learning_rate"],
            warmup_steps=config["pretrain_warmup_steps"],
            clipping=config["clip_grad_norm"],
            stopping_step=config["stopping_step"],
            users=users[~held_out],
            validate=(lambda: validate_held_out(last)) if len(last) else None,
            deadline=began + share * (deadline - began),
            earliest_target=config["pretrain_earliest_target"] or 0.0,
        )
    if stage == "pretrain" or not config["epochs"]:
        return
    least_history = 0 if config["finetune_empty_histories"] else 1
    users = trainable_users(histories, least_history)
    frozen_stopping_step = config["frozen_items_stopping_step"]
    for name, number, key in FINETUNING:
        if config[key] and (name != PERMUTATION or model.learns_permutation):
            yield Phase(
                name=name,
                number=number,
                epochs=config[key],
                batch_size=config["train_batch_size"],
                learning_rate=config["learning_rate"],
                warmup_steps=config["warmup_steps"],
                clipping=None if config["finetune_unclipped"] else config["clip_grad_norm"],
                stopping_step=config["stopping_step"]
                if frozen_stopping_step is None or name != FINETUNE_FROZEN_ITEMS
                else frozen_stopping_step,
                users=users,
                validate=validate,
                deadline=deadline,
                least_history=least_history,
            )


def plan_epoch(
    histories: Histories, phase: Phase, epoch: int, model: PhasedModel, config: Any
) -> list[Tensor]:
    """The targets of an epoch in batches, which a number of sequences and of tokens bounds.

    Both bounds are those of one process; several share batches as many times as large.

    Args:
        histories: all users' interactions.
        phase: who trains, and how many sequences a batch has at most.
        epoch: number of the epoch within the phase.
        model: says which targets it trains, and the tokens of each item if it reads any.
        config: settings of the run.

    Returns:
        Positions of the targets in ``histories.items``, one tensor a batch.
    """
    max_items, key = config["MAX_ITEM_LIST_LENGTH"], phase.epoch_key(epoch)
    if model.training_targets == "all_prefixes":
        targets = window_ends(histories, phase.users, config["seed"], key, max_items)
    else:
        targets = target_positions(
            histories,
            phase.users,
            config["seed"],
            key,
            phase.earliest_target,
            phase.least_history,
        )
    sequences = phase.batch_size * processes.world_size()
    if model.item_tokens is None:
        return list(targets.split(sequences))
    tokens = history_tokens(
        histories, targets, model.item_tokens, max_items, config["max_sequence_tokens"]
    )
    room = config["tokens_per_batch"] * processes.world_size()
    return list(targets.split(fill_batches(tokens, room, sequences)))


def count_targets(
    histories: Histories, positions: Tensor, model: PhasedModel, max_items: int
) -> int:
    """Items that the histories before these positions are trained to predict."""
    if model.training_targets != "all_prefixes":
        return len(positions)
    before = positions - histories.offsets[histories.users[positions]]
    return int(before.clamp(max=max_items).sum())


def trainable_users(histories: Histories, least_history: int = 1) -> Tensor:
    """Users whose training part holds such a history and a target, internal ids ``[U']``."""
    return torch.nonzero(histories.train_end - histories.offsets[:-1] > least_history)[:, 0]


def held_out_users(users: Tensor, share: float, seed: int) -> Tensor:
    """Which of the users validate pre-training instead of taking part in it, bool ``[U']``."""
    return uniform(derive(seed, users, Draw.HELD_OUT)) < share


def target_positions(
    histories: Histories,
    users: Tensor,
    seed: int,
    epoch: int,
    earliest: float = 0.0,
    least_history: int = 1,
) -> Tensor:
    """One target for each user, drawn uniformly from the training part, in shuffled order.

    Args:
        histories: all users' interactions.
        users: who trains in this epoch, ``[U']``.
        seed: of the run.
        epoch: number of the epoch among all epochs of the run.
        earliest: no target stands before this share of the way from the training part's first item
            to its last.
        least_history: items before a target, at least: 0 or 1.

    Returns:
        Positions of the targets in ``histories.items``, ``[U']``. The draw for a user depends on
        the seed, the epoch and the user alone.
    """
    keys = derive(seed, epoch, users)
    way = histories.train_end[users] - 1 - histories.offsets[users]
    first = histories.offsets[users] + (way * earliest).long().clamp(min=least_history)
    targets = first + below(derive(keys, Draw.TARGET), histories.train_end[users] - first)
    return targets[torch.argsort(derive(keys, Draw.SHUFFLE), stable=True)]


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
    return ends[torch.argsort(derive(keys[row], Draw.SHUFFLE, nth), stable=True)]


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
