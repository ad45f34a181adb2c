"""Cells of a study: runs that are asked for, and what stands in their folders already."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base.files import stranger
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.syntax import deciding, first_difference
from recbole_jepa4rec.runner.inputs import input_digests, refuse_other_inputs
from recbole_jepa4rec.runner.run_folder import LAYOUT, LOGS, RunFolder
from recbole_jepa4rec.study.finished_run import DamagedRunError, FinishedRun, read_run

OUTPUT_NAME = "output.log"
"""What a run writes to standard output and standard error, in its folder's parent."""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        entry: the row of the tables that it belongs to, such as ``SASRec-BPR``.
        seed: of the run.
        folder: where it writes.
        words: the command line of the run.
        config: its resolved settings.
        before: settings of runs that it takes the place of, if one of them stands in the folder.
    """

    entry: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    config: Config
    before: tuple[Mapping[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.entry}, seed {self.seed}"

    @property
    def key(self) -> tuple[str, int]:
        """Entry and seed, which tell it from every other cell."""
        return self.entry, self.seed

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the result: ``config.yaml`` of the run, less ``WHEREABOUTS``."""
        return self.config.deciding()

    @property
    def output_file(self) -> Path:
        """Where its output goes; beside its folder, which the run wants to itself."""
        return self.folder.with_name(f"{self.folder.name}.{OUTPUT_NAME}")

    def finished_run(self) -> FinishedRun | None:
        """The run in its folder, whatever its settings; ``None`` where there is none.

        A run of which something is damaged is none; a line on standard error says what.
        """
        if not RunFolder(self.folder).result_file.exists():
            return None
        try:
            return read_run(self.folder)
        except DamagedRunError as error:
            reason = " ".join(str(error).split())
            print(f"{self}, is run again: {reason}", file=sys.stderr)
            return None

    def run_asked_for(self) -> FinishedRun | None:
        """The finished run of these settings; ``None`` where there is none, or another one."""
        run = self.finished_run()
        return run if run and deciding(run.settings) == self.settings else None

    def words_to_run(self) -> tuple[str, ...]:
        """The command line of a run that is missing: to go on where it ended early, or to begin.

        What this run left is removed if it cannot go on from it.

        Raises:
            ValueError: as ``refuse_others``.
        """
        place = f"--run_dir={self.folder}"
        if self._can_go_on():
            return (*(word for word in self.words if word != place), f"--resume={self.folder}")
        self.refuse_others()
        if RunFolder(self.folder).config_file.exists():  # else there is nothing but a log
            shutil.rmtree(self.folder)
        return self.words

    def refuse_others(self) -> None:
        """Refuse a folder that holds anything but what this run left.

        Raises:
            ValueError: names what it is.
        """
        folder, run = self.folder, RunFolder(self.folder)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ValueError(f"{folder} is not a folder")
        if not folder.is_dir():
            return
        if found := stranger(folder, LAYOUT):
            raise ValueError(f"{found} is not of a run; move it away")
        there = deciding(run.settings())
        if there in self.before:
            return
        if there:
            self.refuse_difference(there, self.settings)
        elif found := stranger(folder, LOGS):
            raise ValueError(
                f"{found} is of a run whose settings no config.yaml tells; move it away or choose "
                "another --run_dir"
            )

    def refuse_difference(self, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """Refuse a run in the folder that is not the one asked for.

        Raises:
            ValueError: names the first key under which it differs.
        """
        if different := first_difference(found, asked):
            key, old, new = different
            raise ValueError(
                f"{self.folder} holds a run with {key} {old!r}, not {new!r}; "
                "move it away or choose another --run_dir"
            )

    def _can_go_on(self) -> bool:
        """Whether this run began in its folder and left a checkpoint that is whole."""
        run = RunFolder(self.folder)
        is_asked = run.is_unfinished and deciding(run.settings()) == self.settings
        return is_asked and run.checkpoints.has_whole()


def finished_runs(cells: Sequence[Cell], data: Any) -> dict[tuple[str, int], FinishedRun]:
    """The finished runs among the cells, by entry and seed; each must be the run asked for.

    Args:
        cells: asked for.
        data: the data set as it is now; only its fingerprints are read.

    Raises:
        ValueError: if a folder holds the result of other settings, of other data or of other
            contents of what settings name; names both.
    """
    finished = [(cell, run) for cell in cells if (run := cell.finished_run())]
    for cell, run in finished:
        cell.refuse_difference(deciding(run.settings), cell.settings)
    for cell, run in finished:
        found = {"data_fingerprint": run.result["data_fingerprint"]}
        asked = {"data_fingerprint": data.fingerprint}
        if run.result["text_fingerprint"] is not None:
            found["text_fingerprint"] = run.result["text_fingerprint"]
            asked["text_fingerprint"] = _text_fingerprint(data)
        cell.refuse_difference(found, asked)
        inputs = run.result.get("inputs", {})
        refuse_other_inputs(cell.folder, inputs, input_digests(cell.config), cell.config)
    return {cell.key: run for cell, run in finished}


def _text_fingerprint(data: Any) -> str | None:
    """Of the item text as it is now; ``None`` if there is none any more."""
    try:
        return data.text_fingerprint
    except ValueError:
        return None
