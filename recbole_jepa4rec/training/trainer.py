"""Pre-training, finetuning, finetuning with frozen items, in this order (paper 3.3, 3.4)."""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_jepa4rec.checkpoint import item_ids_digest, load_weights, read_weights, weights_file
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.evaluation.metrics import mean_metrics, target_ranks
from recbole_jepa4rec.training.collapse import spread, warn_if_collapsed
from recbole_jepa4rec.training.epoch_plan import count_targets, epoch_key, plan_epoch
from recbole_jepa4rec.training.phase import (
    PRECISIONS,
    PRETRAIN,
    Phase,
    finetuning_phases,
    refuse_settings,
    warmup_then_decay,
)
from recbole_jepa4rec.training.protocol_trainer import ProtocolTrainer
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

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Run the phases of ``train_stage``; see RecBole's ``Trainer.fit`` for the arguments."""
        started = self.start_clock()
        self.item_ids = item_ids_digest(self.model, train_data._dataset)
        self.start_from_checkpoint()
        self.rows: HistoryRows = train_data._dataset.inter_feat
        self.show_progress = show_progress and sys.stderr.isatty()
        self.saved, self.callback = saved, callback_fn
        for phase in self._phases(started, valid_data):
            begun = time.monotonic()
            if self.epochs_run and begun >= self.deadline:
                break
            self._run(phase)
            kind = "pretrain" if phase.name == PRETRAIN else "finetune"
            self.stage_seconds[kind] += time.monotonic() - begun
        if not self.epochs_run and saved:
            self._save_checkpoint(-1, verbose=verbose)
        return self.best_valid_score, self.best_valid_result

    def start_from_checkpoint(self) -> None:
        """Load what ``checkpoint`` names, but for what the model keeps of its own catalogue."""
        if not self.config["checkpoint"] or not hasattr(self.model, "keeps_from_start"):
            super().start_from_checkpoint()
            return
        file = weights_file(self.config["checkpoint"])
        weights, metadata = read_weights(file)
        same_items = self.item_ids is not None and metadata.get("item_ids") == self.item_ids
        keep = self.model.keeps_from_start(weights, same_items)
        load_weights(self.model, file, keep=keep)
        self.checkpoint_from = str(file)
        self.pretrain_datasets[:0] = json.loads(metadata.get("pretrain_datasets", "[]"))
        self.logger.info(f"start from {file}; not replaced: {', '.join(keep) or 'nothing'}")

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Refuse: a state of several phases cannot be resumed yet.

        Raises:
            ValueError: always; says what works instead.
        """
        raise ValueError(f"cannot resume {resume_file}; --checkpoint starts anew from its weights")

    def _phases(self, started: float, valid_data: Any) -> Iterator[Phase]:
        """The phases of ``train_stage`` that have epochs, in order."""
        config, histories = self.config, self.rows.histories
        share = config["pretrain_time_ratio"] if self.stage == "both" else 1.0
        users = trainable_users(histories)
        if self.stage != "finetune" and config["pretrain_epochs"]:
            held_out = held_out_users(users, config["pretrain_validation_ratio"], config["seed"])
            last = histories.train_end[users[held_out]] - 1
            self.pretrain_datasets = [*self.pretrain_datasets, *self.sources]
            yield Phase(
                name=PRETRAIN,
                number=0,
                epochs=config["pretrain_epochs"],
                batch_size=config["pretrain_batch_size"],
                learning_rate=config["pretrain_learning_rate"],
                users=users[~held_out],
                validate=(lambda: self._rank_targets_at(last)) if len(last) else None,
                deadline=started + share * (self.deadline - started),
            )
            self.best_valid_score, self.best_valid_result = -math.inf, None  # of held-out users
        if self.stage == "pretrain" or not config["epochs"]:
            return
        evaluate = functools.partial(self.evaluate, valid_data, load_best_model=False)
        validate = (lambda: evaluate() or {}) if valid_data else None
        learns_permutation = getattr(self.model, "learns_permutation", False)
        yield from finetuning_phases(config, learns_permutation, users, validate, self.deadline)

    def _run(self, phase: Phase) -> None:
        """Train one phase, keep its best weights, and leave the model with them.

        Raises:
            ValueError: if nobody is left to train.
        """
        if not len(phase.users):
            raise ValueError(
                f"{phase.name}: no user with 2 training interactions is left to train on, after "
                f"pretrain_validation_ratio={self.config['pretrain_validation_ratio']}"
            )
        batches = len(self._plan(phase, 0))  # about as many in every epoch
        steps = phase.epochs * math.ceil(batches / self.config["accumulation_steps"])
        self.model.begin_phase(phase.name, steps)
        self.optimizer = self._build_optimizer(learning_rate=phase.learning_rate)
        self.optimizer.register_step_post_hook(lambda *_: self.model.weights_moved())
        schedule = warmup_then_decay(self.optimizer, steps, self.config["warmup_ratio"])
        since_best = 0
        for epoch in range(phase.epochs):
            losses = self._train_phase_epoch(phase, epoch, schedule)
            self.epochs_run += 1
            out_of_time = time.monotonic() >= phase.deadline
            last = out_of_time or epoch + 1 == phase.epochs
            self._log(phase, losses)
            if phase.validate is None or self.config["eval_step"] <= 0:
                if last and self.saved:
                    self._save_checkpoint(self.epochs_run - 1, verbose=False)
            elif last or (epoch + 1) % self.config["eval_step"] == 0:
                improved = self._validate(phase, phase.validate)
                since_best = 0 if improved else since_best + 1
            if out_of_time or since_best >= self.stopping_step > 0:
                break
        if self.saved:
            self.load_best()

    def _train_phase_epoch(self, phase: Phase, epoch: int, schedule: Any) -> dict[str, float]:
        """One pass over the users; mean of every weighted loss term."""
        config, model = self.config, self.model
        model.train()
        model.begin_epoch(epoch_key(phase, epoch))
        batches = self._plan(phase, epoch)
        sums = dict.fromkeys(model.loss_weights, 0.0)
        started, tokens, done = time.monotonic(), model.tokens_seen, 0
        with tqdm(
            total=sum(map(len, batches)),
            desc=f"{phase.name} {epoch}",
            unit=" sequences",
            file=sys.stderr,
            disable=not self.show_progress,
        ) as progress:
            for first in range(0, len(batches), config["accumulation_steps"]):
                step = batches[first : first + config["accumulation_steps"]]
                rows = sum(map(len, step))
                targets = sum(map(self._count_targets, step))
                model.begin_step(first // config["accumulation_steps"])
                for positions in step:
                    terms = self._backward(positions, self._count_targets(positions) / targets)
                    for name, value in zip(sums, terms, strict=True):
                        sums[name] += value * len(positions)
                self._step(schedule)
                done += rows
                progress.update(rows)
                if time.monotonic() >= phase.deadline:
                    break
        self.tokens_trained += model.tokens_seen - tokens
        self.seconds_trained += time.monotonic() - started
        if model.item_tokens is not None:
            self.tokens_per_second = self.tokens_trained / self.seconds_trained
        return {name: total / done for name, total in sums.items()}

    def _plan(self, phase: Phase, epoch: int) -> list[Tensor]:
        """The targets of an epoch in batches; see ``plan_epoch``."""
        return plan_epoch(self.rows.histories, phase, epoch, self.model, self.config)

    def _count_targets(self, positions: Tensor) -> int:
        """Items that a batch trains to predict; see ``count_targets``."""
        window = self.config["MAX_ITEM_LIST_LENGTH"]
        return count_targets(self.rows.histories, positions, self.model, window)

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

    def _backward(self, positions: Tensor, share: float) -> list[float]:
        """Add the gradient of one batch, which is ``share`` of its step; returns its loss terms.

        Raises:
            ValueError: if a term is not finite.
        """
        interaction = self.rows.with_targets(positions)[:].to(self.device)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model.calculate_loss(interaction)
        terms = [loss.item() for loss in losses]
        if not all(map(math.isfinite, terms)):
            named = dict(zip(self.model.loss_weights, terms, strict=True))
            advice = "try a lower learning_rate, clip_grad_norm or precision=fp32"
            raise ValueError(f"loss is not finite: {named}; {advice}")
        self.scaler.scale(sum(losses) * share).backward()
        return terms

    def _step(self, schedule: Any) -> None:
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        schedule.step()

    def _validate(self, phase: Phase, validate: Callable[[], dict[str, float]]) -> bool:
        """Measure, log, and keep the weights if they are the best so far."""
        epoch = self.epochs_run - 1
        result = validate()
        score = result[self.valid_metric]
        self.record_validation(phase.name, score)
        shown = dict(result)
        if hasattr(self.model, "item_vectors"):
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
        ranks = []
        for chunk in positions.split(self.config["eval_batch_size"]):
            interaction = self.rows.with_targets(chunk)[:].to(self.device)
            scores = self.model.full_sort_predict(interaction)
            ranks.append(target_ranks(scores, interaction[self.model.ITEM_ID]))
        return mean_metrics(torch.cat(ranks), self.config["metrics"], self.config["topk"])

    def _log(self, phase: Phase, losses: dict[str, float]) -> None:
        epoch = self.epochs_run - 1
        for name, value in losses.items():
            self.tensorboard.add_scalar(f"{phase.name}/loss_{name}", value, epoch)
        named = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
        rate = self.tokens_per_second
        speed = "" if rate is None else f"; {rate:,.0f} tokens/s"
        self.logger.info(f"{phase.name} {epoch}: {named}{speed}")
