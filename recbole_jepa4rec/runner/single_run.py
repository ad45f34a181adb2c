"""One run, from settings to its result: data set, loaders, model, training, exact test."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from typing import Any

import torch
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import init_seed

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.allocator import give_back_freed_memory, reuse_freed_memory
from recbole_jepa4rec.base.checkpoint import weights_file
from recbole_jepa4rec.base.device import computing, score_memory
from recbole_jepa4rec.base.stopping import begin_worker
from recbole_jepa4rec.base.trackers import LIBRARIES, Tracker, tracking
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.protocol import NOBODY_TRAINS
from recbole_jepa4rec.config.registry import find_dataset, find_trainer, training_targets
from recbole_jepa4rec.config.run_settings import ATTRIBUTE_KEYS
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.data.item_files import refuse_without_text, source_folders
from recbole_jepa4rec.data.split_files import unread_split
from recbole_jepa4rec.evaluation.drift import Drift, held_back, measured_drift
from recbole_jepa4rec.model.reranking import Retriever
from recbole_jepa4rec.runner.doctor import hardware
from recbole_jepa4rec.runner.result import Clock, Result, describe, per_user
from recbole_jepa4rec.runner.resume import identity_of, refuse_other_run
from recbole_jepa4rec.runner.retriever import make_model, retriever_for
from recbole_jepa4rec.runner.run_folder import RunFolder, without_logging
from recbole_jepa4rec.runner.run_result import RunResult
from recbole_jepa4rec.training.pretrained_chain import PretrainedChain, asked_stage, is_chained
from recbole_jepa4rec.training.state import Listener, Session

SCORE_BYTES = 4 * 2
"""Of one score in an evaluation batch: its float, and another where a model makes two matrices."""


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
    config = _in_folder(config, folder)
    if config["checkpoint"] and not config["resume"]:
        weights_file(config["checkpoint"])
    refuse_without_text(config)
    if is_chained(config):
        asked_stage(config)
    with _quietly_seeded(config):
        data = find_dataset(config.model_class)(config)
        identity = identity_of(config, data, command)  # reads the text, which the parts then share
        config, train, valid, test = loaders(config, data)
        give_back_freed_memory()
        path = _path_ahead(config, test._dataset)
        with _open(folder, config), _told(config, folder) as trackers:
            session = _session(config, folder, identity, trackers)
            if session.resumed:
                clock.add(session.resumed["seconds"])
            trained = _train(config, folder, train, valid, session, clock)
            trainer = trained.trainer
            ranking = trainer.rank(test, config["show_progress"])
            test_result = trainer.metrics_of(ranking, test._dataset.inter_feat)
            trainer.draw("test", test_result)
            drift = None if path is None else _drift(config, trainer, path)
            trainer.tensorboard.close()
            clock.lap("evaluate")
            result = describe(
                config,
                data,
                trainer.offer,
                trainer.state,
                stage=trained.stage,
                valid=trained.valid or {},
                test=test_result,
                clock=clock,
                identity=session.identity,
                drift=drift,
            )
            if processes.is_main():
                folder.write_per_user(per_user(test._dataset, ranking.ranks))
                folder.write_result(result)
                folder.checkpoints.remove()
            getLogger().info(repr(RunResult({**result, "path": str(folder.result_file)})))
    return result


def _path_ahead(config: Config, test: Any) -> HistoryRows | None:
    """Rows of the items that rollouts are to predict; ``None`` where no drift is measured."""
    if not config["drift_steps"] or "drift_steps" in config.unread_keys():
        return None
    return held_back(test.inter_feat, config["drift_steps"], config["dataset"])


def _drift(config: Config, trainer: Any, rows: HistoryRows) -> Drift:
    """How far rollouts of the trained model drift."""
    sizes = config["drift_steps"], config["eval_batch_size"]
    with trainer.autocast():
        return measured_drift(trainer.offer, rows, *sizes, trainer.end_if_asked)


def validate(config: Config, data: Any, on_validation: Listener) -> dict[str, Any]:
    """Train as ``run`` does, and stop before the test split is read.

    Args:
        config: settings, ``run_dir`` among them.
        data: the data set, not split yet.
        on_validation: see ``Session``.

    Returns:
        ``valid`` (metrics of the best epoch), ``epochs``, ``best_epoch``, ``learning_curve`` and
        ``seconds``.

    Raises:
        ValueError: for input that cannot be used.
    """
    clock, folder = Clock(), RunFolder.of(config)
    reuse_freed_memory()
    config = _in_folder(config, folder)
    with _quietly_seeded(config):
        config, train, valid, _ = loaders(config, data.with_config(config))
        with _open(folder, config):
            session = Session(on_validation=on_validation)
            trained = _train(config, folder, train, valid, session, clock)
            trained.trainer.tensorboard.close()
            getLogger().info(f"validation: {trained.valid}")
    state = trained.trainer.state
    return {
        "valid": trained.valid,
        "epochs": state.epochs_run,
        "best_epoch": state.best_epoch,
        "learning_curve": state.learning_curve,
        "seconds": clock.total(),
    }


def _in_folder(config: Config, folder: RunFolder) -> Config:
    """The settings by which everything is written into the run's folder."""
    return config.with_settings({key: str(folder.path) for key in ("run_dir", "checkpoint_dir")})


