"""From a command line to a comparison: check, run what is missing, report after every run.

What takes seconds to import stands inside the functions, after the words are understood.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from recbole_jepa4rec.base.command import run_command, say_last
from recbole_jepa4rec.base.files import LOCK_NAME, atomic_write, locked
from recbole_jepa4rec.config.help import asks_for_help, help_of
from recbole_jepa4rec.config.layers import Layers
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.config.settings import Count, Seed, must
from recbole_jepa4rec.config.syntax import deciding
from recbole_jepa4rec.study.study import (
    PATIENCE,
    Board,
    StudyKeys,
    read_words,
    refuse_early,
    refuse_foreign,
    study_folder,
)
from recbole_jepa4rec.study.variants import Variant, row_name

if TYPE_CHECKING:
    from recbole_jepa4rec.study.cells import Cell
    from recbole_jepa4rec.study.grid import Outcome

OUTPUTS = [f"comparison.{kind}" for kind in ("json", "md", "tex", "html")]
"""What a comparison writes beside its runs."""

PER_RUN = {
    "model": "name the models by --model_list=A,B",
    "seed": "name the seeds by --seeds=2020,2021",
    "run_dir": "name the folder of the comparison by --run_dir=PATH on the command line",
    "resume": "the same command again goes on where the comparison ended",
}
"""Settings that differ from run to run, and what to write instead."""


def _listed(text: Any, info: ValidationInfo) -> Any:
    names = [name.strip() for name in text.split(",")] if isinstance(text, str) else text
    if not all(names):
        raise ValueError(f"{info.field_name} {text!r} holds an empty name")
    return names


def _distinct(values: Any, info: ValidationInfo) -> Any:
    for value in values:
        if values.count(value) > 1:
            text = ",".join(map(str, values))
            raise ValueError(f"{info.field_name} {text!r} names {value!r} twice")
    return values


class GroupKeys(StudyKeys):
    """Keys of a comparison itself."""

    model_list: Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_distinct)] = ()
    """The models, with commas; SASRec-BPR names a loss as well, RecFormer:ranking-head a preset."""
    seeds: Annotated[
        tuple[Seed, ...],
        BeforeValidator(_listed),
        AfterValidator(_distinct),
        must(f"a whole number from 0 to {2**32 - 1}, or several"),
    ] = (2020,)
    """The seeds with which every model is trained, with commas."""
    jobs: Count = 1
    """Runs at once."""
    reference: str | None = None
    """The model that the others are compared with; the first JEPA4Rec, else the first of all."""


@dataclass(frozen=True)
class Request:
    """A checked command line.

    Attributes:
        keys: of the comparison.
        reference: the entry that the others are compared with.
        cells: every entry with every seed, seed by seed.
        folder: where the comparison and its runs stand.
        given: settings that every run is given.
        command: the command line in one string.
    """

    keys: GroupKeys
    reference: str
    cells: tuple[Cell, ...]
    folder: Path
    given: Mapping[str, Any]
    command: str


def main(command_line: Sequence[str]) -> int:
    """Compare as a script does; the last line on standard output is that of ``comparison.json``.

    Args:
        command_line: the words after the script's name.

    Returns:
        Exit status; see ``run_command``, 1 too if a run failed.

    Raises:
        SystemExit: as ``run_command``.
    """
    if asks_for_help(command_line):
        usage = "compare --model_list=A,B,... --dataset=NAME [--key=value ...]"
        print(help_of(usage, "Train and test models side by side, and compare them.", GroupKeys))
        return 0
    return run_command(
        lambda: _compare(read_request(command_line)),
        after_interrupt="the same command goes on where this one ended",
    )


def read_request(command_line: Sequence[str]) -> Request:
    """Check a command line and build the settings of every run.

    Args:
        command_line: the words after the script's name.

    Raises:
        ValueError: for anything that cannot be run; one line says what is allowed.
    """
    keys, texts, given = read_words(command_line, GroupKeys, PER_RUN)
    if not keys.model_list:
        raise ValueError("no model is named (write --model_list=A,B,C)")
    variants = [*map(Variant.of, keys.model_list)]
    named: dict[str, str] = {}
    for entry, variant in zip(keys.model_list, variants, strict=True):
        if (other := named.setdefault(variant.folder, entry)) != entry:
            both = f"model_list names {other!r} and {entry!r}, of which both rows"
            raise ValueError(f"{both} would be {variant.name!r}; give one file another name")
    names = [variant.name for variant in variants]
    ours = [variant.name for variant in variants if variant.model == "JEPA4Rec"]
    reference = row_name(keys.reference) if keys.reference else [*ours, *names][0]
    if reference not in names:
        allowed = ", ".join(names)
        raise ValueError(f"reference {reference!r} is not in model_list (allowed: {allowed})")
    folder, cells = _cells(variants, keys, texts)
    given = {key: value for key, value in given.items() if key != "dataset"}
    command = shlex.join(["python", "run_recbole_group.py", *command_line])
    return Request(keys, reference, cells, folder, given, command)


def _cells(
    rows: Sequence[Variant], keys: GroupKeys, texts: Mapping[str, str]
) -> tuple[Path, tuple[Cell, ...]]:
    """The folder and every run in it.

    Args:
        rows: what every seed is run with.
        keys: of the comparison.
        texts: settings of every run.
    """
    asked = []
    unread = frozenset.intersection(*(row.unread for row in rows))
    for seed in keys.seeds:
        for row in rows:
            settings = {"seed": str(seed), **row.settings(texts, unread)}
            words = [f"--{key}={text}" for key, text in settings.items()]
            refuse_early(Layers(command_line=words))
            asked.append((row, seed, words))

    from recbole_jepa4rec.config.config import Config
    from recbole_jepa4rec.data.item_files import settle_attributes
    from recbole_jepa4rec.study.cells import Cell

    plan = [(*each, Config(command_line=each[-1])) for each in asked]
    for *_, config in plan:
        config.refuse_idle()
        settle_attributes(config)
    seen: dict[str, str] = {}
    for row, _, _, config in plan[: len(rows)]:
        same = json.dumps(config.external(), sort_keys=True, default=str)
        if same in seen:
            both = f"{seen[same]!r} and {row.name!r}"
            raise ValueError(f"model_list names {both}, which are the same")
        seen[same] = row.name
    described = [[row.name, deciding(config.external())] for row, _, _, config in plan]
    folder = study_folder(keys.run_dir, plan[0][3], "group", described)
    cells = []
    for row, seed, words, config in plan:
        place = folder / row.folder / f"seed-{seed}"
        cells.append(Cell(row.name, seed, place, (*words, f"--run_dir={place}"), config))
    return folder, tuple(cells)


def _compare(request: Request) -> int:
    from recbole_jepa4rec.study import comparison, report  # noqa: F401 (needed at the end)
    from recbole_jepa4rec.study.cells import finished_runs
    from recbole_jepa4rec.study.grid import Grid, Outcome

    data = _read_data(request)
    cells, folder = request.cells, request.folder
    logs = [str(cell.output_file.relative_to(folder)) for cell in cells]
    refuse_foreign(folder, [*OUTPUTS, *logs], proof=LOCK_NAME)
    with locked(folder, "comparison", PATIENCE) as lock:
        done = finished_runs(cells, data)
        del data  # it may be large, and every run reads its own
        missing = [cell for cell in cells if cell.key not in done]
        for cell in missing:
            cell.refuse_others()
        before = {each.key: Outcome(each, run=done[each.key]) for each in cells if each.key in done}
        board = Board(before, len(cells), lambda ended: _write(request, ended))
        print(
            f"{len(cells)} runs in {folder}, {len(done)} of them finished before", file=sys.stderr
        )
        if done:
            board.write()
        Grid(missing, request.keys.jobs, lock).run(
            lambda outcome: board.end(outcome.cell.key, outcome, str(outcome))
        )
    say_last(folder / "comparison.json")
    return 1 if any(outcome.error for outcome in board.ended.values()) else 0


def _read_data(request: Request) -> Any:
    """The data set, read before anything runs.

    Raises:
        ValueError: if they cannot be read, lack the text that a model reads, or test nobody.
    """
    from recbole_jepa4rec.data.item_files import refuse_without_text

    for cell in request.cells[: len(request.keys.model_list)]:
        refuse_without_text(cell.config)
    config = request.cells[0].config
    data = find_dataset(config.model_class)(config)
    data.refuse_untested()
    return data


def _write(request: Request, ended: Mapping[tuple[str, int], Outcome]) -> None:
    """Write ``comparison.json`` and its views."""
    from recbole_jepa4rec.study.comparison import Row, compare
    from recbole_jepa4rec.study.report import write_report

    rows = []
    for entry in dict.fromkeys(cell.entry for cell in request.cells):
        ends = {end.cell.seed: end for end in ended.values() if end.cell.entry == entry}
        runs = {seed: end.run for seed, end in ends.items() if end.run}
        errors = {seed: end.error for seed, end in ends.items() if end.error}
        rows.append(Row(entry, request.keys.seeds, runs, errors))
    dataset = request.cells[0].config["dataset"]
    comparison = compare(rows, request.reference, dataset, request.given, request.command)
    text = json.dumps(comparison, indent=2, allow_nan=False, default=str)
    with atomic_write(request.folder / "comparison.json", "w") as file:
        file.write(text + "\n")
    write_report(json.loads(text), request.folder)
