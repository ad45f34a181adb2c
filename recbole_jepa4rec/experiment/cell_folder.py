"""What stands in the folder of a cell: the run asked for, another one, or a part of one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from recbole_jepa4rec.experiment.finished_run import read_result
from recbole_jepa4rec.experiment.request import Cell, deciding
from recbole_jepa4rec.run_folder import RunFolder
from recbole_jepa4rec.settings import read_yaml

OUTPUT_NAME = "output.log"
"""What a run writes to standard output and standard error, in its folder's parent."""


def output_file(cell: Cell) -> Path:
    """Where the output of a run goes; beside its folder, which the run wants to itself."""
    return cell.folder.with_name(f"{cell.folder.name}.{OUTPUT_NAME}")


def finished_cells(cells: Sequence[Cell], fingerprint: str) -> list[Cell]:
    """Those of the cells whose run is finished; it must be the run asked for.

    Args:
        cells: asked for.
        fingerprint: of the data as they are now.

    Raises:
        ValueError: if a folder holds the result of other settings or other data; names both.
    """
    finished = [cell for cell in cells if _is_finished(cell)]
    for cell in finished:
        found = (read_result(cell.folder) or {})["data_fingerprint"]
        _refuse_other(cell, "data_fingerprint", found, fingerprint)
    return finished


def clear(cell: Cell) -> None:
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


def _is_finished(cell: Cell) -> bool:
    """Whether the cell's result is there.

    Raises:
        ValueError: if it is of other settings.
    """
    if read_result(cell.folder) is None:
        return False
    found = deciding(read_yaml(RunFolder(cell.folder).config_file))
    asked = cell.settings
    for key in [*asked, *found]:
        _refuse_other(cell, key, found.get(key), asked.get(key))
    return True


def _refuse_other(cell: Cell, key: str, found: object, asked: object) -> None:
    if found != asked:
        raise ValueError(
            f"{cell.folder} holds a run with {key} {found!r}, not {asked!r}; "
            "move it away or choose another --run_dir"
        )
