"""What every trainer shares here: exact ranks, a time limit, and checkpoints without pickles."""

from __future__ import annotations

import functools
import math
import sys
import time
from typing import Any
from unittest.mock import patch

import numpy as np
import recbole.trainer.trainer as recbole_trainer
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_jepa4rec.checkpoint import item_ids_digest
from recbole_jepa4rec.data.filter_history import drop_history
from recbole_jepa4rec.evaluation.metrics import mean_metrics, metric_values, target_ranks
from recbole_jepa4rec.training.checkpointed_trainer import CheckpointedTrainer
from recbole_jepa4rec.training.masked_batches import MaskedBatches
from recbole_jepa4rec.training.time_limit import TimeSpentError, UntilDeadline


class ProtocolTrainer(CheckpointedTrainer):
    """Mixin for a RecBole trainer class, to stand before it among the bases.

    Reads ``run_dir`` (everything is written there; without it RecBole's folders serve),
    ``checkpoint`` (weights to start from), ``max_train_seconds`` and ``filter_history``.

    Attributes:
        stage: ``train_stage`` of a model that has stages, else ``"train"``.
        stage_seconds: seconds spent in ``"pretrain"`` and ``"finetune"``.
        tokens_per_second: of training, for a model that reads tokens.
        learning_curve: every validation so far: ``stage``, ``epoch`` (from 0, over all stages),
            ``seconds`` since training began and ``valid``, the value of ``valid_metric``.
        time_share: of ``max_train_seconds`` that this trainer may use.
        deadline: training stops here, in seconds of ``time.monotonic()``; infinite without limit.

    Raises:
        ValueError: if a metric is no function of the target's rank.
    """

    eval_step: int
    item_tensor: Any

    def __init__(self, config: Any, model: nn.Module) -> None:
        metric_values(np.ones(1), config["metrics"], config["topk"])
        torch.autograd.set_detect_anomaly(False)  # RecBole's sine.py turns it on for every model
        with patch.object(recbole_trainer, "get_tensorboard", _tensorboard(config["run_dir"])):
            super().__init__(config, model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            self.epochs = 0  # nothing to train, whatever a preset for all models says
        has_stages = "train_stage" in config.internal_config_dict
        self.stage = config["train_stage"] if has_stages else "train"
        self.stage_seconds = {"pretrain": 0.0, "finetune": 0.0}
        self.tokens_per_second: float | None = None
        self.learning_curve: list[dict[str, Any]] = []
        self.deadline, self.time_share = math.inf, 1.0
        self._started, self._seconds_before = time.monotonic(), 0.0

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Train as RecBole does, until the epochs, the patience or the time is spent.

        When the time is spent the step under way is finished and its weights are validated. See
        RecBole's ``Trainer.fit`` for the arguments and the returned value.
        """
        started = self.start_clock()
        resumed = self.item_ids
        self.item_ids = item_ids_digest(self.model, train_data._dataset)
        if None not in (resumed, self.item_ids) and resumed != self.item_ids:
            raise ValueError("the resumed weights are for other items or another order")
        self.start_from_checkpoint()
        show_progress = show_progress and sys.stderr.isatty()
        try:
            super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        except TimeSpentError:
            self.logger.info(f"max_train_seconds is spent: stopped in epoch {self.epochs_run - 1}")
        if self.stage == "pretrain" and self.epochs_run:
            self.pretrain_datasets.append(self.config["dataset"])
        if saved and not self._has_saved:  # S3Rec's pre-training is never validated
            self._save_checkpoint(self.epochs_run - self.epochs_before - 1, verbose=verbose)
        kind = "pretrain" if self.stage == "pretrain" else "finetune"
        self.stage_seconds[kind] = time.monotonic() - started
        return self.best_valid_score, self.best_valid_result

    def start_clock(self) -> float:
        """Set the deadline, ``max_train_seconds`` after the first stage began; returns now."""
        now, limit = time.monotonic(), self.config["max_train_seconds"]
        self._started = now - self._seconds_before
        self.deadline = math.inf if limit is None else self._started + limit * self.time_share
        return now

    def continue_from(self, before: ProtocolTrainer) -> None:
        """Count time, epochs and pre-training on from an earlier stage of the same run."""
        self._seconds_before = time.monotonic() - before._started
        self.epochs_run = self.epochs_before = before.epochs_run
        self.stage_seconds = dict(before.stage_seconds)
        self.learning_curve = list(before.learning_curve)
        self.pretrain_datasets = list(before.pretrain_datasets)

    def record_validation(self, stage: str, valid: float) -> None:
        """Add a point, of the epoch under way, to the learning curve."""
        seconds = round(time.monotonic() - self._started, 3)
        epoch = max(0, self.epochs_run - 1)
        self.learning_curve.append(
            {"stage": stage, "epoch": epoch, "seconds": seconds, "valid": float(valid)}
        )

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> dict[str, float] | None:
        """Metrics from exact ranks, means over users; ``None`` where there is no user to evaluate.

        See RecBole's ``Trainer.evaluate`` for the arguments.

        Raises:
            ValueError: as ``rank_targets`` and ``load_weights``.
        """
        if not eval_data:
            return None
        if load_best_model:
            self.item_ids = item_ids_digest(self.model, eval_data._dataset)
            self.load_best(model_file)
        ranks = self.rank_targets(eval_data, show_progress)
        result = mean_metrics(ranks, self.config["metrics"], self.config["topk"])
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    @torch.no_grad()
    def rank_targets(self, eval_data: Any, show_progress: bool = False) -> Tensor:
        """Rank of every row's target among all items, by the weights the model has now.

        Args:
            eval_data: RecBole's loader of full rankings, in row order.
            show_progress: whether to draw a bar, where standard error is a terminal.

        Returns:
            Ranks, ``[R]`` float64; see ``metrics.target_ranks``.

        Raises:
            ValueError: for sampled candidates, or scores that are not numbers.
        """
        if not isinstance(eval_data, FullSortEvalDataLoader):
            raise ValueError("eval_args.mode must be 'full': every item is ranked")
        dataset = eval_data._dataset
        self.model.eval()
        self.tot_item_num = dataset.item_num
        if self.item_tensor is None:
            self.item_tensor = dataset.get_item_feature().to(self.device)
        ranks, row = [], 0
        quiet = not (show_progress and sys.stderr.isatty())
        for batch in tqdm(eval_data, desc="Evaluate", ncols=100, disable=quiet):
            _, scores, _, target = self._full_sort_batch_eval(batch)
            target = target.to(scores.device)
            if self.config["filter_history"]:
                rows = dataset.inter_feat
                drop_history(scores, target, rows, slice(row, row + len(scores)))
            try:
                ranks.append(target_ranks(scores, target))
            except ValueError:
                self._refuse_unless(not scores[:, 1:].isnan().any(), "scores")
                raise
            row += len(scores)
            del scores  # before the next batch makes its own
        return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.float64)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        """One epoch, cut short at the deadline; the next one is not begun."""
        if time.monotonic() >= self.deadline and self.epochs_run:
            raise TimeSpentError
        self.epochs_run += 1
        if field := self.config["MASK_INDEX"]:  # of RecBole's transform mask_itemseq
            train_data = MaskedBatches(train_data, field)
        loss = super()._train_epoch(
            UntilDeadline(train_data, self.deadline), epoch_idx, loss_func, show_progress
        )
        if time.monotonic() >= self.deadline and self.eval_step > 0:
            self.eval_step = 1  # so that these last weights are validated
        return loss

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        score, result = super()._valid_epoch(valid_data, show_progress)
        self.record_validation(self.stage, score)
        return score, result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        self._refuse_unless(all(p.isfinite().all() for p in self.model.parameters()), "weights")
        super()._save_checkpoint(epoch, verbose, **kwargs)

    def _check_nan(self, loss: Tensor) -> None:
        self._refuse_unless(torch.isfinite(loss), f"training losses (the last is {loss.item()})")

    def _refuse_unless(self, finite: Any, what: str) -> None:
        """End a run whose scores or weights are not numbers."""
        fault = f"{self.config['model']}'s {what} are not numbers"
        if not finite and not self.epochs_run:
            raise ValueError(f"{fault} before any training")
        if not finite:
            raise ValueError(
                f"{fault} after epoch {self.epochs_run - 1}: training diverged; try a "
                f"learning_rate below {self.learning_rate} or clip_grad_norm={{'max_norm': 1}}"
            )

    def _add_train_loss_to_tensorboard(
        self, epoch_idx: int, losses: Any, tag: str = "Loss/Train"
    ) -> None:
        """Give pre-training a curve of its own."""
        tag = "Loss/Pretrain" if self.stage == "pretrain" else tag
        super()._add_train_loss_to_tensorboard(epoch_idx, losses, tag)

    def _add_hparam_to_tensorboard(self, best_valid_result: float) -> None:
        """Leave out RecBole's copy of the settings in a folder of its own."""


@functools.cache
def with_protocol(trainer_class: type) -> type:
    """The trainer class with ``ProtocolTrainer`` mixed in; itself where it is already."""
    if issubclass(trainer_class, ProtocolTrainer):
        return trainer_class
    return type(f"Protocol{trainer_class.__name__}", (ProtocolTrainer, trainer_class), {})


def _tensorboard(run_dir: str | None) -> Any:
    """RecBole's maker of event writers, or one for the run folder; RecBole knows only its own."""
    if run_dir is None:
        return recbole_trainer.get_tensorboard
    return lambda logger: SummaryWriter(str(run_dir))
