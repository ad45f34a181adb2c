"""What a search is asked to do: checked whole before anything starts.

What takes seconds to import stands inside the functions, after the words are understood.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from recbole_jepa4rec.base.yaml_files import find_properties
from recbole_jepa4rec.config.layers import Layers
from recbole_jepa4rec.config.registry import find_entry
from recbole_jepa4rec.config.run_settings import ATTRIBUTE_KEYS
from recbole_jepa4rec.config.settings import Count, must, only_if
from recbole_jepa4rec.config.syntax import arguments_of_recbole, deciding
from recbole_jepa4rec.study.search.space import (
    MOST_TRIED,
    Dimension,
    combinations,
    grid,
    points_of,
    random_points,
    read_space,
)
from recbole_jepa4rec.study.study import (
    COMPARED,
    StudyKeys,
    read_words,
    refuse_early,
    study_folder,
)

if TYPE_CHECKING:
    from recbole_jepa4rec.config.config import Config
    from recbole_jepa4rec.study.cells import Cell

PACKAGES = {"optuna": "optuna", "hyperopt": "hyperopt"}
"""What an algorithm needs beside Ray."""

PROCESSES = ("nproc", "world_size")
"""Settings that count the processes of one run."""

FIXED = {
    **dict.fromkeys(["model", "dataset", "data_path"], "is what is searched for"),
    **dict.fromkeys([*COMPARED, "max_train_seconds"], "decides how trials compare"),
    **dict.fromkeys(["seed", "reproducibility"], "is no property of a model"),
    **dict.fromkeys(["run_dir", "runs_path", "cache_dir", "checkpoint_dir"], "says where to write"),
    **dict.fromkeys(["config_files", "state", "show_progress"], "says how to run"),
    **dict.fromkeys(["gpu_id", "use_gpu", "worker"], "says how to run"),
    **dict.fromkeys([*PROCESSES, "ip", "port", "group_offset"], "says how to run"),
}
"""Settings that no search may vary, and why."""

DATA_KEYS = {*arguments_of_recbole("dataset"), *ATTRIBUTE_KEYS, "item_text_fields"}
"""Settings that change what is read of a data set."""

PER_RUN = {
    "run_dir": "name the folder of the search by --run_dir=PATH on the command line",
    "resume": "a search goes on with --resume on the command line",
}
"""Settings of one run, and what to write instead."""


def _shares_gpus(value: float | None) -> bool:
    """Ray shares one GPU among several trials, but no trial has 1.5."""
    return value is None or 0 <= value <= 1 or (value > 1 and value.is_integer())


def _names_head(value: str | None) -> bool:
    """Ray's client (``ray://``) cannot drive a search."""
    host, _, port = (value or "").rpartition(":")
    is_port = port.isascii() and port.isdigit() and int(port) < 2**16
    return value in (None, "auto") or (bool(host) and "/" not in host and is_port)


class SearchKeys(StudyKeys):
    """Keys of a search itself."""

    search: str | None = None
    """What varies: a yaml file, or one in RecBole's format; else properties/search/<model>.yaml."""
    algorithm: Literal["random", "grid", "optuna", "hyperopt"] = "random"
    """How points are chosen."""
    num_samples: Count = 10
    """Trials, at most."""
    cpus_per_trial: Count = 1
    """CPU cores of a trial."""
    gpus_per_trial: Annotated[
        float | None, only_if(_shares_gpus), must("a share of one GPU or a whole number")
    ] = None
    """GPUs of a trial, fractions too; None is one where there are any."""
    max_concurrent: Count | None = None
    """Trials at once, at most; None is as many as fit."""
    address: Annotated[
        str | None, only_if(_names_head), must("auto or HOST:PORT of a Ray cluster's head")
    ] = None
    """Of a running Ray cluster, auto too; None starts one here."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops trials early."""
    grace_epochs: Count = 2
    """Validations before a trial may be stopped early."""
    resume: bool = False
    """Go on with the search that stands in the folder."""


