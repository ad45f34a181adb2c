"""Experiments of the paper: which rows each has, and the sentence that says what holds.

A file of ``properties/experiment/`` declares one; the rows are variants of the models, run and
compared as those of any comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import ValidationError

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.config.registry import SETTINGS, TEXT_MODELS, find_entry
from recbole_jepa4rec.config.run_settings import PretrainedSettings
from recbole_jepa4rec.config.settings import Settings
from recbole_jepa4rec.study.variants import Variant
from recbole_jepa4rec.study.wording import ALPHA, metric_name, number, percent

SOURCES = "{sources}"
"""A row of this name stands for several: one for each source, and one for all of them."""


class RowSettings(Settings):
    """A row, of every model that it is for.

    The settings of both stages are those of pre-training on other data sets as well.
    """

    name: str
    """What it is called behind the model's name."""
    models: list[str] | None = None
    """Models that have it; None is all."""
    pretrained: bool = True
    """Whether a model that can be is pre-trained first."""
    settings: dict[str, Any] = {}
    """Of both stages."""
    on_target: dict[str, Any] = {}
    """Of the run on the data set itself alone."""


class CurveSettings(Settings):
    """A setting that takes several values, of which each is a row."""

    key: str
    """The setting."""
    values: list[float]
    """From left to right."""
    title: str
    """Of the axis."""
    stage: Literal["both", "target"] = "target"
    """Where it is set."""


class Experiment(Settings):
    """What a file of ``properties/experiment/`` says."""

    name: str
    """Of its file."""
    title: str
    """Of the page."""
    question: str
    """What is asked, and how."""
    paper: str
    """Where the paper has it."""
    models: list[str]
    """Where ``model_list`` names none."""
    needs_sources: bool = False
    """Whether models must start pre-trained: on what ``pretrain_dataset`` names, or by a
    checkpoint. Else they are pre-trained on the data set itself where neither is given."""
    sources_may_be_target: bool = True
    """Whether the data set itself may be one of them."""
    rows: list[RowSettings] = []
    """Each of every model."""
    curve: CurveSettings | None = None
    """Instead of rows, or for the settings of the only one."""
    reference: str | None = None
    """Row that the others are compared with, of JEPA4Rec or the first model; None is the last."""
    holds: str
    """The sentence; ``{names}`` are those of ``_words``."""
    published: dict[str, dict[str, dict[str, float]]] = {}
    """The paper's metrics by its name of a data set, and a row's name."""

    @property
    def is_about_pretraining(self) -> bool:
        """Whether rows differ in how they are pre-trained, so that none can start from weights."""
        changes = any(row.name == SOURCES or (row.pretrained and row.settings) for row in self.rows)
        return changes or (self.curve is not None and self.curve.stage == "both")

    def all_rows(self, sources: Sequence[str]) -> Iterator[tuple[RowSettings, list[str], float]]:
        """Every row with the data sets that it is pre-trained on, and its place on the axis."""
        if self.curve is None:
            for row in self.rows:
                if row.name != SOURCES:
                    yield row, [*sources], 0.0
                    continue
                for names in [*([name] for name in sources), *([sources] if sources[1:] else [])]:
                    yield row.model_copy(update={"name": "+".join(names)}), [*names], 0.0
            return
        curve, row = self.curve, (self.rows or [RowSettings(name="")])[0]
        part = "settings" if curve.stage == "both" else "on_target"
        for value in curve.values:
            with_value = {**vars(row)[part], curve.key: value}
            name = f"{curve.key}={value:g}"
            yield row.model_copy(update={"name": name, part: with_value}), [*sources], value


def experiment_names() -> list[str]:
    """Names of all experiments."""
    return sorted(file.stem for file in find_properties().glob("experiment/*.yaml"))


