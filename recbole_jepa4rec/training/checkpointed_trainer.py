"""Weights and training state of a trainer on disk: written together, never pickled."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from recbole.trainer import Trainer
from torch import nn

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.checkpoint import (
    STATE_NAME,
    WEIGHTS_NAME,
    load_state,
    load_weights,
    read_weights,
    save_state,
    save_weights,
    weights_file,
)


class CheckpointedTrainer(Trainer):
    """RecBole's trainer, whose saving and loading keeps to safetensors and plain values.

    Attributes:
        state_file: where the state that goes with ``saved_model_file`` lies.
        pretrain_datasets: data sets that the weights were pre-trained on.
        epochs_run: epochs begun so far, those of earlier stages included.
        epochs_before: ... and only those.
        best_epoch: the epoch, from 0 over all stages, whose weights are on disk; ``None`` before
            the first.
        checkpoint_from: the weights that training started from, if any.
        item_ids: ``item_ids_digest`` of the data set that the weights are for, once known.
        has_saved: whether weights are on disk.
    """

    saved_model_file: str

    def __init__(self, config: Any, model: nn.Module) -> None:
        super().__init__(config, model)
        folder, name = Path(self.checkpoint_dir), Path(self.saved_model_file).stem
        in_run = config["run_dir"]
        self.saved_model_file = str(folder / (WEIGHTS_NAME if in_run else f"{name}.safetensors"))
        self.state_file = folder / (STATE_NAME if in_run else f"{name}.pt")
        self.pretrain_datasets: list[str] = []
        self.epochs_run = self.epochs_before = 0
        self.best_epoch: int | None = None
        self.checkpoint_from: str | None = None
        self.item_ids: str | None = None
        self.has_saved = False

    def start_from_checkpoint(self) -> None:
        """Load the weights that ``checkpoint`` names, if it names any."""
        if self.config["checkpoint"]:
            self.checkpoint_from = str(weights_file(self.config["checkpoint"]))
            metadata = load_weights(self.model, self.checkpoint_from, item_ids=self.item_ids)
            self.pretrain_datasets[:0] = json.loads(metadata.get("pretrain_datasets", "[]"))
            self.logger.info(f"start from {self.checkpoint_from}")

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
            "other_parameter": self.other_parameter(),
        }

    def other_parameter(self) -> dict[str, Any]:
        """What RecBole's model keeps beside its weights; modules are part of these already."""
        return {
            name: value
            for name, value in self.model.other_parameter().items()
            if not isinstance(value, nn.Module)
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
        if "optimizer" not in state:
            raise ValueError(f"{file} holds no optimizer's state: the run was resumed behind it")
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
        weights = kwargs.get("saved_model_file", self.saved_model_file)
        self.pretrain_datasets = list(dict.fromkeys(self.pretrain_datasets))
        sources = json.dumps(self.pretrain_datasets)
        token = f"{epoch}-{secrets.token_hex(8)}"  # says which two files belong together
        metadata = {"epoch": str(epoch), "token": token, "pretrain_datasets": sources}
        if self.item_ids:
            metadata["item_ids"] = self.item_ids
        if processes.is_main():
            save_state(self.state_file, {"token": token, **self.training_state(epoch)})
            save_weights(self.model, weights, metadata)
        processes.barrier()
        in_all = self.epochs_before + epoch
        self.best_epoch = in_all if in_all >= 0 else None
        self.has_saved = True
        if verbose:
            self.logger.info(f"saved {weights}")
