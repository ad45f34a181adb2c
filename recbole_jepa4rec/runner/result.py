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
from pydantic import ValidationError
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.data.item_files import reads_text
from recbole_jepa4rec.data.split_files import split_title
from recbole_jepa4rec.evaluation.drift import Drift
from recbole_jepa4rec.model.base import Offer
from recbole_jepa4rec.runner.doctor import hardware, versions
from recbole_jepa4rec.training.state import TrainingState, Validation


class Statistics(TypedDict):
    """What occurs in a data set."""

    users: int
    items: int
    interactions: int
    average_length: float
    density: float


class Protocol(TypedDict):
    """How the evaluation was made; ``split`` is a name where the split stands in files.

    The last two are left out where they are as usual: all is trained on, and no word is revealed.
    """

    split: Any
    order: str
    group_by: str
    mode: Any
    filter_history: bool
    candidates: str
    ties: str
    users: str
    train_fraction: NotRequired[float]
    reveal_ratio: NotRequired[float]


class Seconds(TypedDict):
    """Where the time went; ``total`` counts earlier starts of the run as well."""

    load: float
    pretrain: float
    finetune: float
    evaluate: float
    total: float


class Result(TypedDict):
    """What ``result.json`` holds.

    Attributes:
        label: what tables call the run.
        model: its name in RecBole's sense.
        dataset: name, or several joined by ``+``.
        seed: of every random number.
        stage: that was trained last.
        status: ``"finished"``.
        protocol: of the evaluation.
        data_fingerprint: of the interactions.
        text_fingerprint: of the item text that the model read; ``None`` if it reads none.
        inputs: digest of what each setting named that the model read beside its data, by key.
        checkpoint_from: the weights that training started from, if any.
        pretrain_datasets: what the weights were pre-trained on.
        statistics: of the data set.
        epochs: that were begun, over all stages.
        best_epoch: whose weights were tested; ``None`` without training.
        vectors: of the items at that epoch, how far they differ, see ``training/collapse.py``;
            ``None`` for a model without.
        learning_curve: every validation.
        tokens_per_second: of training, for a model that reads tokens.
        peak_memory_gib: the most memory held.
        parameters: that are trained.
        hardware: the machine.
        versions: of the packages that decide results.
        valid: metrics of the best epoch, means over users.
        test: the same on the test split.
        drift: of rollouts, see ``evaluation/drift.py``; left out where none is measured.
        seconds: where the time went.
        starts: of the run, resumptions counted.
        command: that began the run.
    """

    label: str
    model: str
    dataset: str
    seed: int
    stage: str
    status: str
    protocol: Protocol
    data_fingerprint: str
    text_fingerprint: str | None
    inputs: NotRequired[dict[str, str]]
    checkpoint_from: str | None
    pretrain_datasets: list[str]
    statistics: Statistics
    epochs: int
    best_epoch: int | None
    vectors: NotRequired[dict[str, float] | None]
    learning_curve: list[Validation]
    tokens_per_second: float | None
    peak_memory_gib: float
    parameters: int
    hardware: dict[str, Any]
    versions: dict[str, Any]
    valid: dict[str, float]
    test: dict[str, float]
    drift: NotRequired[Drift]
    seconds: Seconds
    starts: int
    command: str


