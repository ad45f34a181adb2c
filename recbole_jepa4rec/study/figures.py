"""Plots as plotly figures without colours of their own for text and grid; those of a comparison."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from recbole_jepa4rec.study.wording import DRIFT, metric_name, number

COLORS = (
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6d46",
    "#7a6fd0",
    "#7f8790",
    "#a3a500",
)
"""Okabe and Ito's colours less black and yellow, and four more: clear on white and near-black."""

SYMBOLS = {
    "circle": "●",
    "square": "■",
    "triangle-up": "▲",
    "diamond": "◆",
    "triangle-down": "▼",
    "cross": "✚",
    "x": "✖",
    "star": "★",
    "triangle-left": "◀",
    "triangle-right": "▶",
}
"""Plotly's names and a sign that looks alike; colour alone is not enough for everybody."""

LEAST_SECONDS = 0.1
"""Shorter training is drawn here, since a logarithmic axis has no zero."""

DASHES = ("solid", "dash", "dot", "longdash", "dashdot")
"""Of the lines of one row."""

WIDE = 20
"""A ratio of times above which their axis is logarithmic."""

FONT_SIZE = 12.5

OUTLINE = {"color": "#202428", "width": 1.5}
"""Of what is white."""

TICKS_AS_GAP = {"ticks": "outside", "ticklen": 6, "tickcolor": "rgba(0,0,0,0)"}
"""Of an axis whose labels would stand too near to the bars."""

Rows = Sequence[Mapping[str, Any]]
"""Rows of a comparison that have results, each with its ``style``."""


@dataclass(frozen=True)
class Plot:
    """A plot of a page.

    Attributes:
        title: above it.
        caption: what it shows.
        figure: to draw.
        wide: whether it takes the page's whole width.
    """

    title: str
    caption: str
    figure: go.Figure
    wide: bool = False


def drawn(plots: Iterable[Plot]) -> list[dict[str, Any]]:
    """Plots of which there is something to draw, as pages read them.

    Returns:
        For each plot an ``id``, its ``title``, ``caption``, ``wide`` and the ``figure``: plotly's
        ``data`` and ``layout``.
    """
    return [
        {
            "id": f"plot-{i}",
            "title": plot.title,
            "caption": plot.caption,
            "wide": plot.wide,
            "figure": json.loads(plot.figure.to_json()),
        }
        for i, plot in enumerate(plots)
        if plot.figure.data
    ]


def figure_of(traces: Sequence[Any], x: str = "", y: str = "", height: int = 360) -> go.Figure:
    """Traces in the look of every report: no background of its own, titled axes."""
    figure = go.Figure(list(traces))
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 14, "t": 8, "b": 8},
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        font={"size": FONT_SIZE},
    )
    for update, title in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        update(automargin=True, zeroline=False)
        if title:
            update(title={"text": title, "standoff": 10, "font": {"size": FONT_SIZE}})
    return figure


