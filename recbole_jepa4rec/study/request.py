"""What a comparison is asked to run: checked whole before anything starts."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base.spelling import did_you_mean
from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.syntax import deciding, known_keys, parse_command_line, parse_value
from recbole_jepa4rec.study.cells import Cell

OWN = ("model_list", "seeds", "jobs", "reference", "run_dir")
"""Keys of the comparison itself."""

PER_RUN = {
    "model": "name the models by --model_list=A,B",
    "seed": "name the seeds by --seeds=2020,2021",
    "run_dir": "name the folder of the comparison by --run_dir=PATH on the command line",
    "resume": "the same command again goes on where the comparison ended",
}
"""Keys that differ from run to run, and what to write instead."""

MOST_SEED = 2**32 - 1
"""NumPy takes no greater one."""

MOST_DIGITS = 18


@dataclass(frozen=True)
class Request:
    """A checked command line.

    Attributes:
        entries: models in the order of the list.
        seeds: in the order given.
        cells: every entry with every seed, seed by seed.
        reference: the entry that the others are compared with.
        jobs: runs at once.
        folder: where the comparison and its runs stand.
        given: settings that every run is given.
        command: the command line in one string.
    """

    entries: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    reference: str
    jobs: int
    folder: Path
    given: Mapping[str, Any]
    command: str


def read_request(command_line: Sequence[str]) -> Request:
    """Check a command line and build the settings of every run.

    Args:
        command_line: the words after the script's name.

    Raises:
        ValueError: for anything that cannot be run; one line says what is allowed.
    """
    words = parse_command_line(command_line)
    _refuse_unknown(words)
    models = words.get("model_list", "")
    entries = _names("model_list", models, "A,B,C")
    _refuse_twice("model_list", models, entries)
    seeds = _seeds(words.get("seeds", "2020"))
    jobs = _whole("jobs", words.get("jobs", "1"), 1)
    reference = words.get("reference", "JEPA4Rec" if "JEPA4Rec" in entries else entries[0])
    if reference not in entries:
        allowed = ", ".join(entries)
        raise ValueError(f"reference {reference!r} is not in model_list (allowed: {allowed})")
    rest = {key: text for key, text in words.items() if key not in OWN}
    _refuse_per_run(rest)
    cells = _cells(entries, seeds, rest, words.get("run_dir"))
    return Request(
        entries,
        seeds,
        cells,
        reference,
        jobs,
        cells[0].folder.parent.parent,
        _given(rest),
        shlex.join(["python", "run_recbole_group.py", *command_line]),
    )


def _refuse_unknown(words: Mapping[str, str]) -> None:
    known = {*OWN, *known_keys()}
    for key in words:
        if key.partition(".")[0] not in known:
            raise ValueError(f"unknown key {key!r}{did_you_mean(key, known)} on the command line")


def _names(key: str, text: str, example: str) -> tuple[str, ...]:
    """The parts of a list written with commas."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError(f"{key} {text!r} has no name (write --{key}={example})")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    names = _names("seeds", text, "2020,2021")
    seeds = tuple(_whole("seeds", name, 0, MOST_SEED) for name in names)
    _refuse_twice("seeds", text, seeds)
    return seeds


def _refuse_twice(key: str, text: str, values: Sequence[object]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{key} {text!r} names {value!r} twice")


def _whole(key: str, text: str, least: int, most: int | None = None) -> int:
    digits = text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
    if not digits or int(text) < least or (most is not None and int(text) > most):
        bound = "" if most is None else f" to {most}"
        raise ValueError(f"{key} {text!r} must be a whole number from {least}{bound}")
    return int(text)


def _refuse_per_run(rest: Mapping[str, str]) -> None:
    """Refuse keys of single runs, on the command line or in a file."""
    layers = {"on the command line": [*rest]}
    for file in rest.get("config_files", "").split():
        layers[f"in {file}"] = [*map(str, read_yaml(file))]
    for where, keys in layers.items():
        for key in PER_RUN:
            if key in keys:
                raise ValueError(f"key {key!r} {where} differs from run to run ({PER_RUN[key]})")


def _cells(
    entries: Sequence[str], seeds: Sequence[int], rest: Mapping[str, str], run_dir: str | None
) -> tuple[Cell, ...]:
    """Every run; a model that stands in the list under two names is refused."""
    plan = []
    for seed in seeds:
        for entry in entries:
            named = {"model": entry, "seed": str(seed), **rest}
            words = [f"--{key}={text}" for key, text in named.items()]
            plan.append((entry, seed, words, Config(command_line=words)))
    _refuse_equal(plan[: len(entries)])
    config = plan[0][3]
    if config["source_datasets"]:
        names = ",".join(config["source_datasets"])
        raise ValueError(f"dataset {names!r}: a comparison takes one data set")
    folder = Path(run_dir) if run_dir else _default_folder(config, plan)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run_dir {str(folder)!r} is not a folder")
    cells = []
    for entry, seed, words, config in plan:
        place = folder / entry / f"seed-{seed}"
        cells.append(Cell(entry, seed, place, (*words, f"--run_dir={place}"), config))
    return tuple(cells)


def _refuse_equal(plan: Sequence[tuple[str, int, list[str], Config]]) -> None:
    seen: dict[str, str] = {}
    for entry, _, _, config in plan:
        key = json.dumps(config.external(), sort_keys=True, default=str)
        if key in seen:
            raise ValueError(f"model_list names {seen[key]!r} and {entry!r}, which are the same")
        seen[key] = entry


def _default_folder(config: Config, plan: Sequence[tuple[str, int, list[str], Config]]) -> Path:
    """A folder whose name depends on all that is asked for, so that asking again finds it."""
    asked = [[entry, deciding(config.external())] for entry, _, _, config in plan]
    text = json.dumps([os.path.abspath(config["data_path"]), asked], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return Path(config["runs_path"], config["dataset"], f"group-{digest}")


def _given(rest: Mapping[str, str]) -> dict[str, Any]:
    """What files and command line set for every run."""
    files = rest.get("config_files", "").split()
    words = {key: parse_value(key, text) for key, text in rest.items()}
    given = {key: value for file in files for key, value in read_yaml(file).items()} | words
    return {key: value for key, value in given.items() if key not in ("config_files", "dataset")}