@dataclass(frozen=True)
class Request:
    """A checked command line; Ray copies it to the process of each trial.

    Attributes:
        keys: of the search.
        entry: the model as given, such as ``SASRec-BPR``.
        given: settings that every trial is given.
        config: their resolved settings.
        space: what varies.
        num_samples: trials in all.
        points: what each trial is given, by its name, where that is known beforehand; else empty.
        folder: where the search and its trials stand.
        command: the command line in one string.
    """

    keys: SearchKeys
    entry: str
    given: Mapping[str, Any]
    config: Config
    space: tuple[Dimension, ...]
    num_samples: int
    points: Mapping[str, dict[str, Any]]
    folder: Path
    command: str

    @property
    def metric(self) -> str:
        """What trials are compared by."""
        return str(self.config["valid_metric"]).lower()

    @property
    def grace_epochs(self) -> int | None:
        """Validations before a trial may be stopped early; ``None``: it never is."""
        return self.keys.grace_epochs if self.keys.scheduler == "asha" else None

    @property
    def data_dimensions(self) -> list[Dimension]:
        """What varies of the settings that change what is read of the data."""
        return [each for each in self.space if each.key.partition(".")[0] in DATA_KEYS]

    def data_name(self, point: Mapping[str, Any]) -> str:
        """Which of the shared data sets a trial reads."""
        return json.dumps([point[each.key] for each in self.data_dimensions], default=str)

    def trial_config(self, point: Mapping[str, Any], **more: Any) -> Config:
        """The settings of a trial; ``config_dict`` alone, so that no other file is read."""
        from recbole_jepa4rec.config.config import Config
        from recbole_jepa4rec.data.item_files import settle_attributes

        config = Config(self.entry, config_dict={**self.given, **point, **more})
        settle_attributes(config)
        return config

    def winner(self, point: Mapping[str, Any]) -> Cell:
        """The run of the best settings, which stand in ``best.yaml``."""
        from recbole_jepa4rec.study.cells import Cell

        config, folder = self.trial_config(point), self.folder / "best"
        words = {
            "model": self.entry,
            "config_files": shlex.quote(f"{folder}.yaml"),
            "run_dir": folder,
        }
        line = tuple(f"--{key}={value}" for key, value in words.items())
        return Cell(self.entry, config["seed"], folder, line, config)

    def identity(self) -> dict[str, Any]:
        """What must be the same when a search goes on; plain data."""
        return {
            "settings": deciding(self.config.external()),
            "space": {each.key: {each.kind: list(each.values)} for each in self.space},
            "algorithm": self.keys.algorithm,
        }


def read_request(command_line: Sequence[str]) -> Request:
    """Check a command line, the search space and every value at its ends.

    Args:
        command_line: the words after the script's name.

    Raises:
        ValueError: for anything that cannot be run; one line says what is allowed.
    """
    words = ["--resume=true" if word == "--resume" else word for word in command_line]
    keys, texts, given = read_words(words, SearchKeys, PER_RUN)
    refuse_early(Layers(command_line=[f"--{key}={text}" for key, text in texts.items()]))
    for key in PROCESSES:
        if given.get(key) not in (None, 1):
            raise ValueError(
                f"{key} {given[key]!r}: a trial runs in one process; several trials run at once "
                "(--max_concurrent)"
            )
    entry = str(given["model"])
    file = keys.search or _default_space(entry)
    space = read_space(file)
    _refuse_fixed(space, texts, file)
    _try_out(combinations(space), given, file)
    if package := PACKAGES.get(keys.algorithm):
        try:  # Ray would find out only after the data have been read
            import_module(package)
        except ImportError as error:
            raise ValueError(
                f"algorithm {keys.algorithm!r} needs a package ({error}): pip install {package}"
            ) from None
    from recbole_jepa4rec.config.config import Config
    from recbole_jepa4rec.data.item_files import settle_attributes

    config = Config(config_dict=given)
    config.refuse_idle()
    settle_attributes(config)
    count, points = _points(space, keys, config["seed"])
    _try_out(islice(points.values(), MOST_TRIED), given, file)
    described = [[each.key, each.kind, each.values] for each in space]
    asked = (deciding(config.external()), described, keys.algorithm)
    request = Request(
        keys,
        entry,
        given,
        config,
        space,
        count,
        points,
        study_folder(keys.run_dir, config, f"{entry}/search", *asked),
        shlex.join(["python", "run_hyper.py", *command_line]),
    )
    _refuse_unread(request, file)
    return request


