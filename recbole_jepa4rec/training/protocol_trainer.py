"""What every trainer shares here: exact ranks, a time limit, and checkpoints without pickles."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import recbole.trainer.trainer as recbole_trainer
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor, nn
from tqdm import tqdm

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.checkpoint import item_ids_digest
from recbole_jepa4rec.base.stopping import (
    TERMINATED,
    asked_to_end,
    holding_sigterm,
)
from recbole_jepa4rec.data.filter_history import drop_history
from recbole_jepa4rec.evaluation.choice import choose_on_validation
from recbole_jepa4rec.evaluation.metrics import mean_metrics, metric_values, target_ranks
from recbole_jepa4rec.model.base import Model
from recbole_jepa4rec.training.checkpoint_folder import CheckpointFolder
from recbole_jepa4rec.training.checkpointed_trainer import CheckpointedTrainer
from recbole_jepa4rec.training.event_writer import event_writer
from recbole_jepa4rec.training.run_state import restore_counters, restore_model, run_state


class ProtocolTrainer(CheckpointedTrainer):
    """Mixin for a RecBole trainer class, to stand before it among the bases.

    A subclass says how it trains (:meth:`train`) and where it is (:meth:`position`).

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
        began: when the run's training began, in the same seconds; moved back by ``seconds_before``,
            what earlier stages and earlier starts of the run took.
        checkpoints: where to write what the run can be resumed from; ``None``: nowhere.
        identity: goes into every checkpoint: what the run is and which data it reads.
        resumed: the checkpoint to go on from; ``None`` for a run that begins.
        is_trained: whether training is over.

    Raises:
        ValueError: if a metric is no function of the target's rank.
    """

    eval_step: int
    item_tensor: Any

    def __init__(self, config: Any, model: nn.Module) -> None:
        metric_values(np.ones(1), config["metrics"], config["topk"])
        torch.autograd.set_detect_anomaly(False)  # RecBole's sine.py turns it on for every model
        with patch.object(recbole_trainer, "get_tensorboard", event_writer(config["run_dir"])):
            super().__init__(config, model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            self.epochs = 0  # nothing to train, whatever a preset for all models says
        has_stages = "train_stage" in config.internal_config_dict
        self.stage = config["train_stage"] if has_stages else "train"
        self.stage_seconds = {"pretrain": 0.0, "finetune": 0.0}
        self.tokens_per_second: float | None = None
        self.learning_curve: list[dict[str, Any]] = []
        self.deadline, self.time_share = math.inf, 1.0
        self.began, self.seconds_before = time.monotonic(), 0.0
        self.checkpoints: CheckpointFolder | None = None
        self.identity: dict[str, Any] = {}
        self.resumed: dict[str, Any] | None = None
        self.is_trained = False
        self._timed: tuple[str, float] | None = None

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Train, or go on training, until the epochs, the patience or the time is spent.

        When the time is spent the step under way is finished and its weights are validated. See
        RecBole's ``Trainer.fit`` for the arguments and the returned value.

        Raises:
            SystemExit: with ``TERMINATED``, once a checkpoint is written, if SIGTERM came.
        """
        if self.resumed:
            restore_counters(self, self.resumed)
        self.start_clock()
        known = self.item_ids
        self.item_ids = item_ids_digest(
            train_data._dataset, fits_any_catalogue=_fits_any_catalogue(self.model)
        )
        if None not in (known, self.item_ids) and known != self.item_ids:
            raise ValueError("the resumed weights are for other items or another order")
        with holding_sigterm():
            if not self.resumed:
                self.start_from_checkpoint()
                self._choose(valid_data)
            if self.resumed and self.is_trained:
                restore_model(self, self.resumed)
            else:
                show_progress = show_progress and sys.stderr.isatty() and processes.is_main()
                self.train(train_data, valid_data, verbose, saved, show_progress, callback_fn)
                self.is_trained = True
                self.write_checkpoint()
        return self.best_valid_score, self.best_valid_result

    def _choose(self, valid_data: Any) -> None:
        """Have validation choose what the settings leave open, where no checkpoint says it."""
        model, config = self.model, self.config
        if isinstance(model, Model) and len(model.choices) > 1 and not self.checkpoint_from:
            choose_on_validation(
                model,
                valid_data._dataset.inter_feat,
                config["MAX_ITEM_LIST_LENGTH"],
                config["filter_history"],
                lambda ranks: self._means(ranks)[self.valid_metric],
            )

    def start_clock(self) -> float:
        """Set the deadline, ``max_train_seconds`` after the first stage began; returns now."""
        now, limit = time.monotonic(), self.config["max_train_seconds"]
        self.began = now - self.seconds_before
        self.deadline = math.inf if limit is None else self.began + limit * self.time_share
        return now

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count the time of the block as that of a stage, in checkpoints written meanwhile too."""
        begun = time.monotonic()
        self._timed = kind, begun
        try:
            yield
        finally:
            self._timed = None
            self.stage_seconds[kind] += time.monotonic() - begun

    def stage_seconds_so_far(self) -> dict[str, float]:
        """``stage_seconds``, with those of the stage under way."""
        seconds = dict(self.stage_seconds)
        if self._timed:
            kind, begun = self._timed
            seconds[kind] += time.monotonic() - begun
        return seconds

    def continue_from(self, before: ProtocolTrainer) -> None:
        """Count time, epochs and pre-training on from an earlier stage of the same run."""
        self.seconds_before = time.monotonic() - before.began
        self.epochs_run = self.epochs_before = before.epochs_run
        self.stage_seconds = dict(before.stage_seconds)
        self.learning_curve = list(before.learning_curve)
        self.pretrain_datasets = list(before.pretrain_datasets)

    def record_validation(self, stage: str, valid: float) -> None:
        """Add a point, of the epoch under way, to the learning curve."""
        seconds = round(time.monotonic() - self.began, 3)
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
            self.item_ids = item_ids_digest(
                eval_data._dataset, fits_any_catalogue=_fits_any_catalogue(self.model)
            )
            self.load_best(model_file)
        ranks = self.rank_targets(eval_data, show_progress)
        result = self._means(ranks)
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    def _means(self, ranks: Tensor) -> dict[str, float]:
        return mean_metrics(ranks, self.config["metrics"], self.config["topk"])

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
        if getattr(self.model, "has_item_vectors", hasattr(self.model, "item_vectors")):
            self.model.item_vectors()  # together, before each process ranks users of its own
        ranks, row = torch.zeros(len(dataset.inter_feat), dtype=torch.float64), 0
        quiet = not (show_progress and sys.stderr.isatty() and processes.is_main())
        for number, batch in enumerate(tqdm(eval_data, desc="Evaluate", ncols=100, disable=quiet)):
            self.end_if_asked()
            rows = slice(row, row + len(batch[0]))
            row = rows.stop
            if number % processes.world_size() == processes.rank():
                ranks[rows] = self._rank_batch(batch, rows, dataset.inter_feat)
        return processes.all_reduce(ranks)

    def _rank_batch(self, batch: Any, rows: slice, all_rows: Any) -> Tensor:
        """Ranks of the targets of these rows, ``[B]``."""
        _, scores, _, target = self._full_sort_batch_eval(batch)
        target = target.to(scores.device)
        if self.config["filter_history"]:
            drop_history(scores, target, all_rows, rows)
        return self.ranks(scores, target)

    def ranks(self, scores: Tensor, target: Tensor) -> Tensor:
        """As ``metrics.target_ranks``, with advice where the scores are not numbers."""
        try:
            return target_ranks(scores, target)
        except ValueError:
            self._refuse_unless(not scores[:, 1:].isnan().any(), "scores")
            raise

    def train(
        self,
        train_data: Any,
        valid_data: Any,
        verbose: bool,
        saved: bool,
        show_progress: bool,
        callback_fn: Any,
    ) -> None:
        """The training itself, from ``resumed``'s position on if there is one."""
        raise NotImplementedError

    def position(self) -> dict[str, Any] | None:
        """Where the training is, for ``train`` to go on from; ``None`` before and after it."""
        raise NotImplementedError

    def optimizer_state(self) -> dict[str, Any]:
        """What ``load_optimizer_state`` takes."""
        return self.optimizer.state_dict()

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Go on with the moments and rates of a checkpoint."""
        self.optimizer.load_state_dict(state)

    def write_checkpoint(self) -> None:
        """Write what the run can be resumed from, where it has a folder for that."""
        if self.checkpoints is not None:
            state = run_state(self)
            if processes.is_main():
                self.checkpoints.write({"identity": self.identity, **state})

    def end_if_asked(self) -> None:
        """Act on SIGTERM between two steps.

        Raises:
            SystemExit: if it came, once a checkpoint is written.
        """
        if processes.any_rank(asked_to_end()):
            self.write_checkpoint()
            raise SystemExit(TERMINATED)

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        score, result = super()._valid_epoch(valid_data, show_progress)
        self.record_validation(self.stage, score)
        return score, result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        self._refuse_unless(all(p.isfinite().all() for p in self.model.parameters()), "weights")
        super()._save_checkpoint(epoch, verbose, **kwargs)

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

    def _add_hparam_to_tensorboard(self, best_valid_result: float) -> None:
        """Leave out RecBole's copy of the settings in a folder of its own."""


def _fits_any_catalogue(model: Any) -> bool:
    return getattr(model, "fits_any_catalogue", hasattr(model, "add_items"))
