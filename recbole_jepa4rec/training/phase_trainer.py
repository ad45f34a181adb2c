"""Pre-training, finetuning, finetuning with frozen items, in this order (paper 3.3, 3.4)."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.progress import shows_bars
from recbole_jepa4rec.config.run_settings import PhasedSettings
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.evaluation.choice import of_some_users
from recbole_jepa4rec.model.base import PRETRAIN, PhasedModel
from recbole_jepa4rec.training.collapse import alignment, spread, warn_if_collapsed
from recbole_jepa4rec.training.optimisation import Optimisation, Terms
from recbole_jepa4rec.training.phases import (
    Phase,
    PhasePosition,
    phases_of,
    plan_epoch,
)
from recbole_jepa4rec.training.protocol import ProtocolTrainer
from recbole_jepa4rec.training.state import Session

SCORES_THAT_CHOOSE = 2**23
"""A validation that chooses before it ranks all users is not to take much longer for it."""

FUSED = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class PhaseTrainer(ProtocolTrainer):
    """Trains a :class:`PhasedModel`.

    Raises:
        ValueError: for a setting out of its range; names it.
    """

    model: PhasedModel

    def __init__(self, config: Any, model: PhasedModel) -> None:
        super().__init__(config, model)
        self.sources = config["source_datasets"] or [config["dataset"]]
        self.state.stage = stage = PhasedSettings.of(config).stage
        if len(self.sources) > 1 and stage != "pretrain":
            raise ValueError(
                f"train_stage is {stage!r} with {len(self.sources)} data sets; allowed: 'pretrain' "
                "(finetune on one of them afterwards, with --checkpoint)"
            )
        self.tokens_trained, self.seconds_trained = 0, 0.0
        self._position: PhasePosition | None = None
        self._awaited: list[Terms] = []

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
        session: Session | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Run the phases of ``train_stage``, from where ``session.resumed`` stands if it does.

        See RecBole's ``Trainer.fit`` for the other arguments and the returned value.
        """
        self.rows: HistoryRows = train_data._dataset.inter_feat
        self.saved, self.callback = saved, callback_fn
        self.show_progress = show_progress and shows_bars() and processes.is_main()
        validate = functools.partial(self._choose_and_evaluate, valid_data) if valid_data else None
        with self.training(train_data, session) as goes_on:
            if goes_on:
                self._run_phases(validate)
                if self.config["validation_users"] and saved and self.best_valid_result:
                    self.best_valid_result = self.evaluate(valid_data, load_best_model=False)
            if goes_on and not self.state.epochs_run and saved:
                self._save_checkpoint(-1, verbose=verbose)
        return self.state.best_valid_score, self.state.best_valid_result

    def _run_phases(self, validate: Callable[[], dict[str, float]] | None) -> None:
        position, timer = self._resumed_position(), self.timer
        for phase in phases_of(
            self.config,
            self.state.stage,
            self.rows.histories,
            self.model,
            self._validate_held_out,
            validate,
            timer.began,
            timer.deadline,
        ):
            if position and phase.number != position.phase:
                continue  # it was over before the checkpoint
            if self.state.epochs_run and self._is_spent(timer.deadline):
                break
            with timer.timing("pretrain" if phase.name == PRETRAIN else "finetune"):
                self._run_phase(phase, position)
            position = None

    def _run_phase(self, phase: Phase, resumed: PhasePosition | None) -> None:
        """Train one phase, keep its best weights, and leave the model with them.

        Args:
            phase: which.
            resumed: where the checkpoint stands that is resumed, if that is in this phase.

        Raises:
            ValueError: if nobody is left to train, or fewer sequences than processes.
        """
        steps = phase.epochs * math.ceil(self._batches(phase) / self.config["accumulation_steps"])
        self.model.begin_phase(phase.name, steps)
        self.optimizer = self._build_optimizer(learning_rate=phase.learning_rate)
        self.optimisation = Optimisation(
            self.model, self.optimizer, self.rows.histories, phase, steps, self.config
        )
        position = self._position = resumed or PhasePosition(phase.number, self.state.epochs_run)
        position.learns_permutation = self.model.learns_permutation
        if resumed and self.session.resumed:
            self.restore(self.session.resumed)
        elif phase.name == PRETRAIN:
            self.state.pretrain_datasets = [*self.state.pretrain_datasets, *self.sources]
        processes.refuse_difference(self.model)
        while not position.is_over:
            self._run_epoch(phase, position)
            self.write_checkpoint()
        if self.saved:
            self.load_best()
        if phase.name == PRETRAIN:
            self.best_valid_score, self.best_valid_result = -math.inf, None  # of held-out users

    def _run_epoch(self, phase: Phase, position: PhasePosition) -> None:
        """One epoch, the rest of it where it had begun, and its validation where one is due."""
        self.state.epochs_run = position.epochs_run + 1
        tokens, started = self.model.tokens_seen, time.monotonic()
        for step in self._steps(phase, position):
            if (every := self.config["checkpoint_steps"]) and step % every == 0:
                self.write_checkpoint()
            self.end_if_asked()
            if self._is_spent(phase.deadline):
                break
        self._read_losses(position)
        self._count_tokens(self.model.tokens_seen - tokens, time.monotonic() - started)
        losses = {name: total / position.sequences for name, total in position.sums.items()}
        processes.refuse_difference(self.model)
        out_of_time = self._is_spent(phase.deadline)
        last = out_of_time or position.epoch + 1 == phase.epochs
        self._log(phase, losses)
        if phase.validate is None or self.config["eval_step"] <= 0:
            if last and self.saved:
                self._save_checkpoint(self.state.epochs_run - 1, verbose=False)
        elif last or (position.epoch + 1) % self.config["eval_step"] == 0:
            improved = self._validate(phase, phase.validate())
            position.since_best = 0 if improved else position.since_best + 1
        position.next_epoch(last or position.since_best >= phase.stopping_step > 0)

    def _steps(self, phase: Phase, position: PhasePosition) -> Iterator[int]:
        """Train the rest of an epoch; yields the steps made in it after each."""
        self.model.train()
        with self.autocast():
            self.model.begin_epoch(phase.epoch_key(position.epoch))
        batches, size = self._plan(phase, position.epoch), self.config["accumulation_steps"]
        with tqdm(
            total=sum(map(len, batches)),
            initial=position.sequences,
            desc=f"{phase.name} {position.epoch}",
            unit=" sequences",
            file=sys.stderr,
            disable=not self.show_progress,
        ) as progress:
            for first in range(position.batches, len(batches), size):
                step = batches[first : first + size]
                self.model.begin_step(first // size)
                self._awaited.append(self.optimisation.step(step))
                self._read_losses(position, leave=1)
                position.batches += len(step)
                position.sequences += sum(map(len, step))
                progress.update(sum(map(len, step)))
                done = position.sequences, progress.total
                self.pulse.beat(f"{phase.name} {self.state.epochs_run - 1}", *done, "sequences")
                yield first // size + 1

    def _read_losses(self, position: PhasePosition, leave: int = 0) -> None:
        """Add up the losses of steps that were made; the newest ones may still be under way."""
        while len(self._awaited) > leave:
            self._awaited.pop(0).add_to(position.sums)

    def write_checkpoint(self) -> None:
        """As every trainer, once the losses are known that stand in it."""
        if self._position is not None:
            self._read_losses(self._position)
        super().write_checkpoint()

    def _plan(self, phase: Phase, epoch: int) -> list[Tensor]:
        """The targets of an epoch in batches; see ``plan_epoch``."""
        return plan_epoch(self.rows.histories, phase, epoch, self.model, self.config)

    def _batches(self, phase: Phase) -> int:
        """Batches of a phase's first epoch; the others have about as many.

        Raises:
            ValueError: if nobody is left to train, or an epoch has fewer sequences than processes.
        """
        if not len(phase.users):
            raise ValueError(
                f"{phase.name}: no user with 2 training interactions is left to train on, after "
                f"pretrain_validation_ratio={self.config['pretrain_validation_ratio']}"
            )
        batches = self._plan(phase, 0)
        if (sequences := sum(map(len, batches))) < processes.world_size():
            raise ValueError(
                f"nproc is {processes.world_size()}; allowed: {sequences}, the sequences that an "
                f"epoch of {phase.name} has, or fewer"
            )
        return len(batches)

    def _count_tokens(self, tokens: int, seconds: float) -> None:
        """Keep the speed of training up to now, where it reads tokens."""
        self.tokens_trained += int(processes.all_reduce(torch.tensor(tokens)))
        self.seconds_trained += seconds
        if self.model.item_tokens is not None and self.seconds_trained:
            self.state.tokens_per_second = self.tokens_trained / self.seconds_trained

    def _is_spent(self, deadline: float) -> bool:
        """Whether the time is over, on which all processes agree."""
        return math.isfinite(deadline) and processes.any_rank(time.monotonic() >= deadline)

    def position(self) -> dict[str, Any] | None:
        """The ``PhasePosition``; ``None`` before and after the phases."""
        if self._position is None or self.state.is_trained:
            return None
        return asdict(self._position)

    def _resumed_position(self) -> PhasePosition | None:
        """Where the checkpoint that is resumed stands, if one is."""
        if not self.session.resumed or not self.session.resumed["position"]:
            return None
        position = PhasePosition(**self.session.resumed["position"])
        if position.learns_permutation:
            self.model.learns_permutation = True
        return position

    def optimizer_state(self) -> dict[str, Any]:
        """State of the phase's ``Optimisation``."""
        return {} if self._position is None else self.optimisation.state_dict()

    def load_optimizer_state(self, state: Any) -> None:
        """Take up what ``optimizer_state`` returned."""
        self.optimisation.load_state_dict(state)

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Refuse: these two files hold the best epoch, not where a run of several phases was.

        Raises:
            ValueError: always; says what works instead.
        """
        raise ValueError(
            f"cannot resume {resume_file}; --resume=RUN_DIR goes on with a run, and --checkpoint "
            "starts anew from its weights"
        )

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's choice of optimizer; Adam and AdamW in one fused kernel."""
        learner = self.config["learner"].lower()
        rate: Any = kwargs.get("learning_rate", self.learning_rate)
        by_pace = self.model.weights_by_pace.items()
        groups = [{"params": weights, "lr": pace * rate} for pace, weights in by_pace]
        if learner not in FUSED:
            return super()._build_optimizer(params=groups, **kwargs)
        return FUSED[learner](
            groups,
            lr=rate,
            weight_decay=self.weight_decay or 0.0,
            fused=self.config["precision"] != "fp16",  # fused, a skipped step would move the EMA
        )

    def _validate_held_out(self, positions: Tensor) -> dict[str, float]:
        """Metrics of held-out users: their training part's last item after the ones before it."""
        return self._choose_and_rank(self.rows.with_targets(positions))

    def _choose_and_rank(self, rows: HistoryRows) -> dict[str, float]:
        self.choose(rows, SCORES_THAT_CHOOSE)
        return self.metrics_of(self.rank_rows(rows), rows)

    def _choose_and_evaluate(self, valid_data: Any) -> dict[str, float]:
        """Metrics of the users who validate each epoch."""
        if most := self.config["validation_users"]:
            return self._choose_and_rank(of_some_users(valid_data._dataset.inter_feat, most))
        self.choose(valid_data._dataset.inter_feat, SCORES_THAT_CHOOSE)
        return self.evaluate(valid_data, load_best_model=False) or {}

    def _validate(self, phase: Phase, result: dict[str, float]) -> bool:
        """Log a validation, and keep the weights if they are the best so far."""
        epoch, score = self.state.epochs_run - 1, result[self.valid_metric]
        self.record_validation(phase.name, score)
        measured: dict[str, float] = {}
        if self.model.has_item_vectors:
            self.model.eval()
            with self.autocast():
                measured = spread(self.model.item_vectors())
                measured["alignment"] = alignment(self.model, self.rows)
            warn_if_collapsed(measured, self.model.n_items - 1)
        shown = {**result, **measured}
        self.draw(PRETRAIN if phase.name == PRETRAIN else "valid", shown)
        named = (f"{name} {value:.4f}" for name, value in shown.items())
        self.logger.info(f"{phase.name} {epoch} validation: {', '.join(named)}")
        if self.callback and (phase.name != PRETRAIN or self.state.stage == "pretrain"):
            self.callback(epoch, score)
        if score <= self.best_valid_score:
            return False
        self.best_valid_score, self.best_valid_result = score, result
        self.state.vectors = measured or None
        self.state.best_epoch = epoch
        if self.saved:
            self._save_checkpoint(epoch, verbose=False)
        return True

    def _log(self, phase: Phase, losses: dict[str, float]) -> None:
        epoch = self.state.epochs_run - 1
        terms = {f"loss_{name}": value for name, value in losses.items()}
        part = PRETRAIN if phase.name == PRETRAIN else "train"
        self.draw(part, {"loss": sum(losses.values()), **terms})
        named = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
        rate = self.state.tokens_per_second
        speed = "" if rate is None else f"; {rate:,.0f} tokens/s"
        self.logger.info(f"{phase.name} {epoch}: {named}{speed}")
