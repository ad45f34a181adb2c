"""From settings to ``result.json``: data set, loaders, model, training, exact test."""

from __future__ import annotations

import resource
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import init_seed
from torch import Tensor

from recbole_jepa4rec.allocator import reuse_freed_memory
from recbole_jepa4rec.checkpoint import weights_file
from recbole_jepa4rec.config import Config
from recbole_jepa4rec.doctor import hardware, versions
from recbole_jepa4rec.histories import HistoryRows
from recbole_jepa4rec.metrics import mean_metrics
from recbole_jepa4rec.registry import find_dataset, find_trainer
from recbole_jepa4rec.run_folder import RunFolder
from recbole_jepa4rec.time_limit import ending_on_sigterm

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
    clock = _Clock()
    reuse_freed_memory()
    config = Config(model, dataset, config_files, config_dict, command_line)
    if config["checkpoint"]:
        weights_file(config["checkpoint"])
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
            result["command"] = _command(model, dataset, config_files, config_dict, command_line)
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


def _train_and_test(
    config: Config, folder: RunFolder, data: Any, loaders: tuple[Any, Any, Any], clock: _Clock
) -> dict[str, Any]:
    """Train, go back to the best epoch, validate it, and read the test split once."""
    logger, show_progress = getLogger(), config["show_progress"]
    train, valid, test = loaders
    config.save(folder.config_file)
    logger.info(f"{config['dataset']}: {data.statistics()}")
    for key in config.unread_keys():
        logger.warning(f"{config['model']} does not read {key!r}")
    trainer = _trainer(config, folder, train)
    clock.lap("load")

    _, valid_result = trainer.fit(train, valid, show_progress=show_progress)
    trainer.tensorboard.close()
    clock.lap("train")

    trainer.load_best()
    if valid_result is None:
        valid_result = trainer.evaluate(valid, load_best_model=False, show_progress=show_progress)
    ranks = trainer.rank_targets(test, show_progress)
    test_result = mean_metrics(ranks, config["metrics"], config["topk"])
    logger.info(f"test: {test_result}")
    folder.write_per_user(per_user(test._dataset, ranks))
    clock.lap("evaluate")
    return {
        **_facts(config, data, trainer),
        "valid": valid_result,
        "test": test_result,
        "seconds": clock.seconds(trainer.stage_seconds),
    }


def _trainer(config: Config, folder: RunFolder, train: Any) -> Any:
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
    if hasattr(model, "prepare_run_folder"):
        model.prepare_run_folder(folder.path)
    return find_trainer(config.model_class, config)(config, model)


def _explain(error: KeyError, config: Config) -> None:
    """Say which column or which setting a model looked up in vain, where that can be known."""
    settings, name = config.final_config_dict, error.args[0]
    columns = [settings.get("selected_features"), settings.get("item_attribute")]
    columns += [value for key, value in settings.items() if key.endswith("_FIELD")]
    if name in {x for c in columns if c for x in ([c] if isinstance(c, str) else c)}:
        raise ValueError(
            f"model {config['model']!r} needs {error}, which data set {config['dataset']!r} lacks "
            "(load_col names the columns that are loaded)"
        ) from error
    keys = [key for key, value in settings.items() if isinstance(value, str) and value == name]
    if keys:
        raise ValueError(f"{keys[0]} {error} is unknown to model {config['model']!r}") from error


def per_user(test: Any, ranks: Tensor) -> pd.DataFrame:
    """What ``per_user.parquet`` holds.

    Args:
        test: the data set whose rows were ranked.
        ranks: of each row's target, ``[R]``.

    Returns:
        ``user_id`` and ``target_item`` (raw), ``history_length`` (uncut), ``rank``, and
        ``target_train_count``: how often the target occurs in the training part.
    """
    rows: HistoryRows = test.inter_feat
    histories = rows.histories
    target = histories.items[rows.target]
    counts = torch.bincount(histories.items[histories.in_training], minlength=test.item_num)
    return pd.DataFrame(
        {
            "user_id": test.id2token(test.uid_field, rows.user_id).astype(str),
            "target_item": test.id2token(test.iid_field, target).astype(str),
            "history_length": rows.history_length.numpy(),
            "rank": ranks.numpy(),
            "target_train_count": counts[target].numpy(),
        }
    )


def _facts(config: Config, data: Any, trainer: Any) -> dict[str, Any]:
    """What a row of a table must say beside its metrics."""
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "stage": trainer.stage,
        "status": "finished",
        "protocol": {
            **config["eval_args"],
            "filter_history": config["filter_history"],
            "candidates": "all items",
            "ties": "mean rank",
            "users": "at least 3 interactions",
        },
        "data_fingerprint": data.fingerprint,
        "checkpoint_from": trainer.checkpoint_from,
        "pretrain_datasets": trainer.pretrain_datasets,
        "statistics": data.statistics(),
        "epochs": trainer.epochs_run,
        "best_epoch": trainer.best_epoch,
        "tokens_per_second": trainer.tokens_per_second,
        "peak_memory_gib": _peak_memory_gib(config["device"]),
        "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "hardware": hardware(config["device"]),
        "versions": versions(),
    }


def _peak_memory_gib(device: torch.device) -> float:
    """Most memory held: of the GPU where one is used, else of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _command(
    model: str | type | None,
    dataset: str | Sequence[str] | None,
    config_files: Sequence[str | Path],
    config_dict: Mapping[str, Any] | None,
    command_line: Sequence[str],
) -> str:
    """The command line that asks for the same run."""
    named = {
        "model": model.__name__ if isinstance(model, type) else model,
        "dataset": dataset if isinstance(dataset, str) or not dataset else ",".join(dataset),
        "config_files": " ".join(map(str, config_files)),
        **(config_dict or {}),
    }
    words = [f"--{key}={value}" for key, value in named.items() if value not in (None, "")]
    return shlex.join(["python", "run_recbole.py", *words, *command_line])


class _Clock:
    """Seconds between calls."""

    def __init__(self) -> None:
        self._laps: dict[str, float] = {}
        self._begun = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Name the time since the last call."""
        now = time.perf_counter()
        self._laps[name], self._last = now - self._last, now

    def seconds(self, stages: Mapping[str, float]) -> dict[str, float]:
        """All laps in order, that of training split into its stages, and the total."""
        total = time.perf_counter() - self._begun
        laps = {"load": self._laps["load"], **stages, "evaluate": self._laps["evaluate"]}
        return {name: round(value, 3) for name, value in {**laps, "total": total}.items()}
