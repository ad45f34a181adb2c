"""RecBole's loop over epochs and batches, under the protocol and from any step on."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import Tensor

from recbole_jepa4rec.base.stopping import TimeSpentError
from recbole_jepa4rec.training.epoch_batches import EpochBatches, EpochPosition
from recbole_jepa4rec.training.masked_batches import MaskedBatches
from recbole_jepa4rec.training.protocol_trainer import ProtocolTrainer
from recbole_jepa4rec.training.run_state import restore_tensors


class EpochTrainer(ProtocolTrainer):
    """Mixin for the trainer of one of RecBole's models, to stand before it among the bases."""

    _position: EpochPosition | None = None
    _resumed_random: dict[str, Any] | None = None

    def train(
        self,
        train_data: Any,
        valid_data: Any,
        verbose: bool,
        saved: bool,
        show_progress: bool,
        callback_fn: Any,
    ) -> None:
        """Run RecBole's loop, from the position of ``resumed`` on if there is one."""
        self._train_data = train_data
        if self.resumed:
            restore_tensors(self, self.resumed)
            self._go_to(self.resumed["position"], self.resumed["random"])
        with self.timing("pretrain" if self.stage == "pretrain" else "finetune"):
            try:
                super(ProtocolTrainer, self).fit(
                    train_data, valid_data, verbose, saved, show_progress, callback_fn
                )
            except TimeSpentError:
                self.logger.info(f"max_train_seconds is spent in epoch {self.epochs_run - 1}")
        if self.stage == "pretrain" and self.epochs_run:
            self.pretrain_datasets.append(self.config["dataset"])
        if saved and not self.has_saved:  # S3Rec's pre-training is never validated
            self._save_checkpoint(self.epochs_run - self.epochs_before - 1, verbose=verbose)

    def _go_to(self, position: dict[str, Any], random: dict[str, Any]) -> None:
        """Let RecBole's loop begin at a position, where the generators stood at ``random``."""
        position = dict(position)
        self._train_data.generator.set_state(position.pop("loader_now"))
        self._position, self._resumed_random = EpochPosition(**position), random
        self.start_epoch, self.epochs_run = self._position.epoch, self._position.epochs_run

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        """One epoch, cut short at the deadline; the next one is not begun."""
        if time.monotonic() >= self.deadline and self.epochs_run:
            raise TimeSpentError
        position, resumed = self._position, self._resumed_random
        if resumed is None:
            position = EpochPosition.start(epoch_idx, self.epochs_run, train_data)
            self._position = position
            if epoch_idx > self.start_epoch:
                self.write_checkpoint()
        assert position is not None
        self._resumed_random = None
        self.epochs_run += 1
        if not position.is_trained:
            if field := self.config["MASK_INDEX"]:  # of RecBole's transform mask_itemseq
                train_data = MaskedBatches(train_data, field)
            batches = EpochBatches(train_data, position, resumed, self._goes_on)
            loss_func = position.counting(loss_func or self.model.calculate_loss)
            super()._train_epoch(batches, epoch_idx, loss_func, show_progress)
            position.is_trained = True
        if time.monotonic() >= self.deadline and self.eval_step > 0:
            self.eval_step = 1  # so that these last weights are validated
        return position.losses

    def _goes_on(self) -> bool:
        """Called after each step: writes checkpoints; whether there is time for another step."""
        assert self._position is not None
        steps = self.config["checkpoint_steps"]
        if steps and self._position.batches % steps == 0:
            self.write_checkpoint()
        self.end_if_asked()
        return time.monotonic() < self.deadline

    def position(self) -> dict[str, Any] | None:
        """Where the loop over epochs and batches is; ``None`` before and after it."""
        if self._position is None or self.is_trained:
            return None
        return {**vars(self._position), "loader_now": self._train_data.generator.get_state()}

    def _check_nan(self, loss: Tensor) -> None:
        self._refuse_unless(torch.isfinite(loss), f"training losses (the last is {loss.item()})")

    def _add_train_loss_to_tensorboard(
        self, epoch_idx: int, losses: Any, tag: str = "Loss/Train"
    ) -> None:
        """Give pre-training a curve of its own."""
        tag = "Loss/Pretrain" if self.stage == "pretrain" else tag
        super()._add_train_loss_to_tensorboard(epoch_idx, losses, tag)


@functools.cache
def with_protocol(trainer_class: type) -> type:
    """The trainer class with ``EpochTrainer`` mixed in; itself where it is already."""
    if issubclass(trainer_class, EpochTrainer):
        return trainer_class
    return type(f"Protocol{trainer_class.__name__}", (EpochTrainer, trainer_class), {})
