"""What stands in the folder of a cell: the run asked for, another one, or a part of one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.config.syntax import deciding
from recbole_jepa4rec.runner.run_folder import RunFolder
from recbole_jepa4rec.study.finished_run import DamagedRunError, FinishedRun, read_run
from recbole_jepa4rec.study.request import Cell

OUTPUT_NAME = "output.log"
"""What a run writes to standard output and standard error, in its folder's parent."""


def output_file(cell: Cell) -> Path:
    """Where the output of a run goes; beside its folder, which the run wants to itself."""
    return cell.folder.with_name(f"{cell.folder.name}.{OUTPUT_NAME}")


def finished_runs(cells: Sequence[Cell], data: Any) -> dict[tuple[str, int], FinishedRun]:
    """The finished runs among the cells, by entry and seed; each must be the run asked for.

    A run of which something is damaged is not finished; a line on standard error says what.

    Args:
        cells: asked for.
        data: the data set as it is now; only its fingerprints are read.

    Raises:
        ValueError: if a folder holds the result of other settings or other data; names both.
    """
    finished = [(cell, run) for cell in cells if (run := _finished(cell))]
    for cell, run in finished:
        _refuse_other_settings(cell, run)
    for cell, run in finished:
        found = run.result["data_fingerprint"]
        _refuse_other(cell, "data_fingerprint", found, data.fingerprint)
    with_text = [(cell, run) for cell, run in finished if run.text_fingerprint is not None]
    now = _text_fingerprint(data) if with_text else None
    for cell, run in with_text:
        _refuse_other(cell, "text_fingerprint", run.text_fingerprint, now)
    return {cell.key: run for cell, run in finished}


def words_to_run(cell: Cell) -> tuple[str, ...]:
    """The command line of a run that is missing: to go on with where it ended early, or to begin.

    What an unfinished run left is removed if the run cannot go on from it.

    Raises:
        ValueError: if the folder holds something else.
    """
    place = f"--run_dir={cell.folder}"
    if _can_go_on(cell):
        return (*(word for word in cell.words if word != place), f"--resume={cell.folder}")
    _clear(cell)
    return cell.words


def _can_go_on(cell: Cell) -> bool:
    """Whether the run asked for began in the cell's folder and left a checkpoint that is whole."""
    folder = RunFolder(cell.folder)
    if not folder.is_unfinished or not folder.checkpoints.has_whole():
        return False
    try:
        return deciding(read_yaml(folder.config_file)) == cell.settings
    except ValueError:  # damaged
        return False


def _clear(cell: Cell) -> None:
    """Remove what an unfinished run left.

    Raises:
        ValueError: if the folder holds something else.
    """
    folder = cell.folder
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} is not a folder")
    if folder.is_dir():
        run = RunFolder(folder)
        if any(folder.iterdir()) and not (run.log_file.exists() or run.config_file.exists()):
            raise ValueError(f"{folder} holds files that are not of a run; move them away")
        shutil.rmtree(folder)


def _finished(cell: Cell) -> FinishedRun | None:
    """The run of a cell; ``None`` where there is none, or none that is whole."""
    if not RunFolder(cell.folder).result_file.exists():
        return None
    try:
        return read_run(cell.folder)
    except DamagedRunError as error:
        reason = " ".join(str(error).split())
        print(f"{cell.entry}, seed {cell.seed}, is run again: {reason}", file=sys.stderr)
        return None


def _text_fingerprint(data: Any) -> str | None:
    """Of the item text as it is now; ``None`` if there is none any more."""
    try:
        return data.text_fingerprint
    except ValueError:
        return None


def _refuse_other_settings(cell: Cell, run: FinishedRun) -> None:
    found, asked = deciding(run.settings), cell.settings
    for key in [*asked, *found]:
        _refuse_other(cell, key, found.get(key), asked.get(key))


def _refuse_other(cell: Cell, key: str, found: object, asked: object) -> None:
    if found != asked:
        raise ValueError(
            f"{cell.folder} holds a run with {key} {found!r}, not {asked!r}; "
            "move it away or choose another --run_dir"
        )