def styles(comparison: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Colour, symbol and its sign of each entry, the same of those on one line of an experiment.

    The reference has the first of each.
    """
    entries = [row["entry"] for row in comparison["rows"]]
    entries.sort(key=lambda entry: entry != comparison["reference"])
    experiment = comparison.get("experiment")
    lines = experiment["rows"] if experiment and experiment["axis"] else {}
    kinds = {entry: lines[entry]["series"] if lines else entry for entry in entries}
    names, found = [*SYMBOLS], {}
    for i, kind in enumerate(dict.fromkeys(kinds.values())):
        symbol = names[(i + i // len(COLORS)) % len(names)]
        found[kind] = {
            "color": COLORS[i % len(COLORS)],
            "symbol": symbol,
            "sign": SYMBOLS[symbol],
        }
    return {entry: found[kind] for entry, kind in kinds.items()}


def comparison_plots(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every plot of a comparison; each trace holds the entries of the rows it draws in ``meta``."""
    style, key = styles(comparison), comparison["valid_metric"]
    experiment = comparison.get("experiment") or {"axis": None, "rows": {}}
    rows = [
        {**row, "style": style[row["entry"]], **experiment["rows"].get(row["entry"], {})}
        for row in comparison["rows"]
        if "test" in row
    ]
    if not rows:
        return []
    axis, on_line = experiment["axis"], set(comparison["user_metrics"])
    return drawn(
        [
            *(
                _curve(rows, metric, axis)
                if axis and metric in on_line
                else _metric_bars(rows, metric)
                for metric in comparison["metrics"]
            ),
            _quality_against_seconds(rows, key),
            _learning_curves(rows, key),
            _recall_curve(rows),
            _groups(rows),
            *(_drift(rows, measure, title) for measure, title in DRIFT.items()),
        ]
    )


def _metric_bars(rows: Rows, key: str) -> Plot:
    """Means, with 95 % intervals over users where each user has the metric."""
    means = [row["test"][key]["mean"] for row in rows]
    bounds = [row["test"][key]["interval"] for row in rows]
    options: dict[str, Any] = {"hovertemplate": "%{y}<br>%{x:.4f}<extra></extra>"}
    caption = "Of what all users together are recommended on the test split."
    if None not in bounds:
        caption = "Mean on the test split; lines are 95 % intervals over users."
        options = {
            "error_x": {
                "type": "data",
                "array": [high - mean for mean, (_, high) in zip(means, bounds, strict=True)],
                "arrayminus": [mean - low for mean, (low, _) in zip(means, bounds, strict=True)],
                "thickness": 1.5,
                "width": 4,
            },
            "customdata": [f"{number(low)} to {number(high)}" for low, high in bounds],
            "hovertemplate": "%{y}<br>%{x:.4f} (%{customdata})<extra></extra>",
        }
    bar = go.Bar(
        x=means,
        y=[_escaped(row["label"]).replace(" (", "<br>(") for row in rows],  # in two lines
        orientation="h",
        width=0.62,
        marker={"color": [row["style"]["color"] for row in rows]},
        meta=[row["entry"] for row in rows],
        **options,
    )
    figure = figure_of(
        [bar, *_published(rows, key, bar.y, upright=False)], height=44 + 34 * len(rows)
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, **TICKS_AS_GAP)
    figure.update_xaxes(rangemode="tozero", nticks=5, tickangle=0)
    return Plot(metric_name(key), caption, figure)


def _published(rows: Rows, key: str, places: Sequence[Any], upright: bool) -> list[Any]:
    """The paper's figures of these rows, as diamonds: white on bars, open beside lines.

    Args:
        rows: of the plot.
        key: of the metric.
        places: of the rows on the other axis.
        upright: whether the metric is read on the y axis.
    """
    known = [
        (place, row["published"][key], row["entry"], row["style"]["color"])
        for row, place in zip(rows, places, strict=True)
        if key in (row.get("published") or {})
    ]
    if not known:
        return []
    places, values, entries, colors = map(list, zip(*known, strict=True))
    x, y, value = (places, values, "y") if upright else (values, places, "x")
    marker: dict[str, Any] = {"symbol": "diamond", "color": "white", "size": 9, "line": OUTLINE}
    if upright:
        marker = {"symbol": "diamond-open", "color": colors, "size": 12, "line": {"width": 2}}
    return [
        go.Scatter(
            x=x,
            y=y,
            mode="markers",
            cliponaxis=False,
            showlegend=True,
            name="in the paper",
            marker=marker,
            meta=[*entries, ""],  # two at least: these are dimmed, not hidden
            hovertemplate=f"%{{{value}:.4f}} in the paper<extra></extra>",
        )
    ]


def _curve(rows: Rows, key: str, axis: Mapping[str, Any]) -> Plot:
    """A metric against what an experiment varies, a line for each model."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["x"]):
        lines.setdefault(row["series"], []).append(row)
    traces = []
    for name, points in lines.items():
        means = [row["test"][key]["mean"] for row in points]
        bounds = [row["test"][key]["interval"] for row in points]
        error = {
            "type": "data",
            "array": [high - mean for mean, (_, high) in zip(means, bounds, strict=True)],
            "arrayminus": [mean - low for mean, (low, _) in zip(means, bounds, strict=True)],
            "thickness": 1.2,
            "width": 4,
            "color": points[0]["style"]["color"],
        }
        traces.append(
            go.Scatter(
                x=[row["x"] for row in points],
                y=means,
                mode="lines+markers",
                name=_escaped(name),
                cliponaxis=False,
                error_y=error,
                marker={**_marker(points[0]), "size": 9},
                line={"width": 2, "color": points[0]["style"]["color"]},
                meta=[row["entry"] for row in points],
                hovertemplate="%{fullData.name}, %{x}: %{y:.4f}<extra></extra>",
            )
        )
    traces += _published(rows, key, [row["x"] for row in rows], upright=True)
    figure = figure_of(traces, x=axis["title"], y=metric_name(key), height=340)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.12})
    values = [x for x in axis["values"] if x > 0]
    if max(values) / min(values) > WIDE:
        figure.update_xaxes(type="log")
    figure.update_xaxes(tickvals=axis["values"], ticktext=[f"{x:g}" for x in axis["values"]])
    figure.update_yaxes(rangemode="tozero")
    caption = f"By {axis['title']}: mean on the test split, with 95 % intervals over users."
    return Plot(metric_name(key), caption, figure)


def _quality_against_seconds(rows: Rows, key: str) -> Plot:
    """The test metric against the seconds of training."""
    seconds = [max(row["cost"]["train_seconds"], LEAST_SECONDS) for row in rows]
    traces = [
        go.Scatter(
            x=[x],
            y=[row["test"][key]["mean"]],
            mode="markers",
            cliponaxis=False,
            marker={**_marker(row), "size": 13},
            **_named(row, "%{x:.3~g} s, %{y:.4f}"),
        )
        for row, x in zip(rows, seconds, strict=True)
    ]
    span = max(seconds) / min(seconds)
    figure = figure_of(traces, x="seconds of training", y=metric_name(key))
    if span > WIDE:
        figure.update_xaxes(type="log", tickformat="~g", dtick=1 if span > 300 else "D2")
    figure.update_yaxes(rangemode="tozero")
    caption = f"{metric_name(key)} on the test split, means over the seeds."
    if LEAST_SECONDS in seconds:
        caption += f" Less than {LEAST_SECONDS} s is drawn as {LEAST_SECONDS} s."
    return Plot("Quality against time", caption, figure)


def _learning_curves(rows: Rows, key: str) -> Plot:
    """Validation during training: for each seed a line, and another for its pre-training."""
    traces = [
        go.Scatter(
            x=[point["seconds"] for point in points],
            y=[point["valid"] for point in points],
            mode="lines+markers",
            cliponaxis=False,
            marker={**_marker(row), "size": 7},
            line={"dash": "dot" if pretrains else "solid", "width": 2},
            customdata=[point["stage"] for point in points],
            **_named(row, "%{customdata}, %{x:.3~g} s: %{y:.4f}", f", seed {curve['seed']}"),
        )
        for row in rows
        for curve in row["learning_curves"]
        for pretrains in (True, False)
        if (points := [p for p in curve["points"] if (p["stage"] == "pretrain") == pretrains])
    ]
    name = metric_name(key)
    figure = figure_of(traces, x="seconds since training began", y=f"{name}, validation")
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    caption = (
        f"{name} on validation, a line for each seed. "
        "Pre-training, which is validated on held-out users, is dotted."
    )
    return Plot("Learning curves", caption, figure)


def _recall_curve(rows: Rows) -> Plot:
    """How many targets are among the first k."""
    traces = [
        go.Scatter(
            x=row["ranking"]["k"],
            y=row["ranking"]["recall"],
            mode="lines",
            line={"color": row["style"]["color"], "width": 2},
            **_named(row, "Recall@%{x}: %{y:.4f}"),
        )
        for row in rows
    ]
    figure = figure_of(traces, x="k, items", y="Recall@k")
    figure.update_xaxes(type="log", tickformat="~g", dtick=1)
    figure.update_yaxes(range=[0, 1.02])
    caption = "Share of users whose target is among the first k items."
    return Plot("Where the targets rank", caption, figure)


def _drift(rows: Rows, measure: str, title: str) -> Plot:
    """What each way to feed back gives at each step of a rollout."""
    drifting = [row for row in rows if row.get("drift")]
    traces = [
        go.Scatter(
            x=[*range(1, 1 + len(measures[measure]))],
            y=[step["mean"] for step in measures[measure]],
            mode="lines+markers",
            cliponaxis=False,
            marker={**_marker(row), "size": 7},
            line={"dash": dash, "width": 2, "color": row["style"]["color"]},
            name=way,
            showlegend=row is drifting[0],
            customdata=[_escaped(row["label"])] * len(measures[measure]),
            hovertemplate="%{customdata}<br>%{fullData.name}, step %{x}: %{y:.4f}<extra></extra>",
            meta=[row["entry"]],
        )
        for row in drifting
        for dash, (way, measures) in zip(DASHES, row["drift"].items(), strict=False)
    ]
    figure = figure_of(traces, x="step of the rollout", y=title)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.2})
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(rangemode="tozero")
    caption = "Means over the seeds at each step of a rollout; dashes tell what is fed back."
    return Plot(f"Drift: {title}", caption, figure)


def _groups(rows: Rows) -> Plot:
    """NDCG@10 by how often the target was seen in training."""
    names = [
        f"{g['name'].removeprefix('seen ').removesuffix(' seen')}<br>{g['users']:,} users"
        for g in rows[0]["groups"]
    ]
    traces = [
        go.Bar(
            x=names,
            y=[group["ndcg@10"] for group in row["groups"]],
            marker={"color": row["style"]["color"]},
            **_named(row, "%{x}<br>%{y:.4f}"),
        )
        for row in rows
    ]
    figure = figure_of(traces, x="target seen in training", y="NDCG@10")
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.1)
    figure.update_xaxes(showgrid=False, tickangle=0)
    caption = "Users by how often their target occurs in the training part."
    return Plot("Cold and warm targets", caption, figure)


def _named(row: Mapping[str, Any], hover: str, more: str = "") -> dict[str, Any]:
    """What a trace of one row is called, and says under the pointer."""
    return {
        "name": _escaped(row["label"] + more),
        "hovertemplate": f"%{{fullData.name}}<br>{hover}<extra></extra>",
        "meta": [row["entry"]],
    }


def _marker(row: Mapping[str, Any]) -> dict[str, str]:
    return {"color": row["style"]["color"], "symbol": row["style"]["symbol"]}


def _escaped(label: str) -> str:
    """A label that plotly, which reads some HTML, shows as it is."""
    return html.escape(label, quote=False)
