"""The passes of one phase over the users: batches, gradients, steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.training.epoch_plan import count_targets, epoch_key, plan_epoch
from recbole_jepa4rec.training.optimisation import Optimisation
from recbole_jepa4rec.training.phase import PRECISIONS, Phase, PhasePosition


class PhasePasses:
    """What a phase trains on, epoch by epoch.

    All processes of a run plan the same batches. Each reads its own part of one, and gives its
    part of the loss, whose denominators count the whole batch.

    Args:
        model: see ``TwoStageTrainer``.
        rows: of training, with every user's histories.
        phase: who trains, and how many sequences a batch has.
        config: settings of the run.

    Raises:
        ValueError: if nobody is left to train, or an epoch has fewer sequences than processes.

    Attributes:
        steps: of the optimizer, if all epochs are run; about as many in every epoch.
    """

    def __init__(self, model: Any, rows: HistoryRows, phase: Phase, config: Any) -> None:
        self.model, self.rows, self.phase, self.config = model, rows, phase, config
        self.device, self.amp_dtype = config["device"], PRECISIONS[config["precision"]]
        if not len(phase.users):
            raise ValueError(
                f"{phase.name}: no user with 2 training interactions is left to train on, after "
                f"pretrain_validation_ratio={config['pretrain_validation_ratio']}"
            )
        batches = self._plan(0)
        if (sequences := sum(map(len, batches))) < processes.world_size():
            raise ValueError(
                f"nproc is {processes.world_size()}; allowed: {sequences}, the sequences that an "
                f"epoch of {phase.name} has, or fewer"
            )
        self.steps = phase.epochs * math.ceil(len(batches) / config["accumulation_steps"])

    def steps_from(
        self, position: PhasePosition, optimisation: Optimisation, show_progress: bool
    ) -> Iterator[int]:
        """Train the rest of an epoch; yields the steps made in it after each.

        Args:
            position: within the epoch, moved on by every step.
            optimisation: makes the steps.
            show_progress: whether to draw a bar.
        """
        self.model.train()
        self.model.begin_epoch(epoch_key(self.phase, position.epoch))
        batches, size = self._plan(position.epoch), self.config["accumulation_steps"]
        with tqdm(
            total=sum(map(len, batches)),
            initial=position.sequences,
            desc=f"{self.phase.name} {position.epoch}",
            unit=" sequences",
            file=sys.stderr,
            disable=not show_progress,
        ) as progress:
            for first in range(position.batches, len(batches), size):
                step = batches[first : first + size]
                self.model.begin_step(first // size)
                self._step(step, position, optimisation)
                progress.update(sum(map(len, step)))
                yield first // size + 1

    def _plan(self, epoch: int) -> list[Tensor]:
        """The targets of an epoch in batches; see ``plan_epoch``."""
        return plan_epoch(self.rows.histories, self.phase, epoch, self.model, self.config)

    def _step(
        self, batches: list[Tensor], position: PhasePosition, optimisation: Optimisation
    ) -> None:
        """One step, by the gradients of some batches."""
        window = self.config["MAX_ITEM_LIST_LENGTH"]
        targets = [count_targets(self.rows.histories, b, self.model, window) for b in batches]
        for positions, count in zip(batches, targets, strict=True):
            terms = self._backward(positions, count / sum(targets), optimisation)
            for name, value in zip(self.model.loss_weights, terms, strict=True):
                position.sums[name] = position.sums.get(name, 0.0) + value * len(positions)
        optimisation.step()
        position.batches += len(batches)
        position.sequences += sum(map(len, batches))

    def _backward(self, positions: Tensor, share: float, optimisation: Optimisation) -> list[float]:
        """Add the gradient of one batch, which is ``share`` of its step; returns its loss terms.

        Raises:
            ValueError: if a term is not finite.
        """
        rows = self.rows.with_targets(processes.shard(positions))
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model.calculate_loss(rows[:].to(self.device))
        terms = processes.all_reduce(torch.stack([loss.detach() for loss in losses])).tolist()
        if not all(map(math.isfinite, terms)):
            named = dict(zip(self.model.loss_weights, terms, strict=True))
            advice = "try a lower learning_rate, clip_grad_norm or precision=fp32"
            raise ValueError(f"loss is not finite: {named}; {advice}")
        optimisation.backward(sum(losses) * share)
        return terms