def read_experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: if there is none, or its file does not hold what it should.
    """
    names = experiment_names()
    if name not in names:
        allowed = f"{did_you_mean(name, names)} (allowed: {', '.join(names)})"
        raise ValueError(f"unknown experiment {name!r}{allowed}")
    file = find_properties() / "experiment" / f"{name}.yaml"
    try:
        return Experiment.model_validate({"name": name, **read_yaml(file)})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))} in {file}: {fault['msg']}") from None


def variants_of(
    experiment: Experiment,
    entries: Sequence[str],
    given: Mapping[str, Any],
    sources: Sequence[str],
    start: str | None,
) -> list[Variant]:
    """The rows of an experiment: those of each model in their order.

    Args:
        experiment: which.
        entries: models, with presets or without; none for the experiment's own.
        given: settings that every run is given.
        sources: data sets that models are pre-trained on.
        start: the checkpoint that they start from instead.

    Raises:
        ValueError: for a model that has no row, what models cannot be pre-trained on or start from,
            or a setting that the experiment varies; and as ``Variant.of``.
    """
    name = experiment.name
    if experiment.curve and experiment.curve.key in given:
        raise ValueError(f"key {experiment.curve.key!r} is what experiment {name!r} varies")
    _refuse_sources(experiment, given, sources, start)
    found = []
    for base in map(Variant.of, entries or experiment.models):
        model = find_entry(base.model)[0]
        rows = [
            _variant(base, model, *row)
            for row in experiment.all_rows(sources)
            if row[0].models is None or model in row[0].models
        ]
        if not rows:
            allowed = dict.fromkeys(each for row in experiment.rows for each in row.models or ())
            raise ValueError(
                f"experiment {name!r} does not apply to {model} (allowed: {', '.join(allowed)})"
            )
        if start and any(row.starts_trained for row in rows):
            _refuse_start(experiment, model, start)
        found += rows
    if start and not any(row.starts_trained for row in found):
        raise ValueError(f"checkpoint {start!r} has no effect: no model of {name!r} starts from it")
    return found


def _refuse_sources(
    experiment: Experiment, given: Mapping[str, Any], sources: Sequence[str], start: str | None
) -> None:
    """Refuse what models of an experiment cannot be pre-trained on."""
    name, target = experiment.name, given.get("dataset")
    if "checkpoint" in given and not start:
        raise ValueError("checkpoint of an experiment stands on the command line alone")
    if sources and start:
        raise ValueError("pretrain_dataset and checkpoint are both given; allowed: one of them")
    if experiment.needs_sources and not (sources or start):
        raise ValueError(
            f"experiment {name!r} starts from pre-trained models (write --pretrain_dataset=A,B or, "
            "of one model, --checkpoint=RUN_DIR)"
        )
    if start and experiment.is_about_pretraining:
        raise ValueError(
            f"checkpoint {start!r} is trained already, and experiment {name!r} is about "
            "pre-training (write --pretrain_dataset=A,B)"
        )
    if target in sources and not experiment.sources_may_be_target:
        raise ValueError(
            f"pretrain_dataset names {target!r}, the data set itself; allowed for experiment "
            f"{name!r}: others"
        )


def _refuse_start(experiment: Experiment, model: str, start: str) -> None:
    """Refuse a run of another model; of a file of weights alone the run itself says so."""
    path = Path(start)
    config = (path if path.is_dir() else path.parent) / "config.yaml"
    theirs = read_yaml(config).get("model") if config.is_file() else model
    if theirs == model:
        return
    of = theirs if theirs in TEXT_MODELS else f"{theirs}, which reads no item text"
    what = f"experiment {experiment.name!r} with {model}: a run of {model}"
    raise ValueError(f"checkpoint {start!r} is of {of}; allowed for {what}")


def _variant(base: Variant, model: str, row: RowSettings, sources: list[str], x: float) -> Variant:
    trained = row.pretrained and issubclass(SETTINGS.get(model, Settings), PretrainedSettings)
    return replace(
        base,
        name=f"{base.name}:{row.name}",
        own={key: str(value) for key, value in row.settings.items()},
        on_target={key: str(value) for key, value in row.on_target.items()},
        sources=tuple(sources) if trained else (),
        starts_trained=trained,
        published_as=f"{model}:{row.name}",
        series=base.name,
        x=x,
    )


def reference_of(rows: Sequence[Variant], wanted: str | None) -> str:
    """The row that others are compared with: of the first JEPA4Rec, or else the first model.

    Args:
        rows: of a comparison.
        wanted: what an experiment calls it, if it says; else it is the last of that model.
    """
    first = next((row for row in rows if row.model == "JEPA4Rec"), rows[0])
    names = [row.name for row in rows if row.series == first.series]
    if not first.series:
        return first.name
    return next((name for name in names if name.endswith(f":{wanted}")), names[-1])


def facts_of(
    experiment: Experiment,
    rows: Sequence[Variant],
    comparison: Mapping[str, Any],
    seconds: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """What ``comparison.json`` holds of an experiment.

    Args:
        experiment: which.
        rows: of it.
        comparison: what the file holds else.
        seconds: that each row's pre-training took, one for each seed.
    """
    data, curve = comparison["data"], experiment.curve
    same = data and data["published"] and not data["published"]["warning"]
    published = experiment.published.get(data["published"]["name"], {}) if same else {}
    return {
        **experiment.model_dump(include={"name", "title", "question", "paper", "holds"}),
        "axis": curve and curve.model_dump(include={"key", "title", "values"}),
        "rows": {
            row.name: {
                "series": row.series,
                "x": row.x if curve else None,
                "published": published.get(row.published_as),
                "pretrained_on": [*row.sources],
                "pretraining_seconds": fmean(seconds[row.name]) if seconds[row.name] else None,
            }
            for row in rows
        },
    }


def beside_paper(comparison: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Rows for which the paper prints figures of the same data, with these; by their entries."""
    published = {
        entry: of_row["published"] for entry, of_row in comparison["experiment"]["rows"].items()
    }
    return [
        (row["entry"], published[row["entry"]])
        for row in comparison["rows"]
        if published[row["entry"]] and "test" in row
    ]


