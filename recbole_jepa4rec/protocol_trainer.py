"""What every trainer shares here: exact ranks, a time limit, and checkpoints without pickles."""

from __future__ import annotations

import functools
import json
import math
import secrets
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import recbole.trainer.trainer as recbole_trainer
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.trainer import Trainer
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_jepa4rec.checkpoint import (
    STATE_NAME,
    WEIGHTS_NAME,
    item_ids_digest,
    load_state,
    load_weights,
    read_weights,
    save_state,
    save_weights,
    weights_file,
)
from recbole_jepa4rec.filter_history import drop_history
from recbole_jepa4rec.metrics import mean_metrics, metric_values, target_ranks
from recbole_jepa4rec.time_limit import TimeSpentError, UntilDeadline


class ProtocolTrainer(Trainer):
    """Mixin for a RecBole trainer class, to stand before it among the bases.

    Reads ``run_dir`` (everything is written there; without it RecBole's folders serve),
    ``checkpoint`` (weights to start from), ``max_train_seconds`` and ``filter_history``.

    Attributes:
        stage: ``train_stage`` of a model that has stages, else ``"train"``.
        stage_seconds: seconds spent in ``"pretrain"`` and ``"finetune"``.
        tokens_per_second: of training, for a model that reads tokens.
        pretrain_datasets: data sets that the weights were pre-trained on.
        epochs_run: epochs begun so far.
        best_epoch: the epoch, from 0, whose weights are on disk; ``None`` before the first.
        checkpoint_from: the weights that training started from, if any.
        item_ids: ``item_ids_digest`` of the data set that the weights are for, once known.
        deadline: training stops here, in seconds of ``time.monotonic()``; infinite without limit.

    Raises:
        ValueError: if a metric is no function of the target's rank.
    """

    eval_step: int
    item_tensor: Any
    saved_model_file: str

    def __init__(self, config: Any, model: nn.Module) -> None:
        metric_values(np.ones(1), config["metrics"], config["topk"])
        torch.autograd.set_detect_anomaly(False)  # RecBole's sine.py turns it on for every model
        run_dir = config["run_dir"]
        with patch.object(recbole_trainer, "get_tensorboard", _tensorboard(run_dir)):
            super().__init__(config, model)
        folder, name = Path(self.checkpoint_dir), Path(self.saved_model_file).stem
        self.saved_model_file = str(folder / (WEIGHTS_NAME if run_dir else f"{name}.safetensors"))
        self.state_file = folder / (STATE_NAME if run_dir else f"{name}.pt")
        self.stage = config["train_stage"] or "train"
        self.stage_seconds = {"pretrain": 0.0, "finetune": 0.0}
        self.tokens_per_second: float | None = None
        self.pretrain_datasets: list[str] = []
        self.epochs_run = 0
        self.best_epoch: int | None = None
        self.checkpoint_from: str | None = None
        self.item_ids: str | None = None
        self.deadline = math.inf
        self._has_saved = False

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
        if saved and not self._has_saved:  # S3Rec's pre-training is never validated
            self._save_checkpoint(self.epochs_run - 1, verbose=verbose)
        kind = "pretrain" if self.stage == "pretrain" else "finetune"
        self.stage_seconds[kind] = time.monotonic() - started
        return self.best_valid_score, self.best_valid_result

    def start_clock(self) -> float:
        """Set the deadline, ``max_train_seconds`` from now; returns now."""
        now, limit = time.monotonic(), self.config["max_train_seconds"]
        self.deadline = math.inf if limit is None else now + limit
        return now

    def start_from_checkpoint(self) -> None:
        """Load the weights that ``checkpoint`` names, if it names any."""
        if self.config["checkpoint"]:
            self.checkpoint_from = str(weights_file(self.config["checkpoint"]))
            metadata = load_weights(self.model, self.checkpoint_from, item_ids=self.item_ids)
            self.pretrain_datasets[:0] = json.loads(metadata.get("pretrain_datasets", "[]"))
            self.logger.info(f"start from {self.checkpoint_from}")

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

    def load_best(self, model_file: str | None = None) -> None:
        """Give the model the best weights on disk, or those of another file.

        Raises:
            ValueError: as ``load_weights``.
        """
        load_weights(self.model, model_file or self.saved_model_file, item_ids=self.item_ids)

    def training_state(self, epoch: int) -> dict[str, Any]:
        """What goes on beside the weights: plain values and tensors."""
        return {
            "model": self.config["model"],
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "optimizer": self.optimizer.state_dict(),
            "other_parameter": {  # modules among them are part of the weights already
                name: value
                for name, value in self.model.other_parameter().items()
                if not isinstance(value, nn.Module)
            },
        }

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Continue after the epoch whose weights and state lie in a folder of this trainer.

        Raises:
            ValueError: as ``load_weights`` and ``load_state``, or if these are of different saves.
        """
        weights = weights_file(resume_file)
        own_name = weights.name == WEIGHTS_NAME
        file = weights.with_name(STATE_NAME) if own_name else weights.with_suffix(".pt")
        state, metadata = load_state(file), read_weights(weights)[1]
        if "token" not in state or state["token"] != metadata.get("token"):
            raise ValueError(f"{file} and {weights.name} were not written together")
        self.item_ids = load_weights(self.model, weights).get("item_ids")
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.load_other_parameter(state["other_parameter"])
        self.start_epoch = state["epoch"] + 1
        self.cur_step, self.best_valid_score = state["cur_step"], state["best_valid_score"]

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """Write what S3Rec's finetuning reads through ``pre_model_path``."""
        state = {"state_dict": self.model.state_dict(), **self.training_state(epoch)}
        save_state(saved_model_file, state)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Keep the weights: the best so far, or the newest where nothing validates them."""
        self._refuse_unless(all(p.isfinite().all() for p in self.model.parameters()), "weights")
        weights = kwargs.get("saved_model_file", self.saved_model_file)
        self.pretrain_datasets = list(dict.fromkeys(self.pretrain_datasets))
        sources = json.dumps(self.pretrain_datasets)
        token = f"{epoch}-{secrets.token_hex(8)}"  # says which two files belong together
        metadata = {"epoch": str(epoch), "token": token, "pretrain_datasets": sources}
        if self.item_ids:
            metadata["item_ids"] = self.item_ids
        save_state(self.state_file, {"token": token, **self.training_state(epoch)})
        save_weights(self.model, weights, metadata)
        self.best_epoch = epoch if epoch >= 0 else None
        self._has_saved = True
        if verbose:
            self.logger.info(f"saved {weights}")

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        """One epoch, cut short at the deadline; the next one is not begun."""
        if time.monotonic() >= self.deadline and self.epochs_run:
            raise TimeSpentError
        self.epochs_run += 1
        loss = super()._train_epoch(
            UntilDeadline(train_data, self.deadline), epoch_idx, loss_func, show_progress
        )
        if time.monotonic() >= self.deadline and self.eval_step > 0:
            self.eval_step = 1  # so that these last weights are validated
        return loss

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
