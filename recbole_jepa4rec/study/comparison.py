"""The numbers of a comparison; every table and plot is a view of what this returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_jepa4rec.data.published import beside_published
from recbole_jepa4rec.study.conditions import conditions
from recbole_jepa4rec.study.finished_run import FinishedRun, refuse_mixture
from recbole_jepa4rec.study.row import Row
from recbole_jepa4rec.study.significance import bootstrap_means, holm, interval, p_better


def compare(
    rows: Sequence[Row],
    reference: str,
    dataset: str,
    given: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """Compare models.

    Args:
        rows: the models, in the order of the tables.
        reference: entry of the row that the others are compared with.
        dataset: name of the data set.
        given: settings that every run was given.
        command: what asked for the comparison.

    Returns:
        What ``comparison.json`` holds: ``rows`` (means, intervals, marks, groups, cost, curves),
        ``best_baseline``, ``improvement`` in percent, ``tests`` of the reference against each
        baseline, ``data`` beside the paper's, and the ``conditions`` that the rows share or not.

    Raises:
        ValueError: if runs differ in protocol, data, metrics, users or targets; names both.
    """
    runs = [run for row in rows for run in row.runs.values()]
    refuse_mixture(runs)
    head: dict[str, Any] = {
        "dataset": dataset,
        "command": command,
        "reference": reference,
        "seeds": list(rows[0].seeds),
        "users": len(runs[0].users) if runs else None,
        "metrics": list(runs[0].result["test"]) if runs else [],
        "valid_metric": runs[0].settings["valid_metric"].lower() if runs else None,
    }
    shown = [_row(row) for row in rows]
    _mark(shown, head["metrics"])
    tests = _intervals_and_tests(rows, shown, reference)
    best = _best_baseline(shown, reference, head["valid_metric"])
    by_entry = {each["entry"]: each for each in shown}
    return {
        **head,
        "best_baseline": best,
        "improvement": _improvement(by_entry[reference], by_entry[best]) if best else None,
        "rows": shown,
        "tests": tests,
        "data": _data(dataset, runs) if runs else None,
        "conditions": conditions(rows, given),
    }


def _row(row: Row) -> dict[str, Any]:
    """What is known of a row by itself."""
    facts: dict[str, Any] = {
        "entry": row.entry,
        "label": row.label,
        "status": row.status,
        "counts": row.counts,
        "seeds": list(row.runs),
        "errors": {str(seed): error for seed, error in row.errors.items()},
        "folders": [str(run.folder) for run in row.runs.values()],
    }
    if not row.runs:
        return facts
    facts["model"] = next(iter(row.runs.values())).result["model"]
    facts["valid"], facts["test"] = row.spread("valid"), row.spread("test")
    facts["groups"], facts["ranking"], facts["cost"] = row.groups(), row.ranking(), row.cost()
    facts["learning_curves"], facts["time_limit"] = row.learning_curves(), row.time_limit()
    return facts


def _mark(shown: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
    """Mark the best and the second mean of each metric on the test split; equals share a mark."""
    ranked = [row for row in shown if row["counts"]]
    for key in metrics:
        means = sorted({row["test"][key]["mean"] for row in ranked}, reverse=True)
        marks = dict(zip(means, ("best", "second"), strict=False))
        for row in shown:
            if "test" in row:
                mean = row["test"][key]["mean"]
                row["test"][key]["mark"] = marks.get(mean) if row["counts"] else None


def _intervals_and_tests(
    rows: Sequence[Row], shown: Sequence[dict[str, Any]], reference: str
) -> list[dict[str, Any]]:
    """Put an interval to each mean; test the reference against each baseline."""
    there = [(row, facts) for row, facts in zip(rows, shown, strict=True) if row.runs]
    if not there:
        return []
    metrics = list(there[0][0].user_values)
    values = np.array([[row.user_values[key] for key in metrics] for row, _ in there])
    flat = values.reshape(-1, values.shape[-1])
    drawn = bootstrap_means(flat).reshape(*values.shape[:2], -1)
    for (_, facts), of_row in zip(there, drawn, strict=True):
        for key, means in zip(metrics, of_row, strict=True):
            facts["test"][key]["interval"] = interval(means)

    ranked = {row.entry: index for index, (row, _) in enumerate(there) if row.counts}
    if reference not in ranked:
        return []
    mine = ranked.pop(reference)
    tests: list[dict[str, Any]] = [
        {
            "baseline": entry,
            "metric": key,
            "difference": float((values[mine, m] - values[other, m]).mean()),
            "interval": interval(drawn[mine, m] - drawn[other, m]),
            "p": p_better(values[mine, m], values[other, m]),
        }
        for entry, other in ranked.items()
        for m, key in enumerate(metrics)
    ]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return tests


def _best_baseline(
    shown: Sequence[dict[str, Any]], reference: str, valid_metric: str | None
) -> str | None:
    """The baseline of the best mean on validation, so that the test split chooses nothing."""
    ranked = {row["entry"]: row for row in shown if row["counts"]}
    if ranked.pop(reference, None) is None or not ranked:
        return None
    return max(ranked, key=lambda entry: ranked[entry]["valid"][valid_metric]["mean"])


def _improvement(
    reference: Mapping[str, Any], baseline: Mapping[str, Any]
) -> dict[str, float | None]:
    """Of the reference over the baseline on the test split, in percent; ``None`` over zero."""
    found: dict[str, float | None] = {}
    for key, theirs in baseline["test"].items():
        mine, other = reference["test"][key]["mean"], theirs["mean"]
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
