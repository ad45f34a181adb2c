"""Pre-training, finetuning, finetuning with frozen items, in this order (paper 3.3, 3.4)."""

from __future__ import annotations

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

from recbole_jepa4rec.collapse import spread, warn_if_collapsed
from recbole_jepa4rec.histories import HistoryRows
from recbole_jepa4rec.metrics import mean_metrics, target_ranks
from recbole_jepa4rec.phase import (
    FINETUNE,
    FINETUNE_FROZEN_ITEMS,
    PRETRAIN,
    Phase,
    warmup_then_decay,
)
from recbole_jepa4rec.protocol_trainer import ProtocolTrainer
from recbole_jepa4rec.token_batch import fill_batches
from recbole_jepa4rec.training_rows import (
    held_out_users,
    history_tokens,
    target_positions,
    trainable_users,
    window_ends,
)

STAGES = ("pretrain", "finetune", "both")
FUSED = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TwoStageTrainer(ProtocolTrainer, Trainer):
    """Trains a model that moves through phases, as JEPA4Rec does.

    Beside RecBole's methods the model offers ``begin_phase(name, steps)``, ``begin_epoch(key)``,
    ``begin_step(number)``, ``weights_moved()``, ``loss_weights``, ``item_vectors()``,
    ``item_tokens``, ``trains_all_prefixes`` and ``tokens_seen``.

    Raises:
        ValueError: for a setting out of its range; names it.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.best_valid_result: dict[str, float] | None = None
        self._check(config)
        self.sources = config["source_datasets"] or [config["dataset"]]
        if self.stage == "both" and config["checkpoint"]:
            self.stage = "finetune"  # the checkpoint is pre-trained
        if len(self.sources) > 1 and self.stage != "pretrain":
            raise ValueError(
                f"train_stage is {self.stage!r} with {len(self.sources)} data sets; allowed: "
                "'pretrain' (finetune on one of them afterwards, with --checkpoint)"
            )
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

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Refuse: a state of several phases cannot be resumed yet.

        Raises:
            ValueError: always; says what works instead.
        """
        raise ValueError(f"cannot resume {resume_file}; --checkpoint starts anew from its weights")

    def _check(self, config: Any) -> None:
        """Refuse settings out of their range."""
        for key, allowed in (("train_stage", STAGES), ("precision", tuple(PRECISIONS))):
            if config[key] not in allowed:
                raise ValueError(f"{key} is {config[key]!r}; allowed: {', '.join(allowed)}")
        for key in ("enable_amp", "enable_scaler"):
            if config[key]:
                raise ValueError(f"{key} is RecBole's; allowed here: precision=bf16 or fp16")

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
        for number, name in enumerate((FINETUNE, FINETUNE_FROZEN_ITEMS), start=1):
            epochs = config["epochs" if name == FINETUNE else "frozen_items_epochs"]
            if epochs:
                yield Phase(
                    name=name,
                    number=number,
                    epochs=epochs,
                    batch_size=config["train_batch_size"],
                    learning_rate=config["learning_rate"],
                    users=users,
                    validate=(lambda: self.evaluate(valid_data, load_best_model=False) or {})
                    if valid_data
                    else None,
                    deadline=self.deadline,
                )

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
        model.begin_epoch(_epoch_key(phase, epoch))
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
                rate = (model.tokens_seen - tokens) / (time.monotonic() - started)
                progress.update(rows)
                progress.set_postfix_str(f"{rate:,.0f} tokens/s")
                if time.monotonic() >= phase.deadline:
                    break
        self.tokens_trained += model.tokens_seen - tokens
        self.seconds_trained += time.monotonic() - started
        self.tokens_per_second = self.tokens_trained / self.seconds_trained
        return {name: total / done for name, total in sums.items()}

    def _plan(self, phase: Phase, epoch: int) -> list[Tensor]:
        """The targets of an epoch in batches, which a number of tokens and of sequences bounds."""
        config, histories = self.config, self.rows.histories
        max_items, key = config["MAX_ITEM_LIST_LENGTH"], _epoch_key(phase, epoch)
        if self.model.trains_all_prefixes:
            targets = window_ends(histories, phase.users, config["seed"], key, max_items)
        else:
            targets = target_positions(histories, phase.users, config["seed"], key)
        tokens = history_tokens(
            histories, targets, self.model.item_tokens, max_items, config["max_sequence_tokens"]
        )
        sizes = fill_batches(tokens, config["tokens_per_batch"], phase.batch_size)
        return list(targets.split(sizes))

    def _count_targets(self, positions: Tensor) -> int:
        """Items that the histories before these positions are trained to predict."""
        if not self.model.trains_all_prefixes:
            return len(positions)
        histories = self.rows.histories
        before = positions - histories.offsets[histories.users[positions]]
        return int(before.clamp(max=self.config["MAX_ITEM_LIST_LENGTH"]).sum())

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
            raise ValueError(
                f"loss is not finite: {named}; try a lower learning_rate, clip_grad_norm or "
                "precision=fp32"
            )
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
        measured = spread(self.model.item_vectors())
        warn_if_collapsed(measured)
        for name, value in (*result.items(), *measured.items()):
            self.tensorboard.add_scalar(f"{phase.name}/{name}", value, epoch)
        named = (f"{name} {value:.4f}" for name, value in (*result.items(), *measured.items()))
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
        self.logger.info(f"{phase.name} {epoch}: {named}; {self.tokens_per_second:,.0f} tokens/s")


def _epoch_key(phase: Phase, epoch: int) -> int:
    """What keys an epoch's random draws, different in every phase."""
    return phase.number * 1_000_000 + epoch
