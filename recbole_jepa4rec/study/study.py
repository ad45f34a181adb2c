"""What every study shares: the words that ask for it, its folder, and the board of what ended."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ConfigDict

from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.config.layers import Layers
from recbole_jepa4rec.config.settings import Settings
from recbole_jepa4rec.config.syntax import (
    overlay,
    parse_command_line,
    parse_value,
    refuse_unknown,
    split_files,
)

if TYPE_CHECKING:
    from recbole_jepa4rec.config.config import Config

PATIENCE = 60
"""Seconds to wait for runs of an earlier, killed study to end."""

COMPARED = (
    *("metrics", "topk", "valid_metric", "eval_args", "filter_history", "benchmark_filename"),
    *("repeatable", "valid_metric_bigger", "train_fraction", "reveal_ratio"),
)
"""Settings that decide how runs compare, so that all of a study have the same."""

Key = TypeVar("Key")
End = TypeVar("End")
Own = TypeVar("Own", bound="StudyKeys")


class StudyKeys(Settings):
    """Keys of a study itself, read from the texts of a command line."""

    model_config = ConfigDict(strict=False)

    run_dir: str | None = None
    """Folder of the study; else one whose name depends on all that is asked for."""


def read_words(
    command_line: Sequence[str], keys: type[Own], per_run: Mapping[str, str]
) -> tuple[Own, dict[str, str], dict[str, Any]]:
    """Understand a command line.

    Args:
        command_line: the words after the script's name.
        keys: of the study.
        per_run: settings that differ from run to run, and what to write instead.

    Returns:
        The study's own keys; the settings of every run as texts; and as values, those of files
        included, later ones over earlier ones.

    Raises:
        ValueError: for a key or a value that is not allowed; one line says what is.
    """
    words = parse_command_line(command_line)
    refuse_unknown(words, "on the command line", also=keys.model_fields)
    own = {key: words.pop(key) for key in keys.model_fields if key in words}
    files = split_files(words.get("config_files", ""))
    layers = {f"in {file}": read_yaml(file) for file in files}
    layers["on the command line"] = {key: parse_value(key, text) for key, text in words.items()}
    given: dict[str, Any] = {}
    for where, layer in layers.items():
        for key in per_run:
            if key in layer:
                raise ValueError(f"key {key!r} {where} differs from run to run ({per_run[key]})")
        refuse_unknown(layer, where)
        overlay(given, {key: value for key, value in layer.items() if "." not in str(key)})
        given |= {key: value for key, value in layer.items() if "." in str(key)}
    given.pop("config_files", None)
    return keys.of(own), words, given


def refuse_early(layers: Layers) -> None:
    """Refuse what RecBole is not needed to refuse, and several data sets.

    Raises:
        ValueError: as ``Layers.refuse_early``.
    """
    if len(layers.sources) > 1:
        names = ",".join(layers.sources)
        raise ValueError(f"dataset {names!r}: allowed here is one data set")
    layers.refuse_early()


def study_folder(run_dir: str | None, config: Config, name: str, *asked: Any) -> Path:
    """``run_dir``, or a folder that the same study finds again.

    Args:
        run_dir: as given.
        config: settings of a run.
        name: that the folder's begins with; it ends in a digest of what is asked for.
        asked: what tells the study from others; the place of the data does so as well.

    Raises:
        ValueError: if ``run_dir`` is a file.
    """
    if run_dir is None:
        everything = [os.path.abspath(config["data_path"]), *asked]
        text = json.dumps(everything, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return Path(config["runs_path"], config["dataset"], f"{name}-{digest}")
    if Path(run_dir).exists() and not Path(run_dir).is_dir():
        raise ValueError(f"run_dir {run_dir!r} is not a folder")
    return Path(run_dir)


def refuse_foreign(folder: Path, names: Iterable[str], proof: str) -> None:
    """Refuse a folder in which a study would write over files that no study has written.

    Args:
        folder: of the study, there or not.
        names: of what it writes.
        proof: the file that a study writes first.

    Raises:
        ValueError: names the first such file.
    """
    if (folder / proof).exists():
        return
    for name in names:
        if os.path.lexists(folder / name):
            raise ValueError(
                f"run_dir {str(folder)!r} holds {name}, which this command has not written there; "
                "allowed: a new or empty folder"
            )


@dataclass
class Board(Generic[Key, End]):
    """What of a study has ended; at each end a line is said and every output written again.

    Attributes:
        ended: by name how each ended; first those of an earlier start.
        asked: how many there are in all.
        outputs: writes them, from all that has ended.
    """

    ended: dict[Key, End]
    asked: int
    outputs: Callable[[Mapping[Key, End]], None]

    def __post_init__(self) -> None:
        self._before, self._began = len(self.ended), time.monotonic()

    def write(self) -> None:
        """Write every output.

        Raises:
            OSError: if a file cannot be written.
        """
        self.outputs(self.ended)

    def end(self, name: Key, how: End, line: str) -> None:
        """Take in how something ended, say so by a line, and write every output.

        Raises:
            OSError: if a file cannot be written.
        """
        self.ended[name] = how
        print(f"{line}; {self._left()}", file=sys.stderr, flush=True)
        self.write()

    def _left(self) -> str:
        """How much is left, and how long that takes if all goes on as it went so far."""
        left, here = self.asked - len(self.ended), len(self.ended) - self._before
        if left <= 0:
            return "none left"
        seconds = (time.monotonic() - self._began) / here * left
        minutes = round(seconds / 60)
        if minutes < 2:
            return f"{left} left, about {seconds:.0f} s"
        takes = f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        return f"{left} left, about {takes}"
