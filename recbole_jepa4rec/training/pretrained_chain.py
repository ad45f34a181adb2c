"""S3Rec's two stages as one run: pre-training, then finetuning of the weights it left.

RecBole trains one stage a run, and the second reads the file of the first by ``pre_model_path``
when the model is made (S3-Rec, Zhou et al. 2020: four self-supervised losses, then the next item).
Here the same model and the same mechanism serve both, with a file of plain tensors between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.training.recbole_loop import EpochTrainer
from recbole_jepa4rec.training.state import Session

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
        ValueError: for a stage that lacks its start or has two.
    """
    stage, starts = config["train_stage"], ("checkpoint", "pre_model_path")
    given = [key for key in starts if config[key]]
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


@dataclass(frozen=True)
class PretrainedChain:
    """Trains the stages that ``train_stage`` asks for.

    Attributes:
        config: of the run.
        folder: of the run.
        make_trainer: gives a trainer, a new model in it, by settings.
        session: of the run; each stage has its own part of it.
    """

    config: Config
    folder: Path
    make_trainer: Callable[[Config], EpochTrainer]
    session: Session

    @property
    def file(self) -> Path:
        """What the finetuned model starts from."""
        return self.folder / PRETRAINED_NAME

    def fit(self, train: Any, valid: Any, show_progress: bool) -> tuple[EpochTrainer, str]:
        """Train.

        Args:
            train: RecBole's loader.
            valid: RecBole's loader.
            show_progress: as for RecBole's ``Trainer.fit``.

        Returns:
            The trainer of the last stage, and the stage that the run as a whole has been.

        Raises:
            ValueError: if the file that the second stage starts from cannot be used.
        """
        stage, resumed = asked_stage(self.config), self.session.resumed
        if stage == "pretrain":
            return self._pretrain(train, show_progress, time_share=1.0), stage
        before = None
        if resumed and resumed["stage"] == "finetune":
            pass  # the file is written
        elif stage == "both":
            share = self.config["pretrain_time_ratio"]
            before = self._pretrain(train, show_progress, time_share=share)
            before.tensorboard.close()
            before.save_pretrained_model(before.state.epochs_run - 1, str(self.file))
        else:
            self._take_over(train._dataset)
        load_state(self.file)  # RecBole loads it again, and before torch 2.6 runs what it holds
        trainer = self._make("finetune", pre_model_path=str(self.file))
        if before:
            before.timer.update()
        session = self._session("finetune", before=before and before.state)
        trainer.fit(train, valid, show_progress=show_progress, session=session)
        return trainer, stage

    def _make(self, stage: str, **settings: Any) -> EpochTrainer:
        return self.make_trainer(self.config.with_settings({"train_stage": stage, **settings}))

    def _session(self, stage: str, **changes: Any) -> Session:
        """The run's, which goes on from a checkpoint in that stage alone."""
        resumed = self.session.resumed
        if resumed and resumed["stage"] != stage:
            resumed = None
        return replace(self.session, resumed=resumed, **changes)

    def _pretrain(self, train: Any, show_progress: bool, time_share: float) -> EpochTrainer:
        """Run the first stage, to which its share of the time is given."""
        trainer = self._make("pretrain")
        session = self._session("pretrain", time_share=time_share)
        trainer.fit(self._loader(train), show_progress=show_progress, session=session)
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
        weights = weights_file(self.config["checkpoint"])
        load_weights(trainer.model, weights, item_ids=item_ids_digest(dataset))
        trainer.save_pretrained_model(-1, str(self.file))

    def _loader(self, train: Any) -> Any:
        """The loader with ``pretrain_batch_size`` rows a batch, or as many as memory holds.

        RecBole's model spells out every value of the attribute at every position.
        """
        config, dataset = self.config, train._dataset
        values = dataset.num(config["item_attribute"])
        row = BYTES_PER_ATTRIBUTE * config["MAX_ITEM_LIST_LENGTH"] * values
        rows = max(1, int(config["pretrain_memory_mib"] * 2**20 / row))
        config = config.with_settings(
            {"train_batch_size": min(rows, config["pretrain_batch_size"])}
        )
        loader = type(train)(config, dataset, train._sampler, shuffle=train.shuffle)
        loader.worker_init_fn = train.worker_init_fn
        return loader
