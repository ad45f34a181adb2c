"""A report over finished runs, made together or apart."""

# What takes seconds to import stands inside the functions, after the words are understood.

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_jepa4rec.base.command import Parser, did_you_mean, run_command, say_last
from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.config.syntax import deciding
from recbole_jepa4rec.study.run_list import run_folders

if TYPE_CHECKING:
    from recbole_jepa4rec.study.comparison import Row
    from recbole_jepa4rec.study.finished_run import FinishedRun

FIELDS = {"rows", "tests", "conditions", "metrics", "reference", "data", "dataset"}
"""Some of what a comparison's file holds, by which it is known."""


def report(words: Sequence[str]) -> int:
    """Write ``comparison.{json,md,tex,html}`` over finished runs; returns the exit status.

    Args:
        words: of the command line, after ``report``.
    """
    about = "Write the page and the tables of a comparison over finished runs."
    parser = Parser(prog="recbole-jepa4rec report", description=about)
    parser.add_argument("paths", nargs="+", type=Path, help="folders, or one comparison.json")
    parser.add_argument("--out", required=True, type=Path, help="folder to write into")
    parser.add_argument("--reference", default=None, help="row that the others are compared with")
    command = shlex.join(["python", "-m", "recbole_jepa4rec", "report", *words])
    return run_command(lambda: _report(**vars(parser.parse_args(words)), command=command))


def rows_of(runs: Iterable[FinishedRun]) -> list[Row]:
    """Rows of the tables: runs that differ in their seed alone stand in one.

    A row has the runs' label for a name, and where settings differ under one label the folder as
    well, from where the folders part.

    Raises:
        ValueError: if two runs of one row have one seed.
    """
    from recbole_jepa4rec.study.comparison import Row

    groups: list[tuple[dict[str, Any], dict[int, FinishedRun]]] = []
    for run in runs:
        settings = {key: value for key, value in deciding(run.settings).items() if key != "seed"}
        of_row = next((found for known, found in groups if known == settings), None)
        if of_row is None:
            groups.append((settings, of_row := {}))
        seed = run.result["seed"]
        if seed in of_row:
            both = f"{of_row[seed].folder} and {run.folder}"
            raise ValueError(f"{both} are the same run with the same seed {seed}; name one of them")
        of_row[seed] = run
    labels = [next(iter(of_row.values())).label for _, of_row in groups]
    places = [next(iter(of_row.values())).folder.resolve() for _, of_row in groups]
    shared = os.path.commonpath(places) if places else ""
    rows = []
    for label, place, (_, of_row) in zip(labels, places, groups, strict=True):
        name = label
        if labels.count(label) > 1:
            name = f"{label} [{os.path.relpath(place, shared)}]"
        rows.append(Row(name, sorted(of_row), dict(sorted(of_row.items())), {}))
    return rows


def _report(paths: Sequence[Path], out: Path, reference: str | None, command: str) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is not a folder")
    is_file = len(paths) == 1 and paths[0].is_file()
    folders = [] if is_file else run_folders(paths)

    from recbole_jepa4rec.study.comparison import compare
    from recbole_jepa4rec.study.finished_run import read_run
    from recbole_jepa4rec.study.report import write_report

    if is_file:
        comparison = _read_comparison(paths[0])
    else:
        rows = rows_of(map(read_run, folders))
        run = next(iter(rows[0].runs.values()))
        names = [row.entry for row in rows]
        if reference is None:
            metric = run.settings["valid_metric"].lower()
            means = {row.entry: row.facts()["valid"][metric]["mean"] for row in rows}
            reference = max(means, key=means.__getitem__)
        else:
            reference = _named(reference, names)
        found = compare(rows, reference, run.result["dataset"], {}, command)
        found["seeds"] = sorted({seed for row in rows for seed in row.seeds})
        for row in found["rows"]:
            row["label"] = row["entry"]
        comparison = json.loads(json.dumps(found, allow_nan=False, default=str))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "comparison.json", "w") as file:
        file.write(json.dumps(comparison, indent=2) + "\n")
    write_report(comparison, out)
    say_last(out / "comparison.json")


def _named(reference: str, names: Sequence[str]) -> str:
    """The row that a label names, or the one row whose label begins with a model's name.

    Raises:
        ValueError: if it names none, or several.
    """
    found = [name for name in names if name == reference]
    found = found or [name for name in names if name.startswith(f"{reference} (")]
    if len(found) != 1:
        what = "names several rows" if found else f"is no row{did_you_mean(reference, names)}"
        raise ValueError(f"--reference={reference} {what}; allowed: {', '.join(names)}")
    return found[0]


def _read_comparison(file: Path) -> Any:
    """What a comparison's file holds.

    Raises:
        ValueError: if it is none.
    """
    try:
        comparison = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no json: {error}") from error
    lacking = sorted(FIELDS - comparison.keys()) if isinstance(comparison, dict) else ["rows"]
    if lacking:
        raise ValueError(f"{file} is no comparison.json: it has no {lacking[0]!r}")
    return comparison
