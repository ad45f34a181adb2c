"""From a loss to a step: gradients, loss scale, clipping, optimizer and its schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.training.phase import warmup_then_decay


class Optimisation:
    """What moves a model's weights through one phase.

    Args:
        model: its ``weights_moved`` is called after every step that the optimizer makes.
        optimizer: of the model's parameters.
        scaler: of the loss, for float16.
        steps: of the phase, for the schedule.
        warmup_ratio: see ``warmup_then_decay``.
        clipping: arguments of ``clip_grad_norm_``; ``None`` for no clipping.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        steps: int,
        warmup_ratio: float,
        clipping: dict[str, Any] | None,
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.schedule = warmup_then_decay(optimizer, steps, warmup_ratio)
        self.clipping = clipping
        optimizer.register_step_post_hook(lambda *_: model.weights_moved())

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a part of the step's loss."""
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        """Move the weights by the gradients of all processes, and forget these."""
        processes.all_reduce_gradients(self.model.parameters())
        if self.clipping:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), **self.clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Of optimizer, schedule and scaler."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
