"""From settings to ``result.json``: data set, loaders, model, training, exact test."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import init_seed

from recbole_jepa4rec.allocator import reuse_freed_memory
from recbole_jepa4rec.checkpoint import weights_file
from recbole_jepa4rec.config import Config
from recbole_jepa4rec.data.item_attribute import KEYS as ATTRIBUTE_KEYS
from recbole_jepa4rec.data.item_files import refuse_without_text
from recbole_jepa4rec.evaluation.metrics import mean_metrics
from recbole_jepa4rec.evaluation.result import Clock, asking_command, facts, per_user
from recbole_jepa4rec.registry import find_dataset, find_trainer
from recbole_jepa4rec.run_folder import RunFolder
from recbole_jepa4rec.training.phase import PRETRAIN
from recbole_jepa4rec.training.pretrained_chain import PretrainedChain, asked_stage, is_chained
from recbole_jepa4rec.training.time_limit import ending_on_sigterm

SCORE_BYTES = 4 * 2
"""Of one score in an evaluation batch: its float, and another where a model makes two matrices."""


def main(command_line: Sequence[str]) -> int:
    """Run as a script does; the last line on standard output is the path of ``result.json``.

    Args:
        command_line: the words after the script's name.

    Returns:
        Exit status: 0, 1 for a failure, 2 for wrong input, 130 when interrupted.

    Raises:
        SystemExit: with status 143, when the process is told to end (SIGTERM).
    """
    try:
        with ending_on_sigterm():
            print(run(command_line=command_line)["path"])
        return 0
    except KeyboardInterrupt as error:
        folder = getattr(error, "run_folder", None)
        print(f"interrupted; see {folder.path}" if folder else "interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        folder = getattr(error, "run_folder", None)
        details = f" (details in {folder.log_file})" if folder else ""
        print(f"error: {message}{details}", file=sys.stderr)
        return 1


def run(
    model: str | type | None = None,
    dataset: str | Sequence[str] | None = None,
    config_files: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    command_line: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a model, select its best epoch on validation and test it once.

    Args:
        model: name or class.
        dataset: name, or several.
        config_files: yaml files.
        config_dict: settings.
        command_line: ``--key=value`` words; see ``Config`` for which of these wins.

    Returns:
        What ``result.json`` holds, and its ``path``.

    Raises:
        ValueError: for input that cannot be used.
        OSError: if a file cannot be written.
    """
    clock = Clock()
    reuse_freed_memory()
    config = Config(model, dataset, config_files, config_dict, command_line)
    if config["checkpoint"]:
        weights_file(config["checkpoint"])
    refuse_without_text(config)
    if is_chained(config):
        asked_stage(config)
    folder = RunFolder.of(config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
        init_seed(config["seed"], config["reproducibility"])
        data = find_dataset(config.model_class)(config)
        loaders = _loaders(config, data)
        folder.create()
        config["run_dir"] = config["checkpoint_dir"] = str(folder.path)
        with folder.logging(config["state"]):
            result = _train_and_test(config, folder, data, loaders, clock)
            result["command"] = asking_command(
                model, dataset, config_files, config_dict, command_line
            )
            folder.write_result(result)
    return {**result, "path": str(folder.result_file)}


def _loaders(config: Config, data: Any) -> tuple[Any, Any, Any]:
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
    return train, valid, test


def validate(
    config: Config, data: Any, on_validation: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
        init_seed(config["seed"], config["reproducibility"])
        data.config = config
        train, valid, _ = _loaders(config, data)
        folder.create()
        config["run_dir"] = config["checkpoint_dir"] = str(folder.path)
        with folder.logging(config["state"]):
            trainer, result = _train(config, folder, data, (train, valid), clock, on_validation)
            getLogger().info(f"validation: {result}")
    return {
        "valid": result,
        "epochs": trainer.epochs_run,
        "best_epoch": trainer.best_epoch,
        "learning_curve": trainer.learning_curve,
        "seconds": clock.total(),
    }


def _train_and_test(
    config: Config, folder: RunFolder, data: Any, loaders: tuple[Any, Any, Any], clock: Clock
) -> dict[str, Any]:
    """Train, go back to the best epoch, validate it, and read the test split once."""
    train, valid, test = loaders
    trainer, valid_result = _train(config, folder, data, (train, valid), clock)
    ranks = trainer.rank_targets(test, config["show_progress"])
    test_result = mean_metrics(ranks, config["metrics"], config["topk"])
    getLogger().info(f"test: {test_result}")
    folder.write_per_user(per_user(test._dataset, ranks))
    clock.lap("evaluate")
    return {
        **facts(config, data, trainer),
        "valid": valid_result,
        "test": test_result,
        "seconds": clock.seconds(trainer.stage_seconds),
    }


def _train(
    config: Config,
    folder: RunFolder,
    data: Any,
    loaders: tuple[Any, Any],
    clock: Clock,
    on_validation: Callable[[Mapping[str, Any]], None] | None = None,
) -> tuple[Any, dict[str, float]]:
    """Train and go back to the best epoch; returns the trainer and that epoch's validation."""
    logger, show_progress = getLogger(), config["show_progress"]
    train, valid = loaders
    config.save(folder.config_file)
    logger.info(f"{config['dataset']}: {data.statistics()}")
    for key in ATTRIBUTE_KEYS:
        if key in config.internal_config_dict:
            logger.info(f"{key}: {config[key]}")
    for key in config.unread_keys():
        logger.warning(f"{config['model']} does not read {key!r}")
    make_trainer = partial(_trainer, config, folder, train, on_validation)
    if is_chained(config):
        clock.lap("load")
        chain = PretrainedChain(config, folder.path, make_trainer)
        trainer, valid_result = chain.fit(train, valid, show_progress)
    else:
        trainer = make_trainer()
        clock.lap("load")
        _, valid_result = trainer.fit(train, valid, show_progress=show_progress)
    trainer.tensorboard.close()
    clock.lap("train")

    trainer.load_best()
    if valid_result is None:
        valid_result = trainer.evaluate(valid, load_best_model=False, show_progress=show_progress)
    return trainer, valid_result


def _trainer(
    config: Config,
    folder: RunFolder,
    train: Any,
    on_validation: Callable[[Mapping[str, Any]], None] | None,
) -> Any:
    """The trainer, and in it the model on its device.

    Raises:
        ValueError: if RecBole's model looks for a column that is not loaded, or does not know the
            value of a setting.
    """
    init_seed(config["seed"], config["reproducibility"])
    try:
        model = config.model_class(config, train._dataset).to(config["device"])
    except KeyError as error:
        _explain(error, config)
        raise
    except (NotImplementedError, SystemExit) as error:  # RecBole's models on a loss they lack
        if isinstance(error, SystemExit) and error.code:  # told to end
            raise
        raise ValueError(
            f"loss_type {config['loss_type']!r} is unknown to model {config['model']!r}"
        ) from error
    if hasattr(model, "prepare_run_folder"):
        model.prepare_run_folder(folder.path)
    trainer = find_trainer(config.model_class, config)(config, model)
    if on_validation:
        _tell_validations(trainer, on_validation)
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