def _default_space(entry: str) -> str:
    file = find_properties() / "search" / f"{find_entry(entry)[0]}.yaml"
    if not file.is_file():
        names = sorted(path.stem for path in file.parent.glob("*.yaml"))
        there = ", ".join(name for name in names if "-" not in name)  # others go by --search
        raise ValueError(f"no search space for model {entry!r} (there are: {there}; or --search=)")
    return str(file)


def _refuse_fixed(space: Sequence[Dimension], texts: Mapping[str, str], file: str) -> None:
    for each in space:
        first = each.key.partition(".")[0]
        if first in FIXED:
            raise ValueError(f"{file}: {each.key} cannot be searched: it {FIXED[first]}")
        if each.key in texts:
            raise ValueError(
                f"{each.key} is given on the command line and searched in {file}; write one of them"
            )


def _points(
    space: Sequence[Dimension], keys: SearchKeys, seed: int
) -> tuple[int, dict[str, dict[str, Any]]]:
    """How many trials there are, and what each is given as far as that is known."""
    count, limit = keys.num_samples, points_of(space)
    if keys.algorithm == "grid":
        points = grid(space)
        if "num_samples" in keys.model_fields_set and count != len(points):
            raise ValueError(f"num_samples {count} with algorithm 'grid', which has {len(points)}")
    else:
        count = count if limit is None else min(count, limit)
        if keys.algorithm != "random":
            return count, {}
        points = random_points(space, count, seed)
    return len(points), {f"{number:04d}": point for number, point in enumerate(points)}


def _try_out(points: Iterable[Mapping[str, Any]], given: Mapping[str, Any], file: str) -> None:
    """Check the settings of trials.

    Args:
        points: what the trials are given.
        given: what every trial is given.
        file: that says what varies.

    Raises:
        ValueError: for a value, or several that do not go together.
    """
    for point in points:
        if not (error := _fault({**given, **point})):
            continue
        alone = [key for key in point if _fault({**given, key: point[key]}) == error]
        named = " with ".join(f"{key} {point[key]!r}" for key in alone[:1] or point)
        raise ValueError(f"{file}: {named}: {error}")


def _fault(settings: Mapping[str, Any]) -> str:
    """What is wrong with settings; empty if nothing is."""
    try:
        Layers(config_dict=settings).refuse_early()
    except ValueError as error:
        return str(error)
    return ""


def _refuse_unread(request: Request, file: str) -> None:
    """Have our Config check what varies, each setting once.

    Raises:
        ValueError: for a value that cannot be used, a setting that the model does not read, or one
            that shapes the data and has infinitely many values.
    """
    point = {each.key: each.ends[0] for each in request.space}
    for each in request.space:
        for value in each.ends:
            try:
                config = request.trial_config({**point, each.key: value})
            except ValueError as error:
                raise ValueError(f"{file}: {each.key} {value!r}: {error}") from error
        if each.key in config.unread_keys():
            raise ValueError(f"{file}: model {request.entry!r} does not read {each.key!r}")
    for each in request.data_dimensions:
        if each.points is None:
            raise ValueError(f"{each.key} shapes the data: {each.kind} must be choice or int")
