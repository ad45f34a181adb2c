"""One run, from settings to its result: data set, loaders, model, training, exact test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

import torch
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import init_seed

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.allocator import give_back_freed_memory, reuse_freed_memory
from recbole_jepa4rec.base.checkpoint import weights_file
from recbole_jepa4rec.base.stopping import leave_sigterm_to_trainer
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset, find_trainer
from recbole_jepa4rec.data.item_attribute import KEYS as ATTRIBUTE_KEYS
from recbole_jepa4rec.data.item_files import refuse_without_text
from recbole_jepa4rec.evaluation.metrics import mean_metrics
from recbole_jepa4rec.runner.build_model import build_model
from recbole_jepa4rec.runner.result import Clock, Result, describe, per_user
from recbole_jepa4rec.runner.resume import identity, refuse_other_run
from recbole_jepa4rec.runner.run_folder import RunFolder, without_logging
from recbole_jepa4rec.training.phase import PRETRAIN
from recbole_jepa4rec.training.pretrained_chain import PretrainedChain, asked_stage, is_chained

SCORE_BYTES = 4 * 2
"""Of one score in an evaluation batch: its float, and another where a model makes two matrices."""

Listener = Callable[[Mapping[str, Any]], None]


def train_and_test(config: Config, folder: RunFolder, command: str) -> Result:
    """Train, go back to the best epoch, validate it, and read the test split once.

    Args:
        config: settings of the run.
        folder: where it writes; with ``resume`` that of the run to go on with.
        command: that asks for the run.

    Returns:
        What ``result.json`` holds.

    Raises:
        ValueError: for input that cannot be used.
        OSError: if a file cannot be written.
        SystemExit: if told to end.
    """
    clock = Clock()
    reuse_freed_memory()
    if config["checkpoint"] and not config["resume"]:
        weights_file(config["checkpoint"])
    refuse_without_text(config)
    if is_chained(config):
        asked_stage(config)
    with _quietly_seeded(config):
        data = find_dataset(config.model_class)(config)
        now = identity(config, data, command)  # reads the item text, which the parts then share
        train, valid, test = loaders(config, data)
        give_back_freed_memory()
        with _open(folder, config):
            this = _Run(config, folder, data, clock, now)
            this.go_on_from_checkpoint()
            trainer, valid_result = this.train(train, valid)
            ranks = trainer.rank_targets(test, config["show_progress"])
            test_result = mean_metrics(ranks, config["metrics"], config["topk"])
            getLogger().info(f"test: {test_result}")
            clock.lap("evaluate")
            result = describe(
                config, data, trainer, valid_result, test_result, clock, this.identity
            )
            if processes.is_main():
                folder.write_per_user(per_user(test._dataset, ranks))
                folder.write_result(result)
                folder.checkpoints.remove()
    return result


def validate(config: Config, data: Any, on_validation: Listener) -> dict[str, Any]:
    """Train as ``run`` does, and stop before the test split is read.

    Args:
        config: settings, ``run_dir`` among them.
        data: the data set, not split yet.
        on_validation: told each point of the learning curve as it is measured, those of a
            pre-training that finetuning follows left out. What it raises ends the training.

    Returns:
        ``valid`` (metrics of the best epoch), ``epochs``, ``best_epoch``, ``learning_curve`` and
        ``seconds``.

    Raises:
        ValueError: for input that cannot be used.
    """
    clock, folder = Clock(), RunFolder.of(config)
    reuse_freed_memory()
    with _quietly_seeded(config):
        data.config = config
        train, valid, _ = loaders(config, data)
        with _open(folder, config):
            this = _Run(config, folder, data, clock, on_validation=on_validation)
            trainer, result = this.train(train, valid)
            getLogger().info(f"validation: {result}")
    return {
        "valid": result,
        "epochs": trainer.epochs_run,
        "best_epoch": trainer.best_epoch,
        "learning_curve": trainer.learning_curve,
        "seconds": clock.total(),
    }


@contextmanager
def _quietly_seeded(config: Config) -> Iterator[None]:
    """Seed every generator; leave out the warnings of RecBole's own code meanwhile."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
        init_seed(config["seed"], config["reproducibility"])
        yield


@contextmanager
def _open(folder: RunFolder, config: Config) -> Iterator[None]:
    """Make the run's folder and log into it; of several processes the first does."""
    config["run_dir"] = config["checkpoint_dir"] = str(folder.path)
    if not processes.is_main():
        with without_logging():
            yield
        return
    folder.create()
    with folder.logging(config["state"]):
        yield


