"""Modules that follow another: the target encoder is a moving average (JEPA4Rec, section 3.2)."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from recbole_jepa4rec.base.device import PartlyOnCPU

Followed = TypeVar("Followed", bound=nn.Module)


class FixedCopy(PartlyOnCPU, Generic[Followed]):
    """A copy of a module that keeps its weights until told; no gradient, always in eval mode.

    Args:
        source: the module to copy.
    """

    on_cpu: ClassVar[tuple[str, ...]] = ()
    module: Followed

    def __init__(self, source: Followed) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FixedCopy[Followed]:
        """Stay in eval mode whatever ``mode`` says."""
        return super().train(False)

    @torch.no_grad()
    def copy_from(self, source: Followed) -> None:
        """Take over the weights of ``source`` as they are."""
        self.module.load_state_dict(source.state_dict())

    def begin(self, steps: int) -> None:
        """A phase of so many steps begins."""

    def update(self, source: Followed) -> None:
        """The source has moved by a step, which leaves a fixed copy as it is."""


class ExponentialMovingAverage(FixedCopy[Followed]):
    """A copy of a module whose weights follow it slowly; no gradient, always in eval mode.

    ``average <- m * average + (1 - m) * source``, with the momentum ``m`` rising from
    ``momentum`` to ``final_momentum`` on a half cosine over ``steps`` updates (the schedule of
    BYOL; I-JEPA's is linear, the paper names none).

    Args:
        source: the module to follow.
        momentum: m at the first update, in ``[0, 1]``.
        final_momentum: m from update ``steps`` on, in ``[0, 1]``.
    """

    on_cpu = ("step",)
    step: Tensor

    def __init__(self, source: Followed, momentum: float, final_momentum: float = 1.0) -> None:
        super().__init__(source)
        self.momentum, self.final_momentum = momentum, final_momentum
        self.steps = 1
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def begin(self, steps: int) -> None:
        """Start a schedule of so many updates."""
        self.steps = steps
        self.step.zero_()

    def current_momentum(self) -> float:
        """The momentum of the next update."""
        progress = min(int(self.step) / max(self.steps, 1), 1.0)
        rise = (1.0 - math.cos(math.pi * progress)) / 2.0
        return self.momentum + (self.final_momentum - self.momentum) * rise

    @torch.no_grad()
    def update(self, source: Followed) -> None:
        """Move the average towards ``source`` by one step.

        Raises:
            ValueError: if the two modules do not have the same parameters and buffers.
        """
        momentum = self.current_momentum()
        followed = source.state_dict()
        mine = self.module.state_dict()
        if followed.keys() != mine.keys():
            raise ValueError(f"not in both modules: {sorted(followed.keys() ^ mine.keys())[:3]}")
        names = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[n] for n in names], [followed[n] for n in names], 1 - momentum)
        self.step += 1
