"""What every trainer shares: exact ranks, a time limit, SIGTERM, checkpoints without pickles."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from torch import Tensor, nn

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.checkpoint import (
    STATE_NAME,
    WEIGHTS_NAME,
    item_ids_digest,
    load_state,
    load_weights,
    read_weights,
    save_state,
    save_tensors,
    save_weights,
    weights_file,
)
from recbole_jepa4rec.base.device import autocast, sent
from recbole_jepa4rec.base.events import EventWriter
from recbole_jepa4rec.base.progress import Pulse
from recbole_jepa4rec.base.stopping import TERMINATED, asked_to_end, holding_sigterm
from recbole_jepa4rec.config.registry import row_label
from recbole_jepa4rec.data.histories import HistoryRows, PackedHistories
from recbole_jepa4rec.evaluation.choice import choose_on_validation
from recbole_jepa4rec.evaluation.metrics import (
    NotNumbersError,
    TrainingCounts,
    depth_of,
    list_metrics,
    mean_metrics,
    metric_values,
)
from recbole_jepa4rec.evaluation.ranking import Ranking, rank_targets
from recbole_jepa4rec.evaluation.revealed_words import words_revealed
from recbole_jepa4rec.model.base import Model, offered_by
from recbole_jepa4rec.training.state import (
    Session,
    Timer,
    TrainingState,
    Validation,
    random_state,
    restore_random_state,
)


def _of_state(name: str) -> Any:
    """An attribute that RecBole's loop counts in, kept where a checkpoint finds it."""

    def get(trainer: ProtocolTrainer) -> Any:
        return getattr(trainer.state, name)

    def put(trainer: ProtocolTrainer, value: Any) -> None:
        setattr(trainer.state, name, value)

    return property(get, put)