def loaders(config: Config, data: Any) -> tuple[Any, Any, Any]:
    """Loaders of the training, validation and test rows.

    RecBole's ``data_preparation`` would unpickle loaders that it finds in ``checkpoint_dir``.

    Raises:
        ValueError: if nobody can be tested or, where epochs are asked for, trained on.
    """
    limit = config["score_memory_mib"] * 2**20 / (SCORE_BYTES * data.item_num)
    config["eval_batch_size"] = max(1, min(config["eval_batch_size"], int(limit)))
    parts = data.build()
    if not len(parts[2]):
        raise ValueError(f"data set {config['dataset']!r}: no user has at least 3 interactions")
    if not len(parts[0]) and config["epochs"]:
        raise ValueError(f"data set {config['dataset']!r}: no user has 2 interactions to train on")
    samplers = create_samplers(config, data, parts)
    shuffle = bool(config["shuffle"] and len(parts[0]))  # torch shuffles no empty part
    train, valid, test = (
        get_dataloader(config, phase)(config, part, sampler, shuffle=phase == "train" and shuffle)
        for phase, part, sampler in zip(("train", "valid", "test"), parts, samplers, strict=True)
    )
    for loader in (train, valid, test):
        loader.worker_init_fn = leave_sigterm_to_trainer
    return train, valid, test


@dataclass
class _Run:
    """What a run trains with.

    Attributes:
        config: its settings.
        folder: of the run.
        data: the data set.
        clock: counts its seconds.
        identity: goes into every checkpoint; empty where none is written.
        on_validation: see ``validate``.
        state: the checkpoint to go on from, if there is one.
    """

    config: Config
    folder: RunFolder
    data: Any
    clock: Clock
    identity: dict[str, Any] = field(default_factory=dict)
    on_validation: Listener | None = None
    state: dict[str, Any] | None = None

    def go_on_from_checkpoint(self) -> None:
        """With ``resume``, read the newest checkpoint; the run starts over where none was written.

        Raises:
            ValueError: if none is whole, or it is of other data or another number of processes.
        """
        if not self.config["resume"]:
            return
        self.state = self.folder.checkpoints.newest()
        if self.state is None:
            getLogger().info("no checkpoint was written: the run starts over")
            return
        found = self.state["identity"]
        refuse_other_run(self.folder, found, self.identity)
        self.identity |= {"command": found["command"], "starts": found["starts"] + 1}
        self.clock.add(self.state["seconds"])

    def train(self, train: Any, valid: Any) -> tuple[Any, dict[str, float]]:
        """Train and go back to the best epoch.

        Args:
            train: loader of the training rows.
            valid: loader of the validation rows.

        Returns:
            The trainer, and the validation of that epoch.
        """
        config, logger, show_progress = self.config, getLogger(), self.config["show_progress"]
        if processes.is_main() and not self.state:
            config.save(self.folder.config_file)
        logger.info(f"{config['dataset']}: {self.data.statistics()}")
        for key in ATTRIBUTE_KEYS:
            if key in config.internal_config_dict:
                logger.info(f"{key}: {config[key]}")
        for key in config.unread_keys():
            logger.warning(f"{config['model']} does not read {key!r}")
        if is_chained(config):
            self.clock.lap("load")
            stage = self.state["stage"] if self.state else None
            chain = PretrainedChain(config, self.folder.path, lambda: self._trainer(train), stage)
            trainer, valid_result = chain.fit(train, valid, show_progress)
        else:
            trainer = self._trainer(train)
            self.clock.lap("load")
            _, valid_result = trainer.fit(train, valid, show_progress=show_progress)
        trainer.tensorboard.close()
        self.clock.lap("train")

        trainer.load_best()
        if valid_result is None:
            valid_result = trainer.evaluate(
                valid, load_best_model=False, show_progress=show_progress
            )
        return trainer, valid_result

    def _trainer(self, train: Any) -> Any:
        """The trainer, and in it the model on its device."""
        config = self.config
        init_seed(config["seed"], config["reproducibility"])
        with processes.main_first():
            model = build_model(config, train._dataset)
        give_back_freed_memory()  # what reading and tokenising text needed
        if processes.rank():  # dropout, unlike the weights, differs between processes
            torch.manual_seed(config["seed"] + processes.rank())
        if hasattr(model, "prepare_run_folder") and processes.is_main():
            model.prepare_run_folder(self.folder.path)
        trainer = find_trainer(config.model_class, config)(config, model)
        if self.identity:
            trainer.checkpoints, trainer.identity = self.folder.checkpoints, self.identity
        if self.state and self.state["stage"] == trainer.stage:
            trainer.resumed = self.state
        if self.on_validation:
            _tell_validations(trainer, self.on_validation)
        return trainer


def _tell_validations(trainer: Any, on_validation: Callable[[Mapping[str, Any]], None]) -> None:
    """Have a trainer pass on each point that it adds to its learning curve.

    RecBole's ``callback_fn`` would not do: a model trained in two runs has no way to hand it on.
    """
    record = trainer.record_validation

    def record_and_tell(stage: str, valid: float) -> None:
        record(stage, valid)
        if stage != PRETRAIN or trainer.stage == PRETRAIN:
            on_validation(trainer.learning_curve[-1])

    trainer.record_validation = record_and_tell