def pretraining_lines(experiment: Mapping[str, Any]) -> list[str]:
    """What models were pre-trained on, and how long that took beside what their costs say."""
    found: dict[str, dict[str, None]] = {}
    for entry, of_row in experiment["rows"].items():
        if of_row["pretrained_on"]:
            took = of_row["pretraining_seconds"]
            name = of_row["series"] if experiment["axis"] else _spoken(entry)
            said = name if took is None else f"{name} in {took:.0f} s a seed"
            found.setdefault(", ".join(of_row["pretrained_on"]), {})[said] = None
    return [
        f"Pre-trained on {sources}, which costs here leave out: {', '.join(names)}."
        for sources, names in found.items()
    ]


def holds(comparison: Mapping[str, Any]) -> str:
    """The sentence that says what holds; while rows are missing, that it is not known yet."""
    experiment = comparison["experiment"]
    rows = [row for row in comparison["rows"] if row["counts"] and row["status"] == "finished"]
    if len(rows) < len(comparison["rows"]):
        return f"{experiment['title']}: {len(rows)} of {len(comparison['rows'])} rows are finished."
    return experiment["holds"].format(**_words(comparison, rows))


def _words(comparison: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a sentence may name; rows are called by their entries, values are those on test."""
    key = comparison["valid_metric"]
    means = {row["entry"]: row["test"][key]["mean"] for row in rows}
    reference = comparison["reference"]
    mine = means[reference]
    best, worst = (pick(means, key=means.__getitem__) for pick in (max, min))
    p = [test["p_holm"] for test in comparison["tests"] if test["metric"] == key]
    words: dict[str, Any] = {
        "dataset": comparison["dataset"],
        "metric": metric_name(key),
        "reference": _spoken(reference),
        "best": _spoken(best),
        "worst": _spoken(worst),
        "others": len(means) - 1,
        "below": sum(value < mine for value in means.values()),
        "significant": sum(each < ALPHA for each in p),
        "worst_change": percent(100 * (means[worst] / mine - 1) if mine else None),
        "reference_value": number(mine),
        "best_value": number(means[best]),
        "worst_value": number(means[worst]),
    }
    return words | _words_of_curve(comparison["experiment"], reference, means)


def _words_of_curve(
    experiment: Mapping[str, Any], reference: str, means: Mapping[str, float]
) -> dict[str, Any]:
    """What is said of lines: where they begin and end, and who leads there."""
    if not experiment["axis"]:
        return {}
    lines: dict[str, dict[float, float]] = {}
    for entry, of_row in experiment["rows"].items():
        lines.setdefault(of_row["series"], {})[of_row["x"]] = means[entry]
    values = experiment["axis"]["values"]
    first, second, last = values[0], values[1], values[-1]
    mine = lines[experiment["rows"][reference]["series"]]
    best = max(mine, key=mine.__getitem__)
    leaders = {x: max(lines, key=lambda name: lines[name][x]) for x in (first, last)}
    return {
        "series": experiment["rows"][reference]["series"],
        **{"first": f"{first:g}", "second": f"{second:g}", "last": f"{last:g}"},
        "best_x": f"{best:g}",
        "best_x_value": number(mine[best]),
        "leader_first": leaders[first],
        "leader_first_value": number(lines[leaders[first]][first]),
        "leader_last": leaders[last],
        "leader_last_value": number(lines[leaders[last]][last]),
        "from_to": ", ".join(
            f"from {number(line[first])} to {number(line[last])} ({name})"
            for name, line in lines.items()
        ),
        "changes_second": ", ".join(
            f"{percent(100 * (line[second] / line[first] - 1) if line[first] else None)} ({name})"
            for name, line in lines.items()
        ),
    }


def _spoken(entry: str) -> str:
    """A row's name in a sentence: ``JEPA4Rec without-mlm``."""
    return entry.replace(":", " ")