class ProtocolTrainer(Trainer):
    """RecBole's trainer under the protocol of this package.

    A subclass gives ``fit``, whose work stands in a block of :meth:`training`, and says where it is
    (:meth:`position`). Its ``fit`` takes RecBole's arguments and a :class:`Session`.

    Reads ``run_dir`` (everything is written there; without it RecBole's folders serve),
    ``checkpoint`` (weights to start from), ``max_train_seconds`` and ``filter_history``.

    Attributes:
        offer: what the model offers beside RecBole's methods.
        state: what has been counted and measured so far.
        timer: counts its seconds.
        pulse: says now and then how far it is.
        session: what the run has handed in.
        state_file: where the state that goes with ``saved_model_file`` lies.

    Raises:
        ValueError: for an unknown metric.
    """

    saved_model_file: str
    item_tensor: Any
    cur_step = _of_state("cur_step")
    best_valid_score = _of_state("best_valid_score")
    best_valid_result = _of_state("best_valid_result")

    def __init__(self, config: Any, model: nn.Module) -> None:
        metric_values(torch.ones(1), config["metrics"], config["topk"])
        torch.autograd.set_detect_anomaly(False)  # RecBole's sine.py turns it on for every model
        has_stages = "train_stage" in config.internal_config_dict
        self.state = TrainingState(stage=config["train_stage"] if has_stages else "train")
        self.session = Session()
        super().__init__(config, model)
        self.timer, self.pulse = Timer(self.state, None), Pulse(self.logger.info)
        self.offer = offered_by(model, row_label(config["model"], config["loss_type"]))
        # Words that are revealed are items for a while, but never ranked.
        self.num_items: Any = model.n_items
        if config["reveal_ratio"] and not self.offer.fits_any_catalogue:
            raise ValueError(
                f"reveal_ratio is {config['reveal_ratio']}; allowed for {self.offer.label}, which "
                "knows items by their number: 0"
            )
        run_dir = config["run_dir"]
        if not processes.is_main():
            self.tensorboard = EventWriter(None)
        elif run_dir:
            self.tensorboard = EventWriter.into(run_dir)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            self.epochs = 0  # nothing to train, whatever a preset for all models says
        folder, name = Path(self.checkpoint_dir), Path(self.saved_model_file).stem
        self.saved_model_file = str(folder / (WEIGHTS_NAME if run_dir else f"{name}.safetensors"))
        self.state_file = folder / (STATE_NAME if run_dir else f"{name}.pt")

    @contextmanager
    def training(self, train_data: Any, session: Session | None) -> Iterator[bool]:
        """Begin a training, or go on with one, and end it; SIGTERM waits for a step's end.

        When the time is spent the step under way is finished and its weights are validated.

        Yields:
            Whether anything is left to train; the block trains.

        Raises:
            SystemExit: with ``TERMINATED``, once a checkpoint is written, if SIGTERM came.
            ValueError: if the resumed weights are for other items.
        """
        self.session = session = session or Session()
        resumed = session.resumed
        if resumed:
            self.state = TrainingState.of_checkpoint(resumed)
            self._restore_best(resumed)
        elif session.before:
            self.state = session.before.next_stage(self.state.stage)
        limit = self.config["max_train_seconds"]
        self.timer = Timer(self.state, None if limit is None else limit * session.time_share)
        known, items = self.state.item_ids, self.items_of(train_data._dataset)
        if None not in (known, items) and known != items:
            raise ValueError("the resumed weights are for other items or another order")
        self.state.item_ids = items
        with holding_sigterm():
            if not resumed:
                self.start_from_checkpoint()
            elif self.state.is_trained:
                self._restore_model(resumed)
            if self.state.is_trained:
                yield False
            else:
                yield True
                self.state.is_trained = True
                self.write_checkpoint()

    def items_of(self, dataset: Any) -> str | None:
        """Digest of the items that the weights are for; ``None`` where any will do."""
        return item_ids_digest(dataset, self.offer.knows_items)

    def start_from_checkpoint(self) -> None:
        """Load what ``checkpoint`` names, but for what the model keeps of its own catalogue."""
        if not self.config["checkpoint"]:
            return
        file = weights_file(self.config["checkpoint"])
        weights, metadata = read_weights(file)
        items = self.state.item_ids
        same_items = items is not None and metadata.get("item_ids") == items
        keep = self.offer.kept_from_start(weights, same_items)
        load_weights(self.model, file, item_ids=items if keep is None else None, keep=keep or ())
        self.state.checkpoint_from = str(file)
        self.state.pretrain_datasets[:0] = json.loads(metadata.get("pretrain_datasets", "[]"))
        kept = "" if keep is None else f"; not replaced: {', '.join(keep) or 'nothing'}"
        self.logger.info(f"start from {file}{kept}")

    def choose(self, rows: HistoryRows, scores_in_all: int) -> None:
        """Have validation choose what a model of ours leaves open; see ``choose_on_validation``."""
        offer = self.offer
        if not isinstance(offer, Model) or len(offer.choices) < 2:
            return
        names, topk = self.config["metrics"], self.config["topk"]
        self.model.eval()
        with self.autocast():
            chosen = choose_on_validation(
                offer,
                rows,
                self.config["MAX_ITEM_LIST_LENGTH"],
                self.config["filter_history"],
                scores_in_all,
                lambda ranks: mean_metrics(ranks, names, topk)[self.valid_metric],
            )
        self.logger.info(f"validation: {chosen}")

    def load_best(self, model_file: str | None = None) -> None:
        """Give the model the best weights on disk, or those of another file.

        Raises:
            ValueError: as ``load_weights``.
        """
        load_weights(self.model, model_file or self.saved_model_file, item_ids=self.state.item_ids)

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
            ValueError: as ``rank`` and ``load_weights``.
        """
        if not eval_data:
            return None
        if load_best_model:
            self.state.item_ids = self.items_of(eval_data._dataset)
            self.load_best(model_file)
        rows = eval_data._dataset.inter_feat
        return self.metrics_of(self.rank(eval_data, show_progress), rows)

    def rank(self, eval_data: Any, show_progress: bool = False) -> Ranking:
        """Rank of every row's target among all items, by the weights the model has now.

        Args:
            eval_data: RecBole's loader of full rankings, in row order.
            show_progress: whether to draw a bar, where standard error is a terminal.

        Raises:
            ValueError: for sampled candidates, or scores that are not numbers.
        """
        if not isinstance(eval_data, FullSortEvalDataLoader):
            raise ValueError("eval_args.mode must be 'full': every item is ranked")
        dataset, ratio = eval_data._dataset, self.config["reveal_ratio"]
        if isinstance(self.offer, Model) and ratio:
            asked = (dataset.item_text, dataset.inter_feat, ratio, self.config["seed"])
            with words_revealed(self.offer, *asked) as scores:
                return self.rank_rows(dataset.inter_feat, show_progress, scores)
        if isinstance(self.offer, Model):
            return self.rank_rows(dataset.inter_feat, show_progress)
        self.tot_item_num = dataset.item_num
        if self.item_tensor is None:
            self.item_tensor = dataset.get_item_feature().to(self.device)
        interactions = (batch[0] for batch in eval_data)
        return self._rank(dataset.inter_feat, interactions, self._scores_of_recbole, show_progress)

    def rank_rows(
        self,
        rows: HistoryRows,
        show_progress: bool = False,
        scores: Callable[[PackedHistories], Tensor] | None = None,
    ) -> Ranking:
        """As ``rank``, by a model of ours or scores of its, of rows that need no loader."""
        size, whole = self.config["eval_batch_size"], self.model.reads_whole_history
        batches = rows.in_batches(size, whole)
        return self._rank(rows, batches, scores or self.model.scores, show_progress)

    def _rank(
        self,
        rows: HistoryRows,
        batches: Iterable[Any],
        scores: Callable[[Any], Tensor],
        show_progress: bool,
    ) -> Ranking:
        self.model.eval()
        depth = depth_of(self.config["metrics"], self.config["topk"])
        try:
            with self.autocast():
                if self.offer.has_item_vectors:
                    self.offer.item_vectors()  # together, before each ranks users of its own
                return rank_targets(
                    rows,
                    batches,
                    scores,
                    filter_history=self.config["filter_history"],
                    depth=min(depth, self.num_items - 1),
                    before_batch=self.end_if_asked,
                    show_progress=show_progress,
                )
        except NotNumbersError:
            self.refuse_unless(False, "scores")
            raise

    def autocast(self) -> torch.autocast:
        """The context in which the model computes at the precision of the run."""
        return autocast(self.device, self.config["precision"])

    def metrics_of(self, ranking: Ranking, rows: HistoryRows) -> dict[str, float]:
        """Every configured metric of a ranking."""
        names, topk = self.config["metrics"], self.config["topk"]
        result = mean_metrics(ranking.ranks, names, topk)
        if ranking.best.shape[1]:
            counts = TrainingCounts.of(rows.histories, self.num_items)
            result |= list_metrics(ranking.best, names, topk, counts)
        return result

    def _scores_of_recbole(self, interaction: Any) -> Tensor:
        """Scores of all items by one of RecBole's models, ``[B, N]``."""
        columns = Interaction(sent(interaction.interaction, self.device))
        return self._full_sort_batch_eval((columns, None, None, None))[1]

    def record_validation(self, stage: str, valid: float) -> None:
        """Add a point, of the epoch under way, to the learning curve."""
        self.timer.update()
        point: Validation = {
            "stage": stage,
            "epoch": max(0, self.state.epochs_run - 1),
            "seconds": round(self.state.seconds, 3),
            "valid": float(valid),
        }
        self.state.learning_curve.append(point)
        self.session.tell(point, self.state.stage)

    def draw(self, part: str, values: Mapping[str, float]) -> None:
        """Add points, of the epoch under way, to curves in TensorBoard's events and trackers.

        Every model has ``train/loss`` and its terms, ``valid/`` and ``test/`` with each metric, and
        the same of a pre-training under ``pretrain/``.

        Args:
            part: that the names of the curves begin with.
            values: by the rest of the name.
        """
        epoch = max(0, self.state.epochs_run - 1)
        named = {f"{part}/{name}": float(value) for name, value in values.items()}
        for name, value in named.items():
            self.tensorboard.add_scalar(name, value, epoch)
        for tell in self.session.trackers if processes.is_main() else ():
            tell(named, epoch)

    def position(self) -> dict[str, Any] | None:
        """Where the training is, for ``fit`` to go on from; ``None`` before and after it."""
        raise NotImplementedError

    def optimizer_state(self) -> dict[str, Any]:
        """What ``load_optimizer_state`` takes."""
        return self.optimizer.state_dict()

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the moments and rates of a checkpoint."""
        self.optimizer.load_state_dict(dict(state))

    def write_checkpoint(self) -> None:
        """Write what the run can be resumed from, where it has a folder for that."""
        checkpoints = self.session.checkpoints
        if checkpoints is None:
            return
        self.timer.update()
        reads = self.state.has_saved and processes.is_main()
        state = {
            "identity": dict(self.session.identity),
            **asdict(self.state),
            "model": self.offer.resumable_state(),
            "other_parameter": self._other_parameter(),
            "optimizer": self.optimizer_state(),
            "best_weights": read_weights(self.saved_model_file) if reads else None,
            "random": random_state(),
            "position": self.position(),
        }
        if processes.is_main():
            checkpoints.write(state)

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up weights, optimizer and random numbers of a checkpoint."""
        self._restore_model(checkpoint)
        self.load_optimizer_state(checkpoint["optimizer"])
        restore_random_state(checkpoint["random"])

    def end_if_asked(self) -> None:
        """Act on SIGTERM between two steps.

        Raises:
            SystemExit: if it came, once a checkpoint is written.
        """
        if processes.any_rank(asked_to_end()):
            self.write_checkpoint()
            raise SystemExit(TERMINATED)

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
        if "optimizer" not in state:
            raise ValueError(f"{file} holds no optimizer's state: the run was resumed behind it")
        self.state.item_ids = load_weights(self.model, weights).get("item_ids")
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.load_other_parameter(state["other_parameter"])
        self.start_epoch = state["epoch"] + 1
        self.cur_step, self.best_valid_score = state["cur_step"], state["best_valid_score"]

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """Write what S3Rec's finetuning reads through ``pre_model_path``."""
        weights = {"state_dict": self.model.state_dict()}
        save_state(saved_model_file, {**weights, **self._epoch_state(epoch)})

    def refuse_unless(self, finite: Any, what: str) -> None:
        """End a run whose scores or weights are not numbers."""
        fault = f"{self.config['model']}'s {what} are not numbers"
        if not finite and not self.state.epochs_run:
            raise ValueError(f"{fault} before any training")
        if not finite:
            raise ValueError(
                f"{fault} after epoch {self.state.epochs_run - 1}: training diverged; try a "
                f"learning_rate below {self.learning_rate} or clip_grad_norm={{'max_norm': 1}}"
            )

    def _epoch_state(self, epoch: int) -> dict[str, Any]:
        """What goes on beside the weights of an epoch: plain values and tensors."""
        return {
            "model": self.config["model"],
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "optimizer": self.optimizer.state_dict(),
            "other_parameter": self._other_parameter(),
        }

    def _other_parameter(self) -> dict[str, Any]:
        """What RecBole's model keeps beside its weights; modules are part of these already."""
        return {
            name: value
            for name, value in self.model.other_parameter().items()
            if not isinstance(value, nn.Module)
        }

    def _restore_model(self, checkpoint: Mapping[str, Any]) -> None:
        """Give the model back its weights, and what it keeps beside them."""
        self.offer.load_resumable_state(checkpoint["model"])
        self.model.load_other_parameter(checkpoint["other_parameter"])

    def _restore_best(self, checkpoint: Mapping[str, Any]) -> None:
        """Write the best weights again, unless they are still the ones on disk.

        They are not if the run went on after the checkpoint and found better ones. The optimizer's
        state of their epoch, which ``state.pt`` held, is lost then.
        """
        if checkpoint["best_weights"] is None or not processes.is_main():
            return
        weights, metadata = checkpoint["best_weights"]
        path = Path(self.saved_model_file)
        try:
            if read_weights(path)[1].get("token") == metadata["token"]:
                return
        except ValueError:  # missing or damaged
            pass
        save_state(self.state_file, {"token": metadata["token"]})
        save_tensors(path, weights, metadata)

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        score, result = super()._valid_epoch(valid_data, show_progress)
        self.record_validation(self.state.stage, score)
        self.draw("valid", result)
        return score, result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Keep the weights: the best so far, or the newest where nothing validates them."""
        finite = [weight.isfinite().all() for weight in self.model.parameters()]
        self.refuse_unless(not finite or torch.stack(finite).all(), "weights")
        weights, state = kwargs.get("saved_model_file", self.saved_model_file), self.state
        state.pretrain_datasets = list(dict.fromkeys(state.pretrain_datasets))
        sources = json.dumps(state.pretrain_datasets)
        token = f"{epoch}-{secrets.token_hex(8)}"  # says which two files belong together
        metadata = {
            "epoch": str(epoch),
            "token": token,
            "pretrain_datasets": sources,
            "inputs": json.dumps(self.session.identity.get("inputs", {})),
        }
        if state.item_ids:
            metadata["item_ids"] = state.item_ids
        if processes.is_main():
            save_state(self.state_file, {"token": token, **self._epoch_state(epoch)})
            save_weights(self.model, weights, metadata)
        processes.barrier()
        in_all = state.epochs_before + epoch
        state.best_epoch = in_all if in_all >= 0 else None
        state.has_saved = True
        if verbose:
            self.logger.info(f"saved {weights}")

    def _add_hparam_to_tensorboard(self, best_valid_result: float) -> None:
        """Leave out RecBole's copy of the settings in a folder of its own."""
