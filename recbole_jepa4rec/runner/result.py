"""What a result says: the facts of a run, and each user's rank."""

from __future__ import annotations

import resource
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import row_label
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.data.item_files import reads_text
from recbole_jepa4rec.data.split_files import split_title
from recbole_jepa4rec.runner.doctor import hardware, versions


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


def facts(config: Config, data: Any, trainer: Any) -> dict[str, Any]:
    """What a row of a table must say beside its metrics.

    Args:
        config: settings of the run.
        data: the whole data set.
        trainer: after training.
    """
    return {
        "label": label(config, trainer.model),
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "stage": trainer.stage,
        "status": "finished",
        "protocol": _protocol(config, data),
        "data_fingerprint": data.fingerprint,
        "text_fingerprint": data.text_fingerprint if reads_text(config) else None,
        "checkpoint_from": trainer.checkpoint_from,
        "pretrain_datasets": trainer.pretrain_datasets,
        "statistics": data.statistics(),
        "epochs": trainer.epochs_run,
        "best_epoch": trainer.best_epoch,
        "learning_curve": trainer.learning_curve,
        "tokens_per_second": trainer.tokens_per_second,
        "peak_memory_gib": _peak_memory_gib(config["device"]),
        "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "hardware": hardware(config["device"]),
        "versions": versions(),
    }


def _protocol(config: Config, data: Any) -> dict[str, Any]:
    """How the evaluation was made; of a split in files, which one it is."""
    protocol = {
        **config["eval_args"],
        "filter_history": config["filter_history"],
        "candidates": "all items",
        "ties": "mean rank",
        "users": "at least 3 interactions",
    }
    if data.split_paths:
        stats_file = data.split_paths[0].with_name(f"{data.dataset_name}.stats.json")
        split = split_title(config["benchmark_filename"], stats_file, data.fingerprint)
        protocol |= {"split": split, "users": "last row of each in the part's file"}
    return protocol


def label(config: Config, model: nn.Module) -> str:
    """What the row is called: the model's own ``label``, else ``row_label``."""
    return getattr(model, "label", None) or row_label(config["model"], config["loss_type"])


def _peak_memory_gib(device: torch.device) -> float:
    """Most memory held: of the GPU where one is used, else of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def asking_command(
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


class Clock:
    """Seconds between calls."""

    def __init__(self) -> None:
        self._laps: dict[str, float] = {}
        self._begun = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Name the time since the last call."""
        now = time.perf_counter()
        self._laps[name], self._last = now - self._last, now

    def add(self, seconds: float) -> None:
        """Count what an earlier start of the run took."""
        self._begun -= seconds

    def total(self) -> float:
        """Seconds since the clock was made, and those that were added."""
        return time.perf_counter() - self._begun

    def seconds(self, stages: Mapping[str, float]) -> dict[str, float]:
        """All laps in order, that of training split into its stages, and the total."""
        laps = {"load": self._laps["load"], **stages, "evaluate": self._laps["evaluate"]}
        return {name: round(value, 3) for name, value in {**laps, "total": self.total()}.items()}
