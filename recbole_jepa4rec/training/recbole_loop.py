"""RecBole's loop over epochs and batches, under the protocol and from any step on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.progress import shows_bars
from recbole_jepa4rec.model.recbole_models import SharedPass
from recbole_jepa4rec.training.protocol import ProtocolTrainer
from recbole_jepa4rec.training.shared_pass import PrefixBatches
from recbole_jepa4rec.training.state import Session, random_state, restore_random_state

Losses = float | tuple[float, ...]


SCORES_THAT_CHOOSE = 2**28
"""Once, for a model that trains nothing."""


class TimeSpentError(Exception):
    """Leaves RecBole's loop over epochs, which offers no other way out."""


@dataclass
class EpochPosition:
    """How far an epoch of RecBole's loop has come.

    Attributes:
        epoch: its number.
        epochs_run: epochs that were begun before it.
        random: state of the random number generators before the first batch was drawn.
        loader: state of the loader's own generator then.
        batches: batches trained so far.
        losses: their summed losses; ``None`` before the first.
        is_trained: whether these were all, so that the validation comes next.
    """

    epoch: int
    epochs_run: int
    random: Mapping[str, Any]
    loader: Tensor
    batches: int = 0
    losses: Losses | None = None
    is_trained: bool = False

    @classmethod
    def start(cls, epoch: int, epochs_run: int, loader: Any) -> EpochPosition:
        """Before the first batch of RecBole's loader."""
        return cls(epoch, epochs_run, random_state(), loader.generator.get_state())

    def counting(self, loss_func: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A model's loss function, whose values are added up here."""

        def counted(interaction: Any) -> Any:
            losses = loss_func(interaction)
            if isinstance(losses, tuple):
                terms = tuple(each.item() for each in losses)
                before = self.losses if isinstance(self.losses, tuple) else (0.0,) * len(terms)
                self.losses = tuple(map(sum, zip(before, terms, strict=True)))
            else:
                self.losses = losses.item() + (self.losses or 0.0)
            return losses

        return counted


class EpochBatches:
    """A loader that starts at a position and stops when it is told to; one batch at least is given.

    The batches before the position are drawn again and left out, so that the same random numbers
    choose the same order; then the generators are set to where they stood at the position. Batches
    in which RecBole's BERT4Rec has nothing to predict are left out as well: its loss is a mean over
    masked positions, and 0 / 0 would end the training.

    Args:
        loader: RecBole's loader; its other attributes shine through.
        position: where to start; counts on.
        resumed: state of the random number generators at the position, if it lies behind the start.
        masked_field: column of masked positions, ``[B, K]``, zero where there is none; ``None``
            where nothing is masked.
        goes_on: asked after each batch was trained on.
    """

    def __init__(
        self,
        loader: Any,
        position: EpochPosition,
        resumed: Mapping[str, Any] | None,
        masked_field: str | None,
        goes_on: Callable[[], bool],
    ) -> None:
        self._loader, self._position = loader, position
        self._resumed, self._masked_field, self._goes_on = resumed, masked_field, goes_on

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if self._resumed is not None:
            restore_random_state(self._position.random)
            self._loader.generator.set_state(self._position.loader)
        field = self._masked_field
        batches = (b for b in self._loader if field is None or b[field].any())
        try:
            for _ in range(self._position.batches):
                next(batches)
            if self._resumed is not None:
                restore_random_state(self._resumed)
            for batch in batches:
                yield batch
                self._position.batches += 1
                if not self._goes_on():
                    return
        finally:
            batches.close()  # ends the loader's workers; a traceback would keep them


class EpochTrainer(ProtocolTrainer):
    """Mixin for the trainer of one of RecBole's models, to stand before it among the bases."""

    eval_step: int
    _position: EpochPosition | None = None
    _resumed_random: Mapping[str, Any] | None = None
    _batches = 0

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
        session: Session | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Run RecBole's loop, from where ``session.resumed`` stands if it does.

        See RecBole's ``Trainer.fit`` for the other arguments and the returned value.
        """
        self._train_data = train_data
        show_progress = show_progress and shows_bars() and processes.is_main()
        with self.training(train_data, session) as goes_on:
            if not goes_on:
                return self.best_valid_score, self.best_valid_result
            if self.session.resumed:
                self.restore(self.session.resumed)
                self._go_to(self.session.resumed)
            elif valid_data and not self.state.checkpoint_from:
                self.choose(valid_data._dataset.inter_feat, SCORES_THAT_CHOOSE)
            with self.timer.timing("pretrain" if self.state.stage == "pretrain" else "finetune"):
                try:
                    super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
                except TimeSpentError:
                    epoch = self.state.epochs_run - 1
                    self.logger.info(f"max_train_seconds is spent in epoch {epoch}")
            if self.state.stage == "pretrain" and self.state.epochs_run:
                self.state.pretrain_datasets.append(self.config["dataset"])
            if saved and not self.state.has_saved:  # S3Rec's pre-training is never validated
                epoch = self.state.epochs_run - self.state.epochs_before - 1
                self._save_checkpoint(epoch, verbose=verbose)
        return self.best_valid_score, self.best_valid_result

    def _go_to(self, checkpoint: Mapping[str, Any]) -> None:
        """Let RecBole's loop begin at a checkpoint's position."""
        position = dict(checkpoint["position"])
        self._train_data.generator.set_state(position.pop("loader_now"))
        self._position, self._resumed_random = EpochPosition(**position), checkpoint["random"]
        self.start_epoch, self.state.epochs_run = self._position.epoch, self._position.epochs_run

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        """One epoch, cut short at the deadline; the next one is not begun."""
        if self.timer.is_over() and self.state.epochs_run:
            raise TimeSpentError
        position, resumed = self._position, self._resumed_random
        if resumed is None or position is None:
            position = EpochPosition.start(epoch_idx, self.state.epochs_run, train_data)
            self._position = position
            if epoch_idx > self.start_epoch:
                self.write_checkpoint()
        self._resumed_random = None
        self.state.epochs_run += 1
        if not position.is_trained:
            loss_func = loss_func or self.model.calculate_loss
            if isinstance(self.model, SharedPass):
                train_data = PrefixBatches(train_data, self.device)
                loss_func = self.model.loss_of_prefixes
            field = self.config["MASK_INDEX"]  # of RecBole's transform mask_itemseq
            batches = EpochBatches(train_data, position, resumed, field, self._goes_on)
            self._batches = len(batches)
            counted = position.counting(loss_func)
            super()._train_epoch(batches, epoch_idx, counted, show_progress)
            position.is_trained = True
            if position.losses is None:
                self.logger.info(f"epoch {epoch_idx}: no item was masked, nothing was trained")
        if self.timer.is_over() and self.eval_step > 0:
            self.eval_step = 1  # so that these last weights are validated
        return position.losses or 0.0

    def _goes_on(self) -> bool:
        """Called after each step: writes checkpoints; whether there is time for another step."""
        steps = self.config["checkpoint_steps"]
        if steps and self._position and self._position.batches % steps == 0:
            self.write_checkpoint()
        self.end_if_asked()
        done = self._position.batches if self._position else 0
        self.pulse.beat(f"epoch {self.state.epochs_run - 1}", done, self._batches, "batches")
        return not self.timer.is_over()

    def position(self) -> dict[str, Any] | None:
        """Where the loop over epochs and batches is; ``None`` before and after it."""
        if self._position is None or self.state.is_trained:
            return None
        return {**vars(self._position), "loader_now": self._train_data.generator.get_state()}

    def _check_nan(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            self.refuse_unless(False, f"training losses (the last is {loss.item()})")

    def _add_train_loss_to_tensorboard(
        self, epoch_idx: int, losses: Any, tag: str = "Loss/Train"
    ) -> None:
        """Call the curve what it is called for every model."""
        terms = losses if isinstance(losses, tuple) else ()
        named = {f"loss_{number}": value for number, value in enumerate(terms)}
        total = sum(terms) if terms else losses
        part = "pretrain" if self.state.stage == "pretrain" else "train"
        self.draw(part, {"loss": total, **named})


@functools.cache
def with_protocol(trainer_class: type) -> type:
    """The trainer class with ``EpochTrainer`` mixed in; itself where it is already."""
    if issubclass(trainer_class, EpochTrainer):
        return trainer_class
    return type(f"Protocol{trainer_class.__name__}", (EpochTrainer, trainer_class), {})
