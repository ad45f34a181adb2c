"""The phases of training, and how the learning rate moves in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PRETRAIN, FINETUNE, FINETUNE_FROZEN_ITEMS = "pretrain", "finetune", "finetune_frozen_items"


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own optimizer and schedule.

    Attributes:
        name: ``PRETRAIN``, ``FINETUNE`` or ``FINETUNE_FROZEN_ITEMS``.
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


def warmup_then_decay(optimizer: Any, steps: int, warmup_ratio: float) -> Any:
    """Learning rate rises linearly over ``warmup_ratio`` of the steps, then falls linearly to 0."""
    warmup = max(1, round(steps * warmup_ratio))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
