"""The numbers of a comparison; every table and plot is a view of what this returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from recbole_jepa4rec.config.syntax import WHEREABOUTS
from recbole_jepa4rec.data.published import beside_published
from recbole_jepa4rec.evaluation.metrics import metric_values
from recbole_jepa4rec.study.finished_run import FinishedRun, refuse_mixture
from recbole_jepa4rec.study.significance import intervals_and_tests

GROUPS = {"never seen": (0, 0), "seen 1–4 times": (1, 4), "seen 5+ times": (5, None)}
"""Users by how often their target occurs in the training part: the least and the most."""

GROUP_METRICS = ("ndcg@10", "recall@10")
CUTOFFS_PER_DECADE = 12

Key = TypeVar("Key", str, int)
Drifts = dict[str, dict[str, list[dict[str, Any]]]]
"""By way and measure of ``evaluation/drift.py`` mean and deviation of each step."""

IDENTITY = ("model", "seed")
"""Settings in which rows differ by what they are."""


@dataclass(frozen=True)
class Row:
    """A row of the tables: a model with its settings, and its runs with several seeds.

    Attributes:
        entry: the row's name, such as the model's in the list.
        seeds: asked for.
        runs: finished ones by seed.
        errors: of the seeds that failed, one line each.
    """

    entry: str
    seeds: Sequence[int]
    runs: Mapping[int, FinishedRun]
    errors: Mapping[int, str]

    @property
    def status(self) -> str:
        """``finished``, ``failed`` (a seed did), ``partial`` or ``waiting`` (seeds to come)."""
        if self.errors:
            return "failed"
        if len(self.runs) == len(self.seeds):
            return "finished"
        return "partial" if self.runs else "waiting"

    @property
    def counts(self) -> bool:
        """Whether the row takes part in rankings and tests."""
        return bool(self.runs) and not self.errors

    def user_values(self) -> dict[str, np.ndarray]:
        """Every metric of each user, averaged over the seeds, ``[U]`` each."""
        return _mean_values([run.values() for run in self.runs.values()])

    def facts(self) -> dict[str, Any]:
        """What is known of the row by itself."""
        runs = [*self.runs.values()]
        facts: dict[str, Any] = {
            "entry": self.entry,
            "label": runs[0].label if runs else self.entry,
            "status": self.status,
            "counts": self.counts,
            "seeds": list(self.runs),
            "errors": {str(seed): error for seed, error in self.errors.items()},
            "folders": [str(run.folder) for run in runs],
            "time_limit": _time_limit(runs),
        }
        if not runs:
            return facts
        return {
            **facts,
            "model": runs[0].result["model"],
            "valid": _spread([run.result["valid"] for run in runs]),
            "test": {
                key: {**spread, "interval": None, "mark": None}
                for key, spread in _spread([run.result["test"] for run in runs]).items()
            },
            "groups": _groups(runs),
            "ranking": _ranking(runs),
            "cost": _cost(runs),
            "vectors": _vectors(runs),
            "drift": _drift(runs),
            "learning_curves": [
                {"seed": seed, "points": run.result["learning_curve"]}
                for seed, run in self.runs.items()
            ],
        }


def compare(
    rows: Sequence[Row],
    reference: str,
    dataset: str,
    given: Mapping[str, Any],
    command: str,
    varied: str | None = None,
    always: bool = False,
) -> dict[str, Any]:
    """Compare rows.

    Args:
        rows: in the order of the tables.
        reference: entry of the row that the others are compared with.
        dataset: name of the data set.
        given: settings that every run was given.
        command: what asked for the comparison.
        varied: a part of the protocol in which rows may differ, since the comparison is about it.
        always: whether labels say what entries name behind the model where one row has them, too.

    Returns:
        What ``comparison.json`` holds: ``rows`` (means, intervals, marks, groups, cost, curves),
        ``best_baseline``, ``improvement`` in percent, ``tests`` of the reference against each
        baseline, ``data`` beside the paper's, and the ``conditions`` that the rows share or not.
        A row whose training a time limit cut takes no part in marks and is no best baseline.
        Only the ``user_metrics`` have intervals, marks and tests: the other ``metrics`` are of all
        users together, and more of them is not better in itself.

    Raises:
        ValueError: if runs differ in protocol, data, metrics, users or targets; names both.
    """
    runs = [run for row in rows for run in row.runs.values()]
    refuse_mixture(runs, varied)
    metrics = list(runs[0].result["test"]) if runs else []
    valid_metric = runs[0].settings["valid_metric"].lower() if runs else None
    shown = {row.entry: row.facts() for row in rows}
    _tell_apart([*shown.values()], always)
    ranked = {row.entry: shown[row.entry] for row in rows if row.counts}
    values = {row.entry: row.user_values() for row in rows if row.runs}
    intervals, tests = intervals_and_tests(values, reference, ranked)
    for entry, of_row in intervals.items():
        for key, bounds in of_row.items():
            shown[entry]["test"][key]["interval"] = bounds
    of_users = [*next(iter(values.values()), {})]  # the others are of all users together
    whole = {entry: row for entry, row in ranked.items() if row["time_limit"] is None}
    _mark(whole, of_users)
    best = _best_baseline(whole, reference, valid_metric) if reference in ranked else None
    return {
        "dataset": dataset,
        "command": command,
        "reference": reference,
        "seeds": list(rows[0].seeds),
        "users": len(runs[0].users) if runs else None,
        "metrics": metrics,
        "user_metrics": of_users,
        "valid_metric": valid_metric,
        "best_baseline": best,
        "improvement": _improvement(ranked[reference], ranked[best], of_users) if best else None,
        "rows": [*shown.values()],
        "tests": tests,
        "data": _data(dataset, runs) if runs else None,
        "conditions": _conditions(rows, given),
    }


def _tell_apart(rows: Sequence[dict[str, Any]], always: bool) -> None:
    """Add to labels that several rows have, or all, what their entries name behind the model."""
    labels = [row["label"] for row in rows]
    for row, label in zip(rows, labels, strict=True):
        presets = row["entry"].partition(":")[2]
        if presets and (always or labels.count(label) > 1):
            row["label"] = f"{label} [{presets}]"


def _mark(ranked: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Mark the best and the second mean of each metric on the test split; equals share a mark."""
    for key in metrics:
        found = [row["test"][key] for row in ranked.values()]
        means = sorted({each["mean"] for each in found}, reverse=True)
        marks = dict(zip(means, ("best", "second"), strict=False))
        for each in found:
            each["mark"] = marks.get(each["mean"])


