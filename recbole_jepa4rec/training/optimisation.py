"""From a loss to a step: gradients, loss scale, clipping, optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import PRECISIONS, Awaited, autocast
from recbole_jepa4rec.data.histories import Histories
from recbole_jepa4rec.model.base import PhasedModel
from recbole_jepa4rec.training.phases import Phase, count_targets


def warmup_then_decay(optimizer: Any, steps: int, warmup: int, decays: bool = True) -> Any:
    """Learning rate rises linearly over the first steps, then falls linearly to 0, or stays."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup)) if decays else 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Terms:
    """The loss terms of a step, on their way from the device.

    Args:
        names: of the terms.
        sizes: sequences of each batch of the step.
        values: ``[batches, terms]``.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int], values: Tensor) -> None:
        self.names, self.sizes, self._values = names, sizes, Awaited(values)

    def add_to(self, sums: dict[str, float]) -> None:
        """Add each batch's terms, times its sequences, to sums by name; waits for the step.

        Raises:
            ValueError: if a term is not finite.
        """
        for size, values in zip(self.sizes, self._values.tolist(), strict=True):
            terms = dict(zip(self.names, values, strict=True))
            if not all(map(math.isfinite, values)):
                advice = "try a lower learning_rate, clip_grad_norm or precision=fp32"
                raise ValueError(f"loss is not finite: {terms}; {advice}")
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value * size


class Optimisation:
    """What moves a model's weights through one phase, one step of some batches after another.

    All processes of a run take the same steps. Each reads its own part of a batch and gives its
    part of the loss, whose denominators count the whole batch.

    Args:
        model: whose weights move.
        optimizer: of the model's parameters.
        histories: that batches of targets point into.
        phase: that is trained.
        steps: of the phase, for the schedule.
        config: settings of the run.
    """

    def __init__(
        self,
        model: PhasedModel,
        optimizer: torch.optim.Optimizer,
        histories: Histories,
        phase: Phase,
        steps: int,
        config: Any,
    ) -> None:
        self.model, self.optimizer, self.histories = model, optimizer, histories
        self.device, self.precision = config["device"], config["precision"]
        self.window, self.clipping = config["MAX_ITEM_LIST_LENGTH"], phase.clipping
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=PRECISIONS[self.precision] is torch.float16
        )
        share = max(1, round(steps * config["warmup_ratio"]))
        warmup = share if phase.warmup_steps is None else phase.warmup_steps
        self.schedule = warmup_then_decay(optimizer, steps, warmup, config["learning_rate_decay"])
        optimizer.register_step_post_hook(lambda *_: model.weights_moved())

    def step(self, batches: Sequence[Tensor]) -> Terms:
        """Move the weights by the gradients of some batches.

        Args:
            batches: positions of their targets, ``[B]`` each.

        Returns:
            The weighted loss terms of each batch, to be read when the next step is under way.
        """
        counts = [count_targets(self.histories, b, self.model, self.window) for b in batches]
        terms = [
            self._backward(positions, count / sum(counts))
            for positions, count in zip(batches, counts, strict=True)
        ]
        processes.all_reduce_gradients(self.model.parameters())
        if self.clipping:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), **self.clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return Terms([*self.model.loss_weights], [*map(len, batches)], torch.stack(terms))

    def _backward(self, positions: Tensor, share: float) -> Tensor:
        """Add the gradient of one batch, which is ``share`` of its step; returns the loss terms."""
        whole = self.model.reads_whole_history
        own = self.histories.packed(processes.shard(positions), self.window, whole)
        with autocast(self.device, self.precision):
            losses = self.model.losses(own)
        terms = processes.all_reduce(torch.stack([loss.detach() for loss in losses]))
        self.scaler.scale(sum(losses, start=losses[0].new_zeros(())) * share).backward()
        return terms

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