def misfit(error: ValidationError) -> str:
    """The first part of a value that does not fit its declaration, with dots, and what is wrong."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(map(str, fault["loc"])) or "it"
    if fault["type"] == "missing":
        return f"{name} is missing"
    wanted = {"dict_type": ", not a mapping", "list_type": ", not a list"}
    return f"{name} is {fault['input']!r}{wanted.get(fault['type'], '')}"


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
    counts = torch.bincount(histories.items[histories.in_training_part], minlength=test.item_num)
    return pd.DataFrame(
        {
            "user_id": test.id2token(test.uid_field, rows.user_id).astype(str),
            "target_item": test.id2token(test.iid_field, target).astype(str),
            "history_length": rows.history_length.numpy(),
            "rank": ranks.numpy(),
            "target_train_count": counts[target].numpy(),
        }
    )


def describe(
    config: Config,
    data: Any,
    offer: Offer,
    state: TrainingState,
    stage: str,
    valid: dict[str, float],
    test: dict[str, float],
    clock: Clock,
    identity: Mapping[str, Any],
    drift: Drift | None = None,
) -> Result:
    """What a row of a table must say, and its metrics.

    Args:
        config: settings of the run.
        data: the whole data set.
        offer: what the trained model offers.
        state: of the training.
        stage: that the run has been.
        valid: metrics of the best epoch.
        test: its metrics on the test split.
        clock: that has counted the run's seconds.
        identity: the command that began the run, its starts and its inputs.
        drift: of its rollouts, if that is measured.
    """
    result: Result = {
        "label": offer.label,
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "stage": stage,
        "status": "finished",
        "protocol": _protocol(config, data),
        "data_fingerprint": data.fingerprint,
        "text_fingerprint": data.text_fingerprint if reads_text(config) else None,
        "inputs": identity["inputs"],
        "checkpoint_from": state.checkpoint_from,
        "pretrain_datasets": state.pretrain_datasets,
        "statistics": data.statistics(),
        "epochs": state.epochs_run,
        "best_epoch": state.best_epoch,
        "vectors": state.vectors,
        "learning_curve": state.learning_curve,
        "tokens_per_second": state.tokens_per_second,
        "peak_memory_gib": _peak_memory_gib(config["device"]),
        "parameters": sum(p.numel() for p in offer.net.parameters() if p.requires_grad),
        "hardware": hardware(config["device"]),
        "versions": versions(),
        "valid": valid,
        "test": test,
        "seconds": clock.seconds(state.stage_seconds),
        "starts": identity["starts"],
        "command": identity["command"],
    }
    if drift is not None:
        result["drift"] = drift
    return result


def _protocol(config: Config, data: Any) -> Protocol:
    """How the evaluation was made; of a split in files, which one it is."""
    arguments = config["eval_args"]
    protocol: Protocol = {
        "split": arguments["split"],
        "order": arguments["order"],
        "group_by": arguments["group_by"],
        "mode": arguments["mode"],
        "filter_history": config["filter_history"],
        "candidates": "all items",
        "ties": "mean rank",
        "users": "at least 3 interactions",
    }
    if config["train_fraction"] != 1:
        protocol["train_fraction"] = config["train_fraction"]
    if config["reveal_ratio"]:
        protocol["reveal_ratio"] = config["reveal_ratio"]
    if data.split_paths:
        stats_file = data.split_paths[0].with_name(f"{data.dataset_name}.stats.json")
        protocol["split"] = split_title(config["benchmark_filename"], stats_file, data.fingerprint)
        protocol["users"] = "last row of each in the part's file"
    return protocol


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
        "config_files": shlex.join(map(str, config_files)),
        **(config_dict or {}),
    }
    words = [f"--{key}={value}" for key, value in named.items() if value not in (None, "")]
    return shlex.join(["python", "run_recbole.py", *words, *command_line])


class Clock:
    """Seconds between calls."""

    def __init__(self) -> None:
        self._laps: dict[str, float] = {}
        self._begun = self._last = time.perf_counter()

    def lap(self, name: str) -> float:
        """Add the seconds since the last call to those of that name; returns them."""
        before, self._last = self._last, time.perf_counter()
        seconds = self._last - before
        self._laps[name] = self._laps.get(name, 0.0) + seconds
        return seconds

    def add(self, seconds: float) -> None:
        """Count what an earlier start of the run took."""
        self._begun -= seconds

    def total(self) -> float:
        """Seconds since the clock was made, and those that were added."""
        return time.perf_counter() - self._begun

    def seconds(self, stages: Mapping[str, float]) -> Seconds:
        """The laps in order, that of training split into its stages, and the total."""
        return {
            "load": round(self._laps["load"], 3),
            "pretrain": round(stages["pretrain"], 3),
            "finetune": round(stages["finetune"], 3),
            "evaluate": round(self._laps["evaluate"], 3),
            "total": round(self.total(), 3),
        }
