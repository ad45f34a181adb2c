"""What a search is asked to do: checked whole before anything starts."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base.spelling import did_you_mean
from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_entry
from recbole_jepa4rec.config.syntax import (
    deciding,
    known_keys,
    overlay,
    parse_command_line,
    parse_value,
)
from recbole_jepa4rec.data.item_files import settle_attributes
from recbole_jepa4rec.study.search.command_line import address, gpus, one_of, switch, whole
from recbole_jepa4rec.study.search.space import (
    Dimension,
    grid,
    points_of,
    random_points,
    read_space,
)

OWN = {
    "search": None,
    "algorithm": "random",
    "num_samples": "10",
    "cpus_per_trial": "1",
    "gpus_per_trial": None,
    "max_concurrent": None,
    "address": None,
    "scheduler": "asha",
    "grace_epochs": "2",
    "run_dir": None,
}
"""Keys of the search itself, and their defaults."""

ALGORITHMS = {"random": None, "grid": None, "optuna": "optuna", "hyperopt": "hyperopt"}
"""Ways to choose what is tried, and the package that each needs."""

SCHEDULERS = ("asha", "none")

PROCESSES = ("nproc", "world_size")
"""Settings that count the processes of one run."""

FIXED = {
    **dict.fromkeys(["model", "dataset", "data_path"], "is what is searched for"),
    **dict.fromkeys(["metrics", "topk", "valid_metric", "eval_args"], "decides how trials compare"),
    **dict.fromkeys(["filter_history", "benchmark_filename"], "decides how trials compare"),
    **dict.fromkeys(["repeatable", "valid_metric_bigger"], "decides how trials compare"),
    **dict.fromkeys(["seed", "reproducibility"], "is no property of a model"),
    **dict.fromkeys(["max_train_seconds"], "decides how trials compare"),
    **dict.fromkeys(["run_dir", "runs_path", "cache_dir", "checkpoint_dir"], "says where to write"),
    **dict.fromkeys(["config_files", "state", "show_progress"], "says how to run"),
    **dict.fromkeys(["gpu_id", "use_gpu", "worker"], "says how to run"),
    **dict.fromkeys([*PROCESSES, "ip", "port", "group_offset"], "says how to run"),
}
"""Settings that no search may vary, and why."""


@dataclass(frozen=True)
class Request:
    """A checked command line.

    Attributes:
        entry: the model as given, such as ``SASRec-BPR``.
        given: settings that every trial is given.
        config: their resolved settings.
        space: what varies.
        algorithm: of ``ALGORITHMS``.
        num_samples: trials in all.
        points: what each trial is given, where that is known beforehand; else empty.
        cpus: CPU cores of a trial.
        gpus: GPUs of a trial, fractions too.
        max_concurrent: trials at once, at most; ``None``: as many as fit.
        address: of a running Ray cluster, ``"auto"`` too; ``None`` starts one here.
        grace_epochs: validations before a trial may be stopped early; ``None``: never.
        folder: where the search and its trials stand.
        resume: whether to go on with what stands there.
        command: the command line in one string.
    """

    entry: str
    given: Mapping[str, Any]
    config: Config
    space: tuple[Dimension, ...]
    algorithm: str
    num_samples: int
    points: tuple[dict[str, Any], ...]
    cpus: int
    gpus: float | None
    max_concurrent: int | None
    address: str | None
    grace_epochs: int | None
    folder: Path
    resume: bool
    command: str

    def trial_config(self, point: Mapping[str, Any], folder: Path | None = None) -> Config:
        """The settings of a trial; ``config_dict`` alone, so that no other file is read."""
        place = {"run_dir": str(folder)} if folder else {}
        config = Config(self.entry, config_dict={**self.given, **point, **place})
        settle_attributes(config)
        return config

    def identity(self) -> dict[str, Any]:
        """What must be the same when a search goes on; plain data."""
        return {
            "settings": deciding(self.config.external()),
            "space": {each.key: {each.kind: list(each.values)} for each in self.space},
            "algorithm": self.algorithm,
        }


def read_request(command_line: Sequence[str]) -> Request:
    """Check a command line, the search space and every value at its ends.

    Args:
        command_line: the words after the script's name.

    Raises:
        ValueError: for anything that cannot be run; one line says what is allowed.
    """
    flags = [word for word in command_line if word == "--resume"]
    words = parse_command_line([word for word in command_line if word != "--resume"])
    resume = bool(flags) or switch("resume", words.pop("resume", "false"))
    _refuse_unknown(words)
    own = {**OWN, **{key: words[key] for key in OWN if key in words}}
    rest = {key: text for key, text in words.items() if key not in OWN}
    given = _given(rest)
    config = Config(config_dict=given)
    settle_attributes(config)
    _refuse_processes(config)
    if config["source_datasets"]:
        raise ValueError(f"dataset {config['dataset']!r}: a search takes one data set")
    entry = str(given["model"])
    file = own["search"] or _default_space(entry)
    space = read_space(file)
    _refuse_fixed(space, rest, file)
    algorithm = one_of("algorithm", own["algorithm"], ALGORITHMS)
    if package := ALGORITHMS[algorithm]:
        _refuse_absent(algorithm, package)
    count, points = _points(space, algorithm, words.get("num_samples"), config["seed"])
    request = Request(
        entry,
        given,
        config,
        space,
        algorithm,
        count,
        points,
        whole("cpus_per_trial", own["cpus_per_trial"], 1),
        gpus(own["gpus_per_trial"]),
        None if own["max_concurrent"] is None else whole("max_concurrent", own["max_concurrent"]),
        address(own["address"]),
        _grace(own),
        _folder(own["run_dir"], entry, config, space, algorithm),
        resume,
        shlex.join(["python", "run_hyper.py", *command_line]),
    )
    _try_out(request, file)
    return request


def _refuse_absent(algorithm: str, package: str) -> None:
    """Import what an algorithm needs; Ray would find out only after the data have been read."""
    try:
        import_module(package)
    except ImportError as error:
        raise ValueError(
            f"algorithm {algorithm!r} needs a package ({error}): pip install {package}"
        ) from None


def _refuse_unknown(words: Mapping[str, str]) -> None:
    known = {*OWN, "resume", *known_keys()}
    for key in words:
        if key.partition(".")[0] not in known:
            raise ValueError(f"unknown key {key!r}{did_you_mean(key, known)} on the command line")


def _given(rest: Mapping[str, str]) -> dict[str, Any]:
    """What files and command line set, later ones first."""
    layers: list[dict[str, Any]] = [
        read_yaml(file) for file in rest.get("config_files", "").split()
    ]
    layers.append({key: parse_value(key, text) for key, text in rest.items()})
    given: dict[str, Any] = {}
    for layer in layers:
        if "run_dir" in layer:
            raise ValueError("run_dir in a file is that of one run (write --run_dir=PATH)")
        whole = {key: value for key, value in layer.items() if "." not in str(key)}
        overlay(given, whole)
        given.update({key: value for key, value in layer.items() if "." in str(key)})
    given.pop("config_files", None)
    return given


def _default_space(entry: str) -> str:
    file = find_properties() / "search" / f"{find_entry(entry)[0]}.yaml"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise ValueError(f"no search space for model {entry!r} (there are: {there}; or --search=)")
    return str(file)


def _refuse_fixed(space: Sequence[Dimension], rest: Mapping[str, str], file: str) -> None:
    for each in space:
        first = each.key.partition(".")[0]
        if first in FIXED:
            raise ValueError(f"{file}: {each.key} cannot be searched: it {FIXED[first]}")
        if each.key in rest:
            raise ValueError(
                f"{each.key} is given on the command line and searched in {file}; write one of them"
            )


def _points(
    space: Sequence[Dimension], algorithm: str, asked: str | None, seed: int
) -> tuple[int, tuple[dict[str, Any], ...]]:
    """How many trials there are, and what each is given as far as that is known."""
    if algorithm == "grid":
        points = grid(space)
        if asked is not None and whole("num_samples", asked) != len(points):
            raise ValueError(f"num_samples {asked} with algorithm 'grid', which has {len(points)}")
        return len(points), tuple(points)
    count = whole("num_samples", asked or str(OWN["num_samples"]))
    limit = points_of(space)
    count = count if limit is None else min(count, limit)
    if algorithm == "random":
        return count, tuple(random_points(space, count, seed))
    return count, ()


def _try_out(request: Request, file: str) -> None:
    """Have our Config check every choice and both ends of every range.

    Raises:
        ValueError: for a value that cannot be used or a setting that the model does not read.
    """
    for each in request.space:
        for value in each.ends:
            try:
                config = request.trial_config({each.key: value})
            except ValueError as error:
                raise ValueError(f"{file}: {each.key} {value!r}: {error}") from error
        if each.key in config.unread_keys():
            raise ValueError(f"{file}: model {request.entry!r} does not read {each.key!r}")


def _folder(
    run_dir: str | None, entry: str, config: Config, space: Sequence[Dimension], algorithm: str
) -> Path:
    """``run_dir``, or one whose name depends on all that is asked for but the number of trials."""
    if run_dir:
        folder = Path(run_dir)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"run_dir {run_dir!r} is not a folder")
        return folder
    asked = [
        os.path.abspath(config["data_path"]),
        deciding(config.external()),
        [[each.key, each.kind, each.values] for each in space],
        algorithm,
    ]
    text = json.dumps(asked, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return Path(config["runs_path"], config["dataset"], entry, f"search-{digest}")


def _grace(own: Mapping[str, str | None]) -> int | None:
    scheduler = one_of("scheduler", own["scheduler"], SCHEDULERS)
    epochs = whole("grace_epochs", own["grace_epochs"])
    return epochs if scheduler == "asha" else None


def _refuse_processes(config: Config) -> None:
    """Refuse trials of several processes: Ray gives each trial one."""
    for key in PROCESSES:
        if key in config and config[key] not in (None, 1):
            raise ValueError(
                f"{key} {config[key]!r}: a trial runs in one process; several trials run at once "
                "(--max_concurrent)"
            )
