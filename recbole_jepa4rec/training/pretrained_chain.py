"""S3Rec's two stages as one run: pre-training, then finetuning of the weights it left.

RecBole trains one stage a run, and the second reads the file of the first by ``pre_model_path``
when the model is made (S3-Rec, Zhou et al. 2020: four self-supervised losses, then the next item).
Here the same model and the same mechanism serve both, with a file of plain tensors between them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole.trainer import PretrainTrainer
from recbole.utils import get_trainer

from recbole_jepa4rec.base.checkpoint import (
    item_ids_digest,
    load_state,
    load_weights,
    save_state,
    weights_file,
)

STAGES = ("pretrain", "finetune", "both")

PRETRAINED_NAME = "pretrained.pt"
"""File of the run folder that the finetuned model starts from."""

BYTES_PER_ATTRIBUTE = 52
"""That a position of a row takes, in pre-training, for each value an attribute may have."""


def is_chained(config: Any) -> bool:
    """Whether RecBole trains the model in two stages, each a run of its own."""
    return issubclass(get_trainer(config["MODEL_TYPE"], config["model"]), PretrainTrainer)


def asked_stage(config: Any) -> str:
    """The ``train_stage`` of a chained model, read with what it starts from.

    Pre-trained weights, by ``checkpoint`` or ``pre_model_path``, turn "both" into "finetune".

    Raises:
        ValueError: for another stage, or one that lacks its start or has two.
    """
    stage, starts = config["train_stage"], ("checkpoint", "pre_model_path")
    given = [key for key in starts if config[key]]
    if stage not in STAGES:
        raise ValueError(f"train_stage is {stage!r}; allowed: {', '.join(STAGES)}")
    if len(given) > 1:
        raise ValueError("checkpoint and pre_model_path are both given; allowed: one of them")
    if stage == "finetune" and not given:
        raise ValueError(
            "train_stage is 'finetune' without weights to start from "
            "(write --checkpoint=RUN_DIR, or --train_stage=both)"
        )
    if "pre_model_path" in given and not Path(config["pre_model_path"]).is_file():
        raise ValueError(f"pre_model_path {config['pre_model_path']!r} is no file")
    if stage == "pretrain" and config["pre_model_path"]:
        raise ValueError("train_stage is 'pretrain' with pre_model_path (write --checkpoint)")
    return "finetune" if stage == "both" and given else stage


class PretrainedChain:
    """Trains the stages that ``train_stage`` asks for.

    Args:
        config: of the run; ``train_stage`` and ``pre_model_path`` are set for RecBole's model.
        folder: of the run.
        make_trainer: gives a trainer, a new model in it, by the settings of that moment.
        resumed: the stage that a resumed run is in.
    """

    def __init__(
        self,
        config: Any,
        folder: Path,
        make_trainer: Callable[[], Any],
        resumed: str | None = None,
    ) -> None:
        self.config, self.make_trainer, self.resumed = config, make_trainer, resumed
        self.file = folder / PRETRAINED_NAME
        self.stage = asked_stage(config)

    def fit(self, train: Any, valid: Any, show_progress: bool) -> tuple[Any, Any]:
        """Train.

        Args:
            train: RecBole's loader.
            valid: RecBole's loader.
            show_progress: as for RecBole's ``Trainer.fit``.

        Returns:
            The trainer of the last stage, and the validation of its best epoch, if there was one.
        """
        if self.stage == "pretrain":
            trainer = self._make("pretrain")
            _, result = trainer.fit(self._pretraining_loader(train), show_progress=show_progress)
            return trainer, result
        before = None
        if self.resumed == "finetune":
            pass  # the file is written
        elif self.stage == "both":
            before = self._pretrain(train, show_progress)
        else:
            self._take_over(train._dataset)
        self.config["pre_model_path"] = str(self.file)
        trainer = self._make("finetune")
        if before:
            trainer.continue_from(before)
        _, result = trainer.fit(train, valid, show_progress=show_progress)
        trainer.stage = self.stage
        return trainer, result

    def _make(self, stage: str) -> Any:
        self.config["train_stage"] = stage
        return self.make_trainer()

    def _pretrain(self, train: Any, show_progress: bool) -> Any:
        """Run the first stage; its last weights go into the file."""
        trainer = self._make("pretrain")
        trainer.time_share = self.config["pretrain_time_ratio"]
        trainer.fit(self._pretraining_loader(train), show_progress=show_progress)
        trainer.tensorboard.close()
        trainer.save_pretrained_model(trainer.epochs_run - 1, str(self.file))
        return trainer

    def _take_over(self, dataset: Any) -> None:
        """Put the weights of another run, or RecBole's own file of them, into the file.

        Raises:
            ValueError: if they are not readable, of another shape or for other items.
        """
        if given := self.config["pre_model_path"]:
            state = load_state(given)
            if "state_dict" not in state:
                raise ValueError(f"pre_model_path {given!r} holds no state_dict")
            save_state(self.file, {"state_dict": state["state_dict"]})
            return
        trainer = self._make("pretrain")
        trainer.tensorboard.close()
        ids = item_ids_digest(dataset)
        load_weights(trainer.model, weights_file(self.config["checkpoint"]), item_ids=ids)
        trainer.save_pretrained_model(-1, str(self.file))

    def _pretraining_loader(self, train: Any) -> Any:
        """The loader with ``pretrain_batch_size`` rows a batch, or as many as memory holds.

        RecBole's model spells out every value of the attribute at every position.
        """
        config, dataset = self.config, train._dataset
        values = dataset.num(config["item_attribute"])
        row = BYTES_PER_ATTRIBUTE * config["MAX_ITEM_LIST_LENGTH"] * values
        rows = max(1, int(config["pretrain_memory_mib"] * 2**20 / row))
        given = config["train_batch_size"]
        config["train_batch_size"] = min(rows, config["pretrain_batch_size"])
        try:
            loader = type(train)(config, dataset, train._sampler, shuffle=train.shuffle)
        finally:
            config["train_batch_size"] = given
        loader.worker_init_fn = train.worker_init_fn
        return loader
