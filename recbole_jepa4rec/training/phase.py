"""The phases of training, and how the learning rate moves in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PRETRAIN, FINETUNE, FINETUNE_FROZEN_ITEMS = "pretrain", "finetune", "finetune_frozen_items"
PERMUTATION = "permutation"
STAGES = ("pretrain", "finetune", "both")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

FINETUNING = (
    (PERMUTATION, 3, "permutation_epochs"),
    (FINETUNE, 1, "epochs"),
    (FINETUNE_FROZEN_ITEMS, 2, "frozen_items_epochs"),
)
"""Phases after pre-training in their order: name, number, and the key that counts their epochs."""


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own optimizer and schedule.

    Attributes:
        name: ``PRETRAIN``, ``PERMUTATION``, ``FINETUNE`` or ``FINETUNE_FROZEN_ITEMS``.
        number: position among all phases; keys the random draws.
        epochs: at most so many.
        batch_size: sequences a batch, at most.
        learning_rate: its peak.
        users: internal ids of the users who train, ``[U']``.
        validate: metric values on held-out data; ``None`` where nothing is held out.
        deadline: of ``time.monotonic()``, or infinity.
    """

    name: str
    number: int
    epochs: int
    batch_size: int
    learning_rate: float
    users: Tensor
    validate: Callable[[], dict[str, float]] | None
    deadline: float


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
    """

    phase: int
    epochs_run: int
    epoch: int = 0
    batches: int = 0
    sequences: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    is_over: bool = False

    def next_epoch(self, is_last: bool) -> None:
        """An epoch was trained, and validated where it had to be."""
        self.epoch, self.epochs_run = self.epoch + 1, self.epochs_run + 1
        self.batches, self.sequences, self.sums = 0, 0, {}
        self.is_over = is_last


def refuse_settings(config: Any, stage: str, sources: Sequence[str]) -> None:
    """Check what only training in phases reads.

    Args:
        config: settings of the run.
        stage: ``train_stage``, or what it comes to with a checkpoint.
        sources: names of the data sets.

    Raises:
        ValueError: for a value that is not allowed; names the key.
    """
    for key, allowed in (("train_stage", STAGES), ("precision", tuple(PRECISIONS))):
        if config[key] not in allowed:
            raise ValueError(f"{key} is {config[key]!r}; allowed: {', '.join(allowed)}")
    for key in ("enable_amp", "enable_scaler"):
        if config[key]:
            raise ValueError(f"{key} is RecBole's; allowed here: precision=bf16 or fp16")
    if len(sources) > 1 and stage != "pretrain":
        raise ValueError(
            f"train_stage is {stage!r} with {len(sources)} data sets; allowed: 'pretrain' "
            "(finetune on one of them afterwards, with --checkpoint)"
        )


def finetuning_phases(
    config: Any,
    learns_permutation: bool,
    users: Tensor,
    validate: Callable[[], dict[str, float]] | None,
    deadline: float,
) -> Iterator[Phase]:
    """The phases after pre-training that have epochs, in order.

    Args:
        config: settings of the run.
        learns_permutation: whether the model has a permutation to learn first.
        users: internal ids of the users who train, ``[U']``.
        validate: metric values on held-out data; ``None`` where nothing is held out.
        deadline: of ``time.monotonic()``, or infinity.
    """
    for name, number, key in FINETUNING:
        if config[key] and (name != PERMUTATION or learns_permutation):
            yield Phase(
                name=name,
                number=number,
                epochs=config[key],
                batch_size=config["train_batch_size"],
                learning_rate=config["learning_rate"],
                users=users,
                validate=validate,
                deadline=deadline,
            )


def warmup_then_decay(optimizer: Any, steps: int, warmup_ratio: float) -> Any:
    """Learning rate rises linearly over ``warmup_ratio`` of the steps, then falls linearly to 0."""
    warmup = max(1, round(steps * warmup_ratio))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