@contextmanager
def _quietly_seeded(config: Config) -> Iterator[None]:
    """Seed every generator; leave out the warnings of RecBole's own code meanwhile."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
        init_seed(config["seed"], config["reproducibility"])
        computes = config["device"], config["matmul_precision"], config["reproducibility"]
        with computing(*computes):
            yield


@contextmanager
def _open(folder: RunFolder, config: Config) -> Iterator[None]:
    """Make the run's folder and log into it; of several processes the first does."""
    if not processes.is_main():
        with without_logging():
            yield
        return
    folder.create()
    with folder.writing(config["state"], resume=bool(config["resume"])):
        yield


@contextmanager
def _told(config: Config, folder: RunFolder) -> Iterator[list[Tracker]]:
    """Tell Weights & Biases or MLflow of the run, where that is asked for; the first process does.

    RecBole's ``log_wandb`` alone would tell of its own models, and of these something else.
    """
    asked = {key: config[key] and processes.is_main() for key in LIBRARIES}
    settings = {**config.external(), "wandb_project": config["wandb_project"], **asked}
    with tracking(settings, f"{config['model']} {folder.path.name}") as trackers:
        yield trackers


def loaders(config: Config, data: Any) -> tuple[Config, Any, Any, Any]:
    """Loaders of the training, validation and test rows.

    RecBole's ``data_preparation`` would unpickle loaders that it finds in ``checkpoint_dir``.

    Returns:
        The settings with the ``eval_batch_size`` that memory allows, and the three loaders.

    Raises:
        ValueError: if nobody can be tested or, where epochs are asked for, trained on, or no
            negative can be drawn.
    """
    memory = config["score_memory_mib"]
    memory = score_memory(config["device"]) if memory is None else memory * 2**20
    limit = memory / (SCORE_BYTES * data.item_num)
    rows = max(1, min(config["eval_batch_size"], int(limit)))
    config = config.with_settings({"eval_batch_size": rows})
    data.refuse_untested()
    parts = data.build()
    if not len(parts[0]) and config["epochs"] and training_targets(config["model"]):
        raise ValueError(f"data set {config['dataset']!r}: {NOBODY_TRAINS}")
    samplers = create_samplers(config, data, parts)
    if samplers[0] is not None and len(parts[0]):
        _refuse_no_negatives(samplers[0], data)
    shuffle = bool(config["shuffle"] and len(parts[0]))  # torch shuffles no empty part
    train, valid, test = (
        get_dataloader(config, phase)(config, part, sampler, shuffle=phase == "train" and shuffle)
        for phase, part, sampler in zip(("train", "valid", "test"), parts, samplers, strict=True)
    )
    for loader in (train, valid, test):
        loader.worker_init_fn = begin_worker
    return config, train, valid, test


def _refuse_no_negatives(sampler: Any, data: Any) -> None:
    """Refuse items too few for a negative beside the target: RecBole would draw for ever."""
    by_count = sampler.distribution == "popularity"
    if len(sampler.prob if by_count else range(1, data.item_num)) < 2:
        of = "item with interactions" if by_count else "item"
        raise ValueError(
            f"data set {data.dataset_name!r} has one {of}; train_neg_sample_args needs another for "
            "the negative"
        )


def _session(
    config: Config, folder: RunFolder, identity: Mapping[str, Any], trackers: Sequence[Tracker]
) -> Session:
    """Where checkpoints go and, with ``resume``, the newest one; without one the run starts over.

    Raises:
        ValueError: if none is whole, or it is of other data or another number of processes.
    """
    checkpoints = folder.checkpoints
    newest = checkpoints.newest() if config["resume"] else None
    if newest is None:
        if config["resume"]:
            getLogger().info("no checkpoint was written: the run starts over")
        return Session(checkpoints, identity, trackers=trackers)
    found = newest["identity"]
    refuse_other_run(config, folder, found, identity)
    counted = {"command": found["command"], "starts": found["starts"] + 1}
    return Session(checkpoints, {**identity, **counted}, resumed=newest, trackers=trackers)