def _best_baseline(
    ranked: Mapping[str, Mapping[str, Any]], reference: str, valid_metric: str | None
) -> str | None:
    """The baseline of the best mean on validation, so that the test split chooses nothing."""
    baselines = [entry for entry in ranked if entry != reference]
    return max(
        baselines, key=lambda entry: ranked[entry]["valid"][valid_metric]["mean"], default=None
    )


def _improvement(
    reference: Mapping[str, Any], baseline: Mapping[str, Any], metrics: Sequence[str]
) -> dict[str, float | None]:
    """Of the reference over the baseline on the test split, in percent; ``None`` over zero."""
    found: dict[str, float | None] = {}
    for key in metrics:
        mine, other = reference["test"][key]["mean"], baseline["test"][key]["mean"]
        found[key] = 100 * (mine / other - 1) if other else None
    return found


def _data(dataset: str, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    result, texts = runs[0].result, [run.result["text_fingerprint"] for run in runs]
    return {
        "fingerprint": result["data_fingerprint"],
        "text_fingerprint": next((text for text in texts if text is not None), None),
        "statistics": result["statistics"],
        "published": beside_published(dataset, result["statistics"]),
    }


def _spread(results: Sequence[Mapping[Key, float]]) -> dict[Key, dict[str, Any]]:
    """Mean, and sample standard deviation (``None`` for one seed), of each metric over seeds."""
    found: dict[Key, dict[str, Any]] = {}
    for key in results[0]:
        values = [result[key] for result in results]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found[key] = {"mean": float(np.mean(values)), "std": std}
    return found


def _groups(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Metrics of the users of each of ``GROUPS``; ``None`` where there is no such user."""
    counts = runs[0].users["target_train_count"].to_numpy()
    ranks = [run.users["rank"].to_numpy() for run in runs]
    values = _mean_values([metric_values(each, ["ndcg", "recall"], [10]) for each in ranks])
    found = []
    for name, (least, most) in GROUPS.items():
        inside = (counts >= least) & (counts <= (np.inf if most is None else most))
        means = {
            key: float(values[key][inside].mean()) if inside.any() else None
            for key in GROUP_METRICS
        }
        found.append({"name": name, "users": int(inside.sum()), **means})
    return found


def _ranking(runs: Sequence[FinishedRun]) -> dict[str, list[float]]:
    """Share of users whose target is among the first ``k``, for ``k`` evenly on a log scale."""
    items = runs[0].result["statistics"]["items"]
    steps = max(2, int(np.log10(items) * CUTOFFS_PER_DECADE))
    cutoffs = np.unique(np.geomspace(1, items, steps).round().astype(int))
    shares = [
        np.searchsorted(np.sort(run.users["rank"].to_numpy()), cutoffs, side="right")
        / len(run.users)
        for run in runs
    ]
    return {"k": cutoffs.tolist(), "recall": np.mean(shares, axis=0).tolist()}


def _cost(runs: Sequence[FinishedRun]) -> dict[str, float | None]:
    """Means over the seeds: seconds, tokens per second, memory and parameters."""
    results = [run.result for run in runs]
    seconds = [result["seconds"] for result in results]
    return {
        "train_seconds": _mean([each["pretrain"] + each["finetune"] for each in seconds]),
        "total_seconds": _mean([each["total"] for each in seconds]),
        "tokens_per_second": _mean([result["tokens_per_second"] for result in results]),
        "peak_memory_gib": _mean([result["peak_memory_gib"] for result in results]),
        "parameters": _mean([result["parameters"] for result in results]),
    }


def _drift(runs: Sequence[FinishedRun]) -> Drifts | None:
    """How far rollouts drift, over seeds; ``None`` where not every run has measured it."""
    measured = [drift for run in runs if (drift := run.result.get("drift"))]
    if len(measured) < len(runs):
        return None
    return {
        way: {
            measure: [*_spread([dict(enumerate(each[way][measure])) for each in measured]).values()]
            for measure in measures
        }
        for way, measures in measured[0].items()
    }


def _vectors(runs: Sequence[FinishedRun]) -> dict[str, dict[str, Any]] | None:
    """What ``training/collapse.py`` measured of the item vectors, over seeds; ``None``: of none."""
    measured = [run.result.get("vectors") for run in runs]
    found = [each for each in measured if each]
    return _spread(found) if len(found) == len(runs) else None


def _time_limit(runs: Sequence[FinishedRun]) -> float | None:
    """``max_train_seconds`` if the training of a seed was validated after it had passed.

    Where training is cut, its last weights are validated at once, so that the curve tells.
    """
    for run in runs:
        limit, curve = run.settings.get("max_train_seconds"), run.result["learning_curve"]
        if limit is not None and any(point["seconds"] >= limit for point in curve):
            return float(limit)
    return None


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _mean_values(of_seeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.mean([each[key] for each in of_seeds], axis=0) for key in of_seeds[0]}


_ABSENT = object()


def _conditions(rows: Sequence[Row], given: Mapping[str, Any]) -> dict[str, Any]:
    """What rows share, and in what they differ; of each row the first finished run is looked at.

    Args:
        rows: of the comparison.
        given: settings that every run was given.

    Returns:
        ``protocol``; ``given``; ``shared`` settings, and ``differing`` ones by entry (a row without
        the key is left out); ``hardware`` and ``versions`` of all runs, each a list of ``entries``
        and the ``value`` that these have.
    """
    runs = [(row.entry, run) for row in rows for run in row.runs.values()]
    first = {entry: run.settings for entry, run in reversed(runs)}
    settings = {row.entry: first[row.entry] for row in rows if row.runs}
    keys = dict.fromkeys(key for each in settings.values() for key in each)
    shared, differing = {}, {}
    for key in keys:
        if key in (*IDENTITY, *WHEREABOUTS):
            continue
        values = [each.get(key, _ABSENT) for each in settings.values()]
        if all(value == values[0] for value in values):
            shared[key] = values[0]
        else:
            differing[key] = {entry: each[key] for entry, each in settings.items() if key in each}
    return {
        "protocol": runs[0][1].result["protocol"] if runs else None,
        "given": dict(given),
        "shared": shared,
        "differing": differing,
        "hardware": _gathered([(entry, run.result["hardware"]) for entry, run in runs]),
        "versions": _gathered([(entry, run.result["versions"]) for entry, run in runs]),
    }


def _gathered(facts: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Distinct values, each with the entries that have it."""
    found: list[dict[str, Any]] = []
    for entry, value in facts:
        same = next((each for each in found if each["value"] == value), None)
        if same is None:
            found.append(same := {"entries": [], "value": value})
        if entry not in same["entries"]:
            same["entries"].append(entry)
    return found
