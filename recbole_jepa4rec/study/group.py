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
from recbole_jepa4rec.study.experiment import (
    Experiment,
    experiment_names,
    facts_of,
    read_experiment,
    reference_of,
    variants_of,
)
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
    from recbole_jepa4rec.config.config import Config
    from recbole_jepa4rec.study.cells import Cell
    from recbole_jepa4rec.study.finished_run import FinishedRun
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

    experiment: Annotated[str | None, must(f"one of {', '.join(experiment_names())}")] = None
    """An experiment of the paper, by its name; model_list may name its models."""
    pretrain_dataset: Annotated[
        tuple[str, ...], BeforeValidator(_listed), AfterValidator(_distinct)
    ] = ()
    """Data sets that an experiment's models are pre-trained on, with commas; --checkpoint=RUN_DIR
    names weights instead."""
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
        rows: what is compared.
        experiment: that they are of.
        reference: the row that the others are compared with.
        pretraining: runs of pre-training on other data sets, which are to end first.
        cells: every row with every seed, seed by seed.
        folder: where the comparison and its runs stand.
        given: settings that every run is given.
        command: the command line in one string.
    """

    keys: GroupKeys
    rows: tuple[Variant, ...]
    experiment: Experiment | None
    reference: str
    pretraining: tuple[Cell, ...]
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
        usage = "compare --model_list=A,B or --experiment=NAME --dataset=NAME [--key=value ...]"
        print(help_of(usage, "Train and test models side by side, and compare them.", GroupKeys))
        return 0
    return run_command(
        lambda: compare_models(read_request(command_line)),
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
    if keys.experiment:
        experiment = read_experiment(keys.experiment)
        start = texts.pop("checkpoint", None)
        rows = variants_of(experiment, keys.model_list, given, keys.pretrain_dataset, start)
        _refuse_namesakes(rows, [row.series for row in rows])
    else:
        experiment, start, rows = None, None, _listed_rows(keys)
    names = [row.name for row in rows]
    if keys.reference:
        reference = row_name(keys.reference)
    else:
        reference = reference_of(rows, experiment.reference if experiment else None)
    if reference not in names:
        listed = "model_list" if experiment is None else f"experiment {keys.experiment!r}"
        raise ValueError(
            f"reference {reference!r} is not in {listed} (allowed: {', '.join(names)})"
        )
    folder, pretraining, cells = _cells(rows, keys, texts, start)
    given = {key: value for key, value in given.items() if key != "dataset"}
    command = shlex.join(["python", "run_recbole_group.py", *command_line])
    return Request(
        keys, tuple(rows), experiment, reference, pretraining, cells, folder, given, command
    )


def _listed_rows(keys: GroupKeys) -> list[Variant]:
    """The rows of a comparison that is no experiment."""
    if keys.pretrain_dataset:
        raise ValueError("pretrain_dataset is of an experiment (write --experiment=NAME)")
    if not keys.model_list:
        raise ValueError("no model is named (write --model_list=A,B,C)")
    rows = [*map(Variant.of, keys.model_list)]
    _refuse_namesakes(rows, keys.model_list)
    return rows


def _refuse_namesakes(rows: Sequence[Variant], entries: Sequence[str]) -> None:
    """Refuse rows of one name; ``entries`` are what the user has called them."""
    named: dict[str, str] = {}
    for entry, row in zip(entries, rows, strict=True):
        if row.folder in named:
            both = f"model_list names {named[row.folder]!r} and {entry!r}, of which both rows"
            raise ValueError(f"{both} would be {row.name!r}; give one file another name")
        named[row.folder] = entry


def _cells(
    rows: Sequence[Variant], keys: GroupKeys, texts: Mapping[str, str], start: str | None
) -> tuple[Path, tuple[Cell, ...], tuple[Cell, ...]]:
    """The folder, and every run in it: those of pre-training, and those of the rows.

    Args:
        rows: what every seed is run with.
        keys: of the comparison.
        texts: settings of every run.
        start: weights that rows start from which are not pre-trained here.
    """
    unread = frozenset.intersection(*(row.unread for row in rows))
    before: dict[tuple[str, int], dict[str, str]] = {}
    asked: list[tuple[Variant, int, dict[str, str]]] = []
    for seed in keys.seeds:
        for row in rows:
            shared = {**texts, "seed": str(seed)}
            if row.sources:
                settings = before[row.pretraining, seed] = row.pretraining_settings(shared, unread)
                Layers(command_line=_words(settings)).refuse_early()
            settings = row.settings(shared, unread, row.pretraining if row.sources else start)
            refuse_early(Layers(command_line=_words(settings)))
            asked.append((row, seed, settings))

    from recbole_jepa4rec.base.checkpoint import weights_file
    from recbole_jepa4rec.study.cells import Cell

    if start:
        weights_file(start)
    plan = [(*each, _config(each[-1])) for each in asked]
    _refuse_equals(plan[: len(rows)])
    described = [[row.name, deciding(config.external())] for row, _, _, config in plan]
    described += [[name, settings] for (name, _), settings in before.items()]
    folder = study_folder(keys.run_dir, plan[0][3], keys.experiment or "group", described)
    of_rows, pretraining = [], []
    for row, seed, settings, config in plan:
        place = folder / row.folder / f"seed-{seed}"
        if row.sources:  # whose place is known now
            settings["checkpoint"] = str(folder / row.pretraining / f"seed-{seed}")
            config = _config(settings)
        words = (*_words(settings), f"--run_dir={place}")
        of_rows.append(Cell(row.name, seed, place, words, config))
    for (name, seed), settings in before.items():
        place = folder / name / f"seed-{seed}"
        words = (*_words(settings), f"--run_dir={place}")
        pretraining.append(Cell(name, seed, place, words, _config(settings)))
    return folder, tuple(pretraining), tuple(of_rows)


def _config(settings: Mapping[str, str]) -> Config:
    """The settings of a run, settled as far as the data tell."""
    from recbole_jepa4rec.config.config import Config
    from recbole_jepa4rec.data.item_files import settle_attributes

    config = Config(command_line=_words(settings))
    config.refuse_idle()
    settle_attributes(config)
    return config


def _refuse_equals(plan: Sequence[tuple[Variant, int, Mapping[str, str], Config]]) -> None:
    """Refuse two rows that would be the same run."""
    seen: dict[str, str] = {}
    for row, *_, config in plan:
        same = json.dumps(config.external(), sort_keys=True, default=str)
        if same in seen:
            both = f"{seen[same]!r} and {row.name!r}"
            raise ValueError(f"model_list names {both}, which are the same")
        seen[same] = row.name


def _words(settings: Mapping[str, str]) -> list[str]:
    return [f"--{key}={text}" for key, text in settings.items()]


def compare_models(request: Request) -> int:
    """Run what is missing, and write the comparison after every run.

    Returns:
        Exit status: 1 if a run failed.

    Raises:
        ValueError: for data that cannot be used, or a folder that holds something else.
        SystemExit: told to end (SIGTERM).
    """
    from recbole_jepa4rec.study import comparison, report  # noqa: F401 (needed at the end)
    from recbole_jepa4rec.study.cells import finished_runs
    from recbole_jepa4rec.study.grid import Grid, Outcome

    stages, folder = (request.pretraining, request.cells), request.folder
    cells = [cell for stage in stages for cell in stage]
    of_data = _by_data(cells)
    logs = [str(cell.output_file.relative_to(folder)) for cell in cells]
    refuse_foreign(folder, [*OUTPUTS, *logs], proof=LOCK_NAME)
    with locked(folder, "comparison", PATIENCE) as lock:
        done: dict[tuple[str, int], FinishedRun] = {}
        for data, of_them in of_data:
            done |= finished_runs(of_them, data)
        del data, of_data  # they may be large, and every run reads its own
        missing = [[cell for cell in stage if cell.key not in done] for stage in stages]
        for cell in (cell for stage in missing for cell in stage):
            cell.refuse_others()
        before = {each.key: Outcome(each, run=done[each.key]) for each in cells if each.key in done}
        board = Board(before, len(cells), lambda ended: _write(request, ended))
        print(
            f"{len(cells)} runs in {folder}, {len(done)} of them finished before", file=sys.stderr
        )
        if done:
            board.write()
        for stage in missing:
            Grid(stage, request.keys.jobs, lock).run(
                lambda outcome: board.end(outcome.cell.key, outcome, str(outcome))
            )
    say_last(folder / "comparison.json")
    return 1 if any(outcome.error for outcome in board.ended.values()) else 0


def _by_data(cells: Sequence[Cell]) -> list[tuple[Any, list[Cell]]]:
    """The data sets, read before anything runs, each with the runs on it.

    Raises:
        ValueError: if they cannot be read, lack the text that a model reads, or test nobody.
    """
    from recbole_jepa4rec.data.item_files import refuse_without_text

    of_data: dict[str, list[Cell]] = {}
    for cell in cells:
        of_data.setdefault(cell.config["dataset"], []).append(cell)
        if cell.seed == cells[0].seed:
            refuse_without_text(cell.config)
    configs = [of_them[0].config for of_them in of_data.values()]
    data = [find_dataset(config.model_class)(config) for config in configs]
    for each in data:
        each.refuse_untested()
    return [*zip(data, of_data.values(), strict=True)]


def _write(request: Request, ended: Mapping[tuple[str, int], Outcome]) -> None:
    """Write ``comparison.json`` and its views."""
    from recbole_jepa4rec.study.comparison import Row, compare
    from recbole_jepa4rec.study.report import write_report

    rows = []
    for entry in (row.name for row in request.rows):
        ends = {end.cell.seed: end for end in ended.values() if end.cell.entry == entry}
        runs = {seed: end.run for seed, end in ends.items() if end.run}
        errors = {seed: end.error for seed, end in ends.items() if end.error}
        rows.append(Row(entry, request.keys.seeds, runs, errors))
    dataset = request.cells[0].config["dataset"]
    experiment, asked = request.experiment, (request.given, request.command)
    varied = experiment.curve.key if experiment and experiment.curve else None
    comparison = compare(rows, request.reference, dataset, *asked, varied, always=bool(experiment))
    if experiment:
        seconds = {
            row.name: [
                end.run.result["seconds"]["total"]
                for end in ended.values()
                if end.run and end.cell.entry == row.pretraining
            ]
            for row in request.rows
        }
        comparison["improvement"] = comparison["best_baseline"] = None  # rows are no baselines
        comparison["experiment"] = facts_of(experiment, request.rows, comparison, seconds)
    text = json.dumps(comparison, indent=2, allow_nan=False, default=str)
    with atomic_write(request.folder / "comparison.json", "w") as file:
        file.write(text + "\n")
    write_report(json.loads(text), request.folder)
