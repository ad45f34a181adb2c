"""The best settings of a search, trained once more by the normal runner and tested."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from recbole_jepa4rec.base.yaml_files import Loader, read_yaml
from recbole_jepa4rec.config.syntax import deciding
from recbole_jepa4rec.runner.quick_start import run
from recbole_jepa4rec.runner.run_folder import RunFolder
from recbole_jepa4rec.study.search.board import BEST_NAME, Board
from recbole_jepa4rec.study.search.record import Record
from recbole_jepa4rec.study.search.request import Request


def run_winner(request: Request, board: Board) -> Path:
    """Run the best settings in the folder ``best``, unless that is done.

    Returns:
        The path of ``result.json``.

    Raises:
        RuntimeError: if no trial finished.
    """
    if not (best := board.best):
        errors = [each.error for each in board.records.values() if each.error]
        raise RuntimeError(f"no trial finished; the last error: {errors[-1] if errors else None}")
    folder = RunFolder(request.folder / "best")
    if metrics_on_test(request, best) is None:
        shutil.rmtree(folder.path, ignore_errors=True)
        print(f"trial {best.name} is best; it is trained again and tested", file=sys.stderr)
        run(
            config_files=[request.folder / BEST_NAME],
            config_dict={"model": request.entry, "run_dir": str(folder.path)},
        )
    return folder.result_file


def metrics_on_test(request: Request, best: Record) -> dict[str, Any] | None:
    """What the winner reached on the test split; ``None`` while these settings are not tested."""
    folder = RunFolder(request.folder / "best")
    try:
        result = json.loads(folder.result_file.read_text(encoding="utf-8"))
        found = read_yaml(folder.config_file)
    except (OSError, ValueError):
        return None
    config = request.trial_config(best.point)
    asked = yaml.load(yaml.safe_dump(config.external()), Loader)
    return result.get("test") if deciding(found) == deciding(asked) else None
