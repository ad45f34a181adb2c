"""Pre-training, finetuning, finetuning with frozen items, in this order (paper 3.3, 3.4)."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.checkpoint import load_weights, read_weights, weights_file
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.evaluation.metrics import mean_metrics
from recbole_jepa4rec.training.collapse import spread, warn_if_collapsed
from recbole_jepa4rec.training.optimisation import Optimisation
from recbole_jepa4rec.training.phase import (
    PRECISIONS,
    PRETRAIN,
    Phase,
    PhasePosition,
    finetuning_phases,
    refuse_settings,
)
from recbole_jepa4rec.training.phase_passes import PhasePasses
from recbole_jepa4rec.training.protocol_trainer import ProtocolTrainer
from recbole_jepa4rec.training.run_state import restore_tensors
from recbole_jepa4rec.training.training_rows import held_out_users, trainable_users

FUSED = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class TwoStageTrainer(ProtocolTrainer, Trainer):
    """Trains a model that moves through phases, as JEPA4Rec does.

    Beside RecBole's methods the model offers ``begin_phase(name, steps)``, ``begin_epoch(key)``,
    ``begin_step(number)``, ``weights_moved()``, ``loss_weights``, ``trains_all_prefixes``,
    ``tokens_seen`` and ``item_tokens`` (``None`` where training reads no tokens). It may offer
    ``item_vectors()``, whose collapse is watched; ``keeps_from_start(weights, same_items)``: names
    of weights that a checkpoint does not replace, because they belong to another catalogue; and
    ``learns_permutation``: whether ``permutation_epochs`` come before finetuning.

    Raises:
        ValueError: for a setting out of its range; names it.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.best_valid_result: dict[str, float] | None = None
        self.sources = config["source_datasets"] or [config["dataset"]]
        if self.stage == "both" and config["checkpoint"]:
            self.stage = "finetune"  # the checkpoint is pre-trained
        refuse_settings(config, self.stage, self.sources)
        self.tokens_trained, self.seconds_trained = 0, 0.0
        self.amp_dtype = PRECISIONS[config["precision"]]
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp_dtype is torch.float16
        )
        self._position: PhasePosition | None = None

    def train(
        self,
        train_data: Any,
        valid_data: Any,
        verbose: bool,
        saved: bool,
        show_progress: bool,
        callback_fn: Callable[[int, float], None] | None,
    ) -> None:
        """Run the phases of ``train_stage``, from the position of ``resumed`` on if there is one.

        See RecBole's ``Trainer.fit`` for the arguments.
        """
        self.rows: HistoryRows = train_data._dataset.inter_feat
        self.show_progress = show_progress
        self.saved, self.callback = saved, callback_fn
        resumed = self._resumed_position()
        for phase in self._phases(valid_data):
            if resumed and phase.number != resumed.phase:
                continue  # it was over before the checkpoint
            if self.epochs_run and self._is_spent(self.deadline):
                break
            with self.timing("pretrain" if phase.name == PRETRAIN else "finetune"):
                self._run(phase, resumed)
            resumed = None
        if not self.epochs_run and saved:
            self._save_checkpoint(-1, verbose=verbose)

    def start_from_checkpoint(self) -> None:
        """Load what ``checkpoint`` names, but for what the model keeps of its own catalogue."""
        if not self.config["checkpoint"] or not hasattr(self.model, "kept_from_start"):
            super().start_from_checkpoint()
            return
        file = weights_file(self.config["checkpoint"])
        weights, metadata = read_weights(file)
        same_items = self.item_ids is not None and metadata.get("item_ids") == self.item_ids
        keep = self.model.kept_from_start(weights, same_items)
        if keep is None:
            super().start_from_checkpoint()
            return
        load_weights(self.model, file, keep=keep)
        self.checkpoint_from = str(file)
        self.pretrain_datasets[:0] = json.loads(metadata.get("pretrain_datasets", "[]"))
        self.logger.info(f"start from {file}; not replaced: {', '.join(keep) or 'nothing'}")

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Refuse: these two files hold the best epoch, not where a run of several phases was.

        Raises:
            ValueError: always; says what works instead.
        """
        raise ValueError(
            f"cannot resume {resume_file}; --resume=RUN_DIR goes on with a run, and --checkpoint "
            "starts anew from its weights"
        )

    def _phases(self, valid_data: Any) -> Iterator[Phase]:
        """The phases of ``train_stage`` that have epochs, in order."""
        config, histories = self.config, self.rows.histories
        share = config["pretrain_time_ratio"] if self.stage == "both" else 1.0
        users = trainable_users(histories)
        if self.stage != "finetune" and config["pretrain_epochs"]:
            held_out = held_out_users(users, config["pretrain_validation_ratio"], config["seed"])
            last = histories.train_end[users[held_out]] - 1
            yield Phase(
                name=PRETRAIN,
                number=0,
                epochs=config["pretrain_epochs"],
                batch_size=config["pretrain_batch_size"],
                learning_rate=config["pretrain_learning_rate"],
                users=users[~held_out],
                validate=(lambda: self._rank_targets_at(last)) if len(last) else None,
                deadline=self.began + share * (self.deadline - self.began),
            )
        if self.stage == "pretrain" or not config["epochs"]:
            return
        evaluate = functools.partial(self.evaluate, valid_data, load_best_model=False)
        validate = (lambda: evaluate() or {}) if valid_data else None
        learns_permutation = getattr(self.model, "learns_permutation", False)
        yield from finetuning_phases(config, learns_permutation, users, validate, self.deadline)

    def _run(self, phase: Phase, resumed: PhasePosition | None) -> None:
        """Train one phase, keep its best weights, and leave the model with them.

        Args:
            phase: which.
            resumed: where the checkpoint in ``self.resumed`` stands, if that is in this phase.

        Raises:
            ValueError: if nobody is left to train, or fewer sequences than processes.
        """
        passes = PhasePasses(self.model, self.rows, phase, self.config)
        self.model.begin_phase(phase.name, passes.steps)
        self.optimizer = self._build_optimizer(learning_rate=phase.learning_rate)
        self.optimisation = Optimisation(
            self.model,
            self.optimizer,
            self.scaler,
            steps=passes.steps,
            warmup_ratio=self.config["warmup_ratio"],
            clipping=self.clip_grad_norm,
        )
        self._position = resumed or PhasePosition(phase.number, self.epochs_run)
        if resumed and self.resumed:
            restore_tensors(self, self.resumed)
        elif phase.name == PRETRAIN:
            self.pretrain_datasets = [*self.pretrain_datasets, *self.sources]
        processes.refuse_difference(self.model)
        while not self._position.is_over:
            self._train_and_validate(passes, self._position)
            self.write_checkpoint()
        if self.saved:
            self.load_best()
        if phase.name == PRETRAIN:
            self.best_valid_score, self.best_valid_result = -math.inf, None  # of held-out users

    def _train_and_validate(self, passes: PhasePasses, position: PhasePosition) -> None:
        """One epoch, the rest of it where it had begun, and its validation where one is due."""
        phase, self.epochs_run = passes.phase, position.epochs_run + 1
        losses = self._train_phase_epoch(passes, position)
        processes.refuse_difference(self.model)
        out_of_time = self._is_spent(phase.deadline)
        last = out_of_time or position.epoch + 1 == phase.epochs
        self._log(phase, losses)
        if phase.validate is None or self.config["eval_step"] <= 0:
            if last and self.saved:
                self._save_checkpoint(self.epochs_run - 1, verbose=False)
        elif last or (position.epoch + 1) % self.config["eval_step"] == 0:
            improved = self._validate(phase, phase.validate)
            position.since_best = 0 if improved else position.since_best + 1
        position.next_epoch(last or position.since_best >= self.stopping_step > 0)

    def _train_phase_epoch(self, passes: PhasePasses, position: PhasePosition) -> dict[str, float]:
        """One pass over the users, from a position on; mean of every weighted loss term."""
        model, every = self.model, self.config["checkpoint_steps"]
        started, tokens = time.monotonic(), model.tokens_seen
        for step in passes.steps_from(position, self.optimisation, self.show_progress):
            if every and step % every == 0:
                self.write_checkpoint()
            self.end_if_asked()
            if self._is_spent(passes.phase.deadline):
                break
        self.tokens_trained += int(processes.all_reduce(torch.tensor(model.tokens_seen - tokens)))
        self.seconds_trained += time.monotonic() - started
        if model.item_tokens is not None and self.seconds_trained:
            self.tokens_per_second = self.tokens_trained / self.seconds_trained
        return {name: total / position.sequences for name, total in position.sums.items()}

    def _is_spent(self, deadline: float) -> bool:
        """Whether the time is over, on which all processes agree."""
        return math.isfinite(deadline) and processes.any_rank(time.monotonic() >= deadline)

    def position(self) -> dict[str, Any] | None:
        """The ``PhasePosition``; ``None`` before and after the phases."""
        if self._position is None or self.is_trained:
            return None
        learns = getattr(self.model, "learns_permutation", False)
        return {**asdict(self._position), "learns_permutation": learns}

    def _resumed_position(self) -> PhasePosition | None:
        """Where the checkpoint that is resumed stands, if one is."""
        if not self.resumed:
            return None
        position = dict(self.resumed["position"])
        if position.pop("learns_permutation"):
            self.model.learns_permutation = True
        return PhasePosition(**position)

    def optimizer_state(self) -> dict[str, Any]:
        """State of the phase's ``Optimisation``."""
        return {} if self._position is None else self.optimisation.state_dict()

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take up what ``optimizer_state`` returned."""
        self.optimisation.load_state_dict(state)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's choice of optimizer; Adam and AdamW in one fused kernel."""
        learner = self.config["learner"].lower()
        if learner not in FUSED:
            return super()._build_optimizer(**kwargs)
        return FUSED[learner](
            self.model.parameters(),
            lr=kwargs.get("learning_rate", self.learning_rate),
            weight_decay=self.weight_decay or 0.0,
            fused=self.config["precision"] != "fp16",  # fused, a skipped step would move the EMA
        )

    def _validate(self, phase: Phase, validate: Callable[[], dict[str, float]]) -> bool:
        """Measure, log, and keep the weights if they are the best so far."""
        epoch = self.epochs_run - 1
        result = validate()
        score = result[self.valid_metric]
        self.record_validation(phase.name, score)
        shown = dict(result)
        if getattr(self.model, "has_item_vectors", hasattr(self.model, "item_vectors")):
            shown |= (measured := spread(self.model.item_vectors()))
            warn_if_collapsed(measured)
        for name, value in shown.items():
            self.tensorboard.add_scalar(f"{phase.name}/{name}", value, epoch)
        named = (f"{name} {value:.4f}" for name, value in shown.items())
        self.logger.info(f"{phase.name} {epoch} validation: {', '.join(named)}")
        if self.callback and (phase.name != PRETRAIN or self.stage == "pretrain"):
            self.callback(epoch, score)
        if score <= self.best_valid_score:
            return False
        self.best_valid_score, self.best_valid_result, self.best_epoch = score, result, epoch
        if self.saved:
            self._save_checkpoint(epoch, verbose=False)
        return True

    def _rank_targets_at(self, positions: Tensor) -> dict[str, float]:
        """Metrics of held-out users: their training part's last item after the ones before it."""
        self.model.eval()
        if getattr(self.model, "has_item_vectors", hasattr(self.model, "item_vectors")):
            self.model.item_vectors()  # together, before each process ranks users of its own
        ranks = torch.zeros(len(positions), dtype=torch.float64)
        size = self.config["eval_batch_size"]
        for number, chunk in enumerate(torch.arange(len(positions)).split(size)):
            self.end_if_asked()
            if number % processes.world_size() == processes.rank():
                interaction = self.rows.with_targets(positions[chunk])[:].to(self.device)
                scores = self.model.full_sort_predict(interaction)
                ranks[chunk] = self.ranks(scores, interaction[self.model.ITEM_ID])
        ranks = processes.all_reduce(ranks)
        return mean_metrics(ranks, self.config["metrics"], self.config["topk"])

    def _log(self, phase: Phase, losses: dict[str, float]) -> None:
        epoch = self.epochs_run - 1
        for name, value in losses.items():
            self.tensorboard.add_scalar(f"{phase.name}/loss_{name}", value, epoch)
        named = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
        rate = self.tokens_per_second
        speed = "" if rate is None else f"; {rate:,.0f} tokens/s"
        self.logger.info(f"{phase.name} {epoch}: {named}{speed}")
