"""From a loss to a step: gradients, loss scale, clipping, optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.data.histories import Histories
from recbole_jepa4rec.model.base import PhasedModel
from recbole_jepa4rec.training.phases import PRECISIONS, Phase, count_targets


def warmup_then_decay(optimizer: Any, steps: int, warmup: int, decays: bool = True) -> Any:
    """Learning rate rises linearly over the first steps, then falls linearly to 0, or stays."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup)) if decays else 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


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
        self.device, self.amp_dtype = config["device"], PRECISIONS[config["precision"]]
        self.window, self.clipping = config["MAX_ITEM_LIST_LENGTH"], phase.clipping
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp_dtype is torch.float16
        )
        share = max(1, round(steps * config["warmup_ratio"]))
        warmup = share if phase.warmup_steps is None else phase.warmup_steps
        self.schedule = warmup_then_decay(optimizer, steps, warmup, config["learning_rate_decay"])
        optimizer.register_step_post_hook(lambda *_: model.weights_moved())

    def step(self, batches: Sequence[Tensor]) -> list[dict[str, float]]:
        """Move the weights by the gradients of some batches.

        Args:
            batches: positions of their targets, ``[B]`` each.

        Returns:
            The weighted loss terms of each batch, by name.

        Raises:
            ValueError: if a term is not finite.
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
        return terms

    def _backward(self, positions: Tensor, share: float) -> dict[str, float]:
        """Add the gradient of one batch, which is ``share`` of its step."""
        whole = self.model.reads_whole_history
        own = self.histories.packed(processes.shard(positions), self.window, whole).to(self.device)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model.losses(own)
        values = processes.all_reduce(torch.stack([loss.detach() for loss in losses])).tolist()
        terms = dict(zip(self.model.loss_weights, values, strict=True))
        if not all(map(math.isfinite, values)):
            advice = "try a lower learning_rate, clip_grad_norm or precision=fp32"
            raise ValueError(f"loss is not finite: {terms}; {advice}")
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
