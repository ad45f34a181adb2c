"""What a search writes: the trials as a table and as a page with plots, and the best settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.base.yaml_files import as_yaml
from recbole_jepa4rec.study.figures import FONT_SIZE, TICKS_AS_GAP, Plot, drawn, figure_of
from recbole_jepa4rec.study.report import page
from recbole_jepa4rec.study.search.request import Request
from recbole_jepa4rec.study.search.space import Dimension
from recbole_jepa4rec.study.search.trials import FAILED, STOPPED, Record, best_of, write_table
from recbole_jepa4rec.study.wording import metric_name, plain

LEAST_TRIALS = 4
"""Fewer say nothing about what mattered."""

ROUGH_BELOW = 20
"""Trials below which the importances are called rough."""

FEW_EPOCHS = 12
"""Up to so many, each has a tick of its own."""

BEST_COLOR, OTHER_COLOR, SCALE = "#d55e00", "#8a9199", "Viridis"
REPEATS = 20


def write_report(request: Request, records: Mapping[str, Record]) -> None:
    """Write ``trials.csv``, ``search.html`` and, once there is a best trial, ``best.yaml``.

    Raises:
        OSError: if a file cannot be written.
    """
    folder, metric = request.folder, request.metric
    write_table(folder / "trials.csv", records, metric)
    if best := best_of(records):
        with atomic_write(folder / "best.yaml", "w") as file:
            file.write(
                f"# Trial {best.name}, the best of {len(records)} by {metric} on validation: "
                f"{best.score:.4f}.\n"
            )
            settings = {**request.given, **best.point}
            file.write(as_yaml(settings))
    with atomic_write(folder / "search.html", "w") as file:
        file.write(html(request, records))


def html(request: Request, records: Mapping[str, Record]) -> str:
    """The page."""
    ordered = sorted(records.values(), key=lambda each: (each.score is None, -(each.score or 0.0)))
    statuses = [each.status for each in ordered]
    best = best_of(records)
    winner = request.winner(best.point).run_asked_for() if best else None
    view = {
        "records": ordered,
        "best": best,
        "keys": [each.key for each in request.space],
        "metric": request.metric,
        "stopped": statuses.count(STOPPED),
        "failed": statuses.count(FAILED),
        "request": request,
        "test": winner.result["test"] if winner else None,
    }
    return page("search.html", drawn(_plots(request.space, ordered, request.metric)), view)


def _plots(space: Sequence[Dimension], records: Sequence[Record], metric: str) -> Iterator[Plot]:
    """Every plot of which there is something to draw; ``records`` begins with the best."""
    scored = [record for record in records if record.score is not None]
    if scored:
        yield _parallel(space, scored, metric)
        if len(scored) >= LEAST_TRIALS:
            yield _importance(space, scored)
        yield _learning_curves(scored, metric)


def importances(space: Sequence[Dimension], records: Sequence[Record]) -> dict[str, float]:
    """How much each setting matters for the score, as shares that add up to 1.

    A random forest (Breiman 2001) predicts the score from the settings; the importance of one is
    the error that shuffling its column adds.

    Args:
        space: what varied.
        records: trials with a score.
    """
    columns = np.array([_positions(each, records) for each in space]).T
    scores = np.array([record.score for record in records])
    forest = RandomForestRegressor(n_estimators=200, random_state=0).fit(columns, scores)
    found = permutation_importance(forest, columns, scores, n_repeats=REPEATS, random_state=0)
    raw = np.clip(found.importances_mean, 0.0, None)
    total = raw.sum()
    shares = raw / total if total > 0 else np.zeros(len(raw))
    return {each.key: float(share) for each, share in zip(space, shares, strict=True)}


def _positions(dimension: Dimension, records: Sequence[Record]) -> list[float]:
    """Where each trial stands on an axis: a number, its logarithm, or the number of a choice."""
    values = [record.point[dimension.key] for record in records]
    if dimension.kind == "loguniform":
        return [float(np.log10(value)) for value in values]
    if dimension.kind != "choice":
        return [float(value) for value in values]
    choices = [*map(repr, dimension.values)]
    return [float(choices.index(repr(value))) for value in values]


def _axis(dimension: Dimension, records: Sequence[Record]) -> dict[str, Any]:
    positions = _positions(dimension, records)
    axis: dict[str, Any] = {"label": dimension.key, "values": positions}
    if dimension.kind == "choice":
        count = len(dimension.values)
        texts = [plain(value) for value in dimension.values]
        return {**axis, "tickvals": [*range(count)], "ticktext": texts, "range": [0, count - 1]}
    low, high = dimension.values[:2]
    if dimension.kind != "loguniform":
        return {**axis, "range": [float(low), float(high)]}
    ticks = np.linspace(np.log10(low), np.log10(high), 5)
    texts = [f"{10**tick:.2g}" for tick in ticks]
    return {
        **axis,
        "tickvals": ticks.tolist(),
        "ticktext": texts,
        "range": [float(ticks[0]), float(ticks[-1])],
    }


def _parallel(space: Sequence[Dimension], records: Sequence[Record], metric: str) -> Plot:
    """Parallel coordinates: each trial is a line through its settings to its score."""
    scores = [record.score for record in records]
    name = metric_name(metric)
    trace = go.Parcoords(
        dimensions=[*(_axis(each, records) for each in space), {"label": name, "values": scores}],
        line={"color": scores, "colorscale": SCALE, "showscale": len({*scores}) > 1},
        labelfont={"size": FONT_SIZE},
        labelangle=-25,  # names are long, and axes stand close
    )
    figure = figure_of([trace], height=430)
    figure.update_layout(margin={"l": 70, "r": 40, "t": 100, "b": 24})
    caption = (
        f"A line is a trial; its colour is its best {name} on validation."
        " Drag along an axis to single trials out."
    )
    return Plot("Settings and score", caption, figure, wide=True)


def _importance(space: Sequence[Dimension], records: Sequence[Record]) -> Plot:
    """Bars of the importances, the longest on top."""
    found = sorted(importances(space, records).items(), key=lambda pair: pair[1])
    bar = go.Bar(
        x=[share for _, share in found],
        y=[key for key, _ in found],
        orientation="h",
        marker={"color": "#0072b2"},
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    )
    figure = figure_of([bar], height=60 + 30 * len(space), x="share")
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(showgrid=False, **TICKS_AS_GAP)
    caption = (
        "Error that shuffling a setting adds to a random forest which predicts the score, "
        "as a share of all."
    )
    if len(records) < ROUGH_BELOW:
        caption += f" With {len(records)} trials this is rough."
    return Plot("What mattered", caption, figure)


def _learning_curves(records: Sequence[Record], metric: str) -> Plot:
    """Validation after each epoch, the best trial on top."""
    best = records[0]
    traces = [
        go.Scatter(
            x=[point["epoch"] for point in record.learning_curve],
            y=[point["valid"] for point in record.learning_curve],
            mode="lines+markers",
            name=f"trial {record.name}",
            line={"color": BEST_COLOR, "width": 2.5}
            if record is best
            else {"color": OTHER_COLOR, "width": 1.2},
            marker={"size": 5},
            hovertemplate="%{fullData.name}<br>epoch %{x}: %{y:.4f}<extra></extra>",
        )
        for record in reversed(records)
    ]
    name = metric_name(metric)
    figure = figure_of(traces, x="epoch", y=f"{name}, validation")
    figure.update_yaxes(rangemode="tozero")
    last = max(point["epoch"] for record in records for point in record.learning_curve)
    figure.update_xaxes(tickformat="d", dtick=1 if last <= FEW_EPOCHS else None)
    caption = f"{name} on validation; the best trial ({best.name}) is the thick line."
    return Plot("Learning curves", caption, figure)
