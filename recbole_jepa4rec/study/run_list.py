"""A list of finished runs with what they measured, newest first: as text, or as a page.

Of each run ``result.json`` alone is read, so that thousands are listed in seconds.
"""

# What takes seconds to import stands inside the functions, after the words are understood.

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_jepa4rec.base.command import Parser, did_you_mean, run_command, say_all, say_last
from recbole_jepa4rec.base.files import RESULT_NAME, atomic_write

if TYPE_CHECKING:
    from recbole_jepa4rec.runner.result import Result

SPLITS = ("test", "valid")

SHOWN = 4
"""Metrics of a line of text unless others are asked for; the page has all."""


@dataclass(frozen=True)
class Listed:
    """A run of the list.

    Attributes:
        folder: where it stands.
        result: of ``result.json``.
        ended: when that was written, in seconds.
    """

    folder: Path
    result: Result
    ended: float

    @property
    def when(self) -> str:
        """``2026-01-31 12:00``, in local time."""
        return datetime.fromtimestamp(self.ended).strftime("%Y-%m-%d %H:%M")

    def is_of(self, dataset: str | None, model: str | None) -> bool:
        """Whether it is of a data set and of a model, which a label may name as well."""
        of_model = model in (None, self.result["model"], self.result["label"].partition(" (")[0])
        return of_model and dataset in (None, self.result["dataset"])


def main(words: Sequence[str]) -> int:
    """Print finished runs with what they measured, or write their page; returns the exit status.

    Args:
        words: of the command line, after ``runs``.
    """
    about = "List finished runs with what they measured, newest first."
    parser = Parser(prog="recbole-jepa4rec runs", description=about)
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("runs")], help="folders (default: runs)"
    )
    parser.add_argument("--dataset", help="of this data set alone")
    parser.add_argument("--model", help="of this model alone")
    parser.add_argument("--metrics", help="with commas: ndcg@10,recall@10 (text alone)")
    parser.add_argument("--split", choices=SPLITS, help="whose metrics (default: test; text alone)")
    parser.add_argument("--out", type=Path, help="a page to write: runs.html")
    return run_command(lambda: _list(**vars(parser.parse_args(words))))


def _list(
    paths: Sequence[Path],
    dataset: str | None = None,
    model: str | None = None,
    metrics: str | None = None,
    split: str = SPLITS[0],
    out: Path | None = None,
) -> None:
    runs = newest_first(paths)
    kept = [run for run in runs if run.is_of(dataset, model)]
    if not kept:
        _refuse_filter(runs, dataset, model)
    if out:
        _write_page(kept, out)
        say_last(out)
    else:
        say_all(as_text(kept, split, metrics.lower().split(",") if metrics else None))


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Folders of finished runs at or below paths, in their order, each once.

    Raises:
        ValueError: if there is none below one of them.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder; allowed: run folders, or one comparison.json")
        here = sorted(Path(at) for at, _, files in os.walk(path) if RESULT_NAME in files)
        if not here:
            raise ValueError(f"{path} has no finished run: no {RESULT_NAME} stands in or below it")
        found |= {folder.resolve(): folder for folder in here}
    return [*found.values()]


def newest_first(paths: Sequence[Path]) -> list[Listed]:
    """Finished runs in or below folders; of one that cannot be read a line says why.

    Raises:
        ValueError: if there is no run below one of them.
    """
    folders = run_folders(paths)

    from recbole_jepa4rec.study.finished_run import read_result

    runs = []
    for folder in folders:
        file = folder / RESULT_NAME
        try:
            runs.append(Listed(folder, read_result(file), file.stat().st_mtime))
        except ValueError as error:
            print(f"not listed: {error}", file=sys.stderr)
    return sorted(runs, key=lambda run: run.ended, reverse=True)


def as_text(runs: Sequence[Listed], split: str, asked: Sequence[str] | None = None) -> str:
    """The list, data set by data set; two lines a run: what it measured, and its folder.

    Args:
        runs: newest first.
        split: ``test`` or ``valid``.
        asked: metrics; ``SHOWN`` of the newest run's by default.

    Raises:
        ValueError: for a metric that no run has.
    """
    from recbole_jepa4rec.study.wording import number

    lines: list[str] = []
    for dataset in dict.fromkeys(run.result["dataset"] for run in runs):
        of_data = [run for run in runs if run.result["dataset"] == dataset]
        known = _metrics(of_data)
        for metric in asked or ():
            if metric not in _metrics(runs):
                hint = did_you_mean(metric, known)
                raise ValueError(f"metric {metric!r} is in no run{hint}; allowed: {known}")
        metrics = asked or known[:SHOWN]
        lines += [
            "",
            f"{dataset}, {split}",
            "  ".join(["ended".ljust(16), *metrics, "seed", "model"]),
        ]
        for run in of_data:
            values = run.result[split]  # type: ignore[literal-required]
            cells = [number(values.get(key)).rjust(len(key)) for key in metrics]
            model, opens, kind = run.result["label"].partition(" (")
            lines.append("  ".join([run.when, *cells, f"{run.result['seed']:<4}", model]))
            lines.append(f"    {run.folder}{opens}{kind}")
    return "\n".join(lines[1:])


def _metrics(runs: Iterable[Listed]) -> list[str]:
    return [*dict.fromkeys(key for run in runs for key in run.result["test"])]


def _refuse_filter(runs: Sequence[Listed], dataset: str | None, model: str | None) -> None:
    asked = {"dataset": dataset, "model": model}
    said = ", ".join(f"--{key}={value}" for key, value in asked.items() if value is not None)
    has = sorted({f"{run.result['model']} on {run.result['dataset']}" for run in runs})
    raise ValueError(f"no run has {said}; there are {', '.join(has) or 'none that can be read'}")


def _write_page(runs: Sequence[Listed], file: Path) -> None:
    from recbole_jepa4rec.study.report import page

    file.parent.mkdir(parents=True, exist_ok=True)
    links = [os.path.relpath(run.folder.resolve(), file.parent.resolve()) for run in runs]
    view = {"runs": [*zip(runs, links, strict=True)], "metrics": _metrics(runs)}
    with atomic_write(file, "w") as written:
        written.write(page("runs.html", [], view))
