"""The plots of a comparison, as plotly figures without colours of their own for text and grid."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from recbole_jepa4rec.study.wording import metric_name, number

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

WIDE = 20
"""A ratio of times above which their axis is logarithmic."""


FONT_SIZE = 12.5


def styles(comparison: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Colour, symbol and its sign of each entry; the reference has the first of each."""
    entries = [row["entry"] for row in comparison["rows"]]
    entries.sort(key=lambda entry: entry != comparison["reference"])
    names = [*SYMBOLS]
    found = {}
    for i, entry in enumerate(entries):
        symbol = names[(i + i // len(COLORS)) % len(names)]
        found[entry] = {
            "color": COLORS[i % len(COLORS)],
            "symbol": symbol,
            "sign": SYMBOLS[symbol],
        }
    return found


def figures(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every plot of which there is something to draw.

    Returns:
        For each plot an ``id``, a ``title``, a ``caption`` and the ``figure``: plotly's ``data``
        and ``layout``. Each trace holds the entries of the rows that it draws in ``meta``.
    """
    rows = [row for row in comparison["rows"] if "test" in row]
    if not rows:
        return []
    style = styles(comparison)
    drawn = [
        *(_metric_bars(rows, style, key) for key in comparison["metrics"]),
        _quality_against_seconds(rows, style, comparison["valid_metric"]),
        _learning_curves(rows, style, comparison["valid_metric"]),
        _recall_curve(rows, style),
        _groups(rows, style),
    ]
    return [
        {**each, "id": f"plot-{i}", "figure": json.loads(each["figure"].to_json())}
        for i, each in enumerate(drawn)
        if each["figure"].data
    ]


def _metric_bars(
    rows: Sequence[Mapping[str, Any]], style: Mapping[str, Mapping[str, str]], key: str
) -> dict[str, Any]:
    """Means with 95 % intervals over users."""
    means = [row["test"][key]["mean"] for row in rows]
    bounds = [row["test"][key]["interval"] for row in rows]
    bar = go.Bar(
        x=means,
        y=[_wrapped(row["label"]) for row in rows],
        orientation="h",
        width=0.62,
        marker={"color": [style[row["entry"]]["color"] for row in rows]},
        error_x={
            "type": "data",
            "array": [high - mean for mean, (_, high) in zip(means, bounds, strict=True)],
            "arrayminus": [mean - low for mean, (low, _) in zip(means, bounds, strict=True)],
            "thickness": 1.5,
            "width": 4,
        },
        customdata=[f"{number(low)} to {number(high)}" for low, high in bounds],
        hovertemplate="%{y}<br>%{x:.4f} (%{customdata})<extra></extra>",
        meta=[row["entry"] for row in rows],
    )
    name = metric_name(key)
    figure = figure_of([bar], height=44 + 34 * len(rows))
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_yaxes(ticks="outside", ticklen=6, tickcolor="rgba(0,0,0,0)")  # a gap
    figure.update_xaxes(rangemode="tozero", nticks=6)
    return {
        "title": name,
        "caption": "Mean on the test split; lines are 95 % intervals over users.",
        "figure": figure,
    }


def _quality_against_seconds(
    rows: Sequence[Mapping[str, Any]], style: Mapping[str, Mapping[str, str]], key: str
) -> dict[str, Any]:
    """The test metric against the seconds of training."""
    seconds = [max(row["cost"]["train_seconds"], LEAST_SECONDS) for row in rows]
    traces = [
        go.Scatter(
            x=[x],
            y=[row["test"][key]["mean"]],
            mode="markers",
            cliponaxis=False,
            name=_escaped(row["label"]),
            marker={**_marker(style[row["entry"]]), "size": 13},
            hovertemplate="%{fullData.name}<br>%{x:.3~g} s, %{y:.4f}<extra></extra>",
            meta=[row["entry"]],
        )
        for row, x in zip(rows, seconds, strict=True)
    ]
    span = max(seconds) / min(seconds)
    figure = figure_of(traces, x="seconds of training", y=metric_name(key))
    if span > WIDE:
        figure.update_xaxes(type="log", tickformat="~g", dtick=1 if span > 300 else "D2")
    figure.update_yaxes(rangemode="tozero")
    note = f" Less than {LEAST_SECONDS} s is drawn as {LEAST_SECONDS} s."
    return {
        "title": "Quality against time",
        "caption": f"{metric_name(key)} on the test split, means over the seeds."
        + (note if LEAST_SECONDS in seconds else ""),
        "figure": figure,
    }


def _learning_curves(
    rows: Sequence[Mapping[str, Any]], style: Mapping[str, Mapping[str, str]], key: str
) -> dict[str, Any]:
    """Validation during training: for each seed a line, and another for its pre-training."""
    traces = [
        go.Scatter(
            x=[point["seconds"] for point in points],
            y=[point["valid"] for point in points],
            mode="lines+markers",
            cliponaxis=False,
            name=_escaped(f"{row['label']}, seed {curve['seed']}"),
            marker={**_marker(style[row["entry"]]), "size": 7},
            line={"dash": "dot" if pretrains else "solid", "width": 2},
            customdata=[point["stage"] for point in points],
            hovertemplate="%{fullData.name}<br>%{customdata}, %{x:.3~g} s: %{y:.4f}<extra></extra>",
            meta=[row["entry"]],
        )
        for row in rows
        for curve in row["learning_curves"]
        for pretrains in (True, False)
        if (points := [p for p in curve["points"] if (p["stage"] == "pretrain") == pretrains])
    ]
    figure = figure_of(
        traces, x="seconds since training began", y=f"{metric_name(key)}, validation"
    )
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return {
        "title": "Learning curves",
        "caption": f"{metric_name(key)} on validation, a line for each seed. "
        "Pre-training, which is validated on held-out users, is dotted.",
        "figure": figure,
    }


def _recall_curve(
    rows: Sequence[Mapping[str, Any]], style: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """How many targets are among the first k."""
    traces = [
        go.Scatter(
            x=row["ranking"]["k"],
            y=row["ranking"]["recall"],
            mode="lines",
            name=_escaped(row["label"]),
            line={"color": style[row["entry"]]["color"], "width": 2},
            hovertemplate="%{fullData.name}<br>Recall@%{x}: %{y:.4f}<extra></extra>",
            meta=[row["entry"]],
        )
        for row in rows
    ]
    figure = figure_of(traces, x="k, items", y="Recall@k")
    figure.update_xaxes(type="log", tickformat="~g", dtick=1)
    figure.update_yaxes(range=[0, 1.02])
    return {
        "title": "Where the targets rank",
        "caption": "Share of users whose target is among the first k items.",
        "figure": figure,
    }


def _groups(
    rows: Sequence[Mapping[str, Any]], style: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """NDCG@10 by how often the target was seen in training."""
    names = [
        f"{g['name'].removeprefix('seen ').removesuffix(' seen')}<br>{g['users']:,} users"
        for g in rows[0]["groups"]
    ]
    traces = [
        go.Bar(
            x=names,
            y=[group["ndcg@10"] for group in row["groups"]],
            name=_escaped(row["label"]),
            marker={"color": style[row["entry"]]["color"]},
            hovertemplate="%{fullData.name}<br>%{x}<br>%{y:.4f}<extra></extra>",
            meta=[row["entry"]],
        )
        for row in rows
    ]
    figure = figure_of(traces, x="target seen in training", y="NDCG@10")
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.1)
    figure.update_xaxes(showgrid=False, tickangle=0)
    return {
        "title": "Cold and warm targets",
        "caption": "Users by how often their target occurs in the training part.",
        "figure": figure,
    }


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


def _marker(style: Mapping[str, str]) -> dict[str, str]:
    return {"color": style["color"], "symbol": style["symbol"]}


def _escaped(label: str) -> str:
    """A label that plotly, which reads some HTML, shows as it is."""
    return html.escape(label, quote=False)


def _wrapped(label: str) -> str:
    """A long label in two lines, cut before a bracket."""
    return _escaped(label).replace(" (", "<br>(")