@dataclass(frozen=True)
class _Trained:
    """What training leaves: its trainer with the best weights, the stage, their validation."""

    trainer: Any
    stage: str
    valid: dict[str, float] | None


def _log_what_is_trained(config: Config, data: Any) -> None:
    """Log the device, the data and what a user may not expect of either."""
    logger = getLogger()
    device = hardware(config["device"])
    logger.info(f"device: {device['device']} ({device['processor']}, {device['threads']} threads)")
    if config.given("gpu_id") and config["use_gpu"] and device["device"] == "cpu":
        logger.warning(f"gpu_id is {config['gpu_id']!r}, but torch finds no GPU: the CPU is used")
    logger.info(f"{config['dataset']}: {data.statistics()}")
    if not (data.split_paths or config["source_datasets"]):
        ((name, path),) = source_folders(config).items()
        if unread := unread_split(path / f"{name}.stats.json"):
            logger.warning(unread)
    for key in ATTRIBUTE_KEYS:
        if key in config.internal_config_dict:
            logger.info(f"{key}: {config[key]}")
    for key in config.unread_keys():
        logger.warning(f"{config['model']} does not read {key!r}")


def _train(
    config: Config, folder: RunFolder, train: Any, valid: Any, session: Session, clock: Clock
) -> _Trained:
    """Train and go back to the best epoch."""
    show_progress = config["show_progress"]
    data = train._dataset
    if processes.is_main() and not session.resumed:
        config.save(folder.config_file)
    _log_what_is_trained(config, data)

    clock.lap("load")
    retriever = retriever_for(config, folder.path, data, train_and_test)
    if retriever:
        session = session.after(clock.lap("retriever"))

    make_trainer = partial(_make_trainer, folder=folder, data=data, retriever=retriever)
    if is_chained(config):
        clock.lap("load")
        chain = PretrainedChain(config, folder.path, make_trainer, session)
        trainer, stage = chain.fit(train, valid, show_progress)
    else:
        trainer = make_trainer(config)
        clock.lap("load")
        trainer.fit(train, valid, show_progress=show_progress, session=session)
        stage = trainer.state.stage
    clock.lap("train")
    trainer.load_best()
    result = trainer.state.best_valid_result
    if result is None:
        result = trainer.evaluate(valid, load_best_model=False, show_progress=show_progress)
    return _Trained(trainer, stage, result)


def _make_trainer(config: Config, folder: RunFolder, data: Any, retriever: Retriever | None) -> Any:
    """A trainer, and in it a new model on its device."""
    init_seed(config["seed"], config["reproducibility"])
    with processes.main_first():
        model = build_model(config, data, retriever)
    give_back_freed_memory()  # what reading and tokenising text needed
    if processes.rank():  # dropout, unlike the weights, differs between processes
        torch.manual_seed(config["seed"] + processes.rank())
    silent = config.with_settings({"log_wandb": False})
    trainer = find_trainer(config.model_class, config)(silent, model)
    if processes.is_main():
        trainer.offer.prepare_run_folder(folder.path)
    return trainer


def build_model(config: Config, dataset: Any, retriever: Retriever | None = None) -> Any:
    """The model on its device.

    Raises:
        ValueError: if RecBole's model looks for a column that is not loaded, or does not know the
            value of a setting.
    """
    try:
        return make_model(config, dataset, retriever)
    except KeyError as error:
        _explain(error, config)
        raise
    except (NotImplementedError, SystemExit) as error:  # RecBole's models on a loss they lack
        if isinstance(error, SystemExit) and error.code:  # told to end
            raise
        raise ValueError(
            f"loss_type {config['loss_type']!r} is unknown to model {config['model']!r}"
        ) from error


def _explain(error: KeyError, config: Config) -> None:
    """Say which column or which setting a model looked up in vain, where that can be known."""
    settings, name = config.final_config_dict, error.args[0]
    columns = [value for key, value in settings.items() if key.endswith("_FIELD")]
    if name in {x for c in columns if c for x in ([c] if isinstance(c, str) else c)}:
        raise ValueError(
            f"model {config['model']!r} needs {error}, which data set {config['dataset']!r} lacks "
            "(load_col names the columns that are loaded)"
        ) from error
    keys = [key for key, value in settings.items() if isinstance(value, str) and value == name]
    if keys:
        raise ValueError(f"{keys[0]} {error} is unknown to model {config['model']!r}") from error
