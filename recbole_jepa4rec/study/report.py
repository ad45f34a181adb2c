"""What a study writes for people: pages that need no network, and tables in other formats."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from plotly.offline import get_plotlyjs

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.study import wording
from recbole_jepa4rec.study.experiment import beside_paper, holds, pretraining_lines
from recbole_jepa4rec.study.figures import comparison_plots, styles

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
"""What stands for signs that LaTeX reads as commands."""

TEX_SIGNS = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}
"""Jinja's brackets in a file full of braces."""

BASIC = {"bar", "scatter"}
BASIC_PLOTLY = Path(__file__).parent / "templates" / "plotly-basic.min.js.gz"
"""Plotly's bundle for these traces, a quarter of the whole."""


def write_report(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write ``comparison.md``, ``.tex`` (for a paper that loads booktabs) and ``.html``.

    Args:
        comparison: what ``comparison.json`` holds.
        folder: where to write.

    Raises:
        OSError: if a file cannot be written; none is there in part.
    """
    view, look = _view(comparison), {"styles": styles(comparison)}
    texts = {
        "md": _template("comparison.md", escape_markdown).render(view),
        "tex": _template("comparison.tex", escape_latex, **TEX_SIGNS).render(view),
        "html": page("comparison.html", comparison_plots(comparison), {**view, **look}),
    }
    for kind, text in texts.items():
        with atomic_write(folder / f"comparison.{kind}", "w") as file:
            file.write(text)


def page(name: str, plots: Sequence[Mapping[str, Any]], view: Mapping[str, Any]) -> str:
    """A page that needs no network.

    Args:
        name: of a template that extends ``page.html``.
        plots: of ``figures.drawn``.
        view: what else the template reads.
    """
    template = _template(name, str, autoescape=True)
    kinds = {trace["type"] for plot in plots for trace in plot["figure"]["data"]}
    plotly = basic_plotly() if kinds <= BASIC else get_plotlyjs()
    return template.render(view, plots=plots, plotly=plotly)


def basic_plotly() -> str:
    """Plotly's bundle for bars and lines."""
    return gzip.decompress(BASIC_PLOTLY.read_bytes()).decode()


def escape_markdown(value: Any) -> str:
    """Text that a cell of a GitHub table shows as it is."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", line).replace("&", "&amp;")


def escape_latex(value: Any) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(sign, sign) for sign in str(value))


def _template(name: str, escape: Callable[[Any], str], **options: Any) -> Template:
    environment = Environment(
        loader=PackageLoader("recbole_jepa4rec.study"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters |= wording.FILTERS | {"esc": escape}
    return environment.get_template(name)


def _view(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates read beside the comparison's own fields."""
    rows, experiment = comparison["rows"], comparison.get("experiment")
    with_drift = [row for row in rows if row.get("drift")]
    steps = [len(next(iter(row["drift"]["text"].values()))) for row in with_drift]
    return {
        "c": comparison,
        "experiment": experiment,
        "beside_paper": beside_paper(comparison) if experiment else [],
        "pretraining": pretraining_lines(experiment) if experiment else [],
        "labels": {row["entry"]: row["label"] for row in rows},
        "by_entry": {row["entry"]: row for row in rows},
        "shown": [row for row in rows if "test" in row],
        "baselines": list(dict.fromkeys(test["baseline"] for test in comparison["tests"])),
        "tests": {(test["baseline"], test["metric"]): test for test in comparison["tests"]},
        "headline": [holds(comparison)] if experiment else wording.headline(comparison),
        "progress": wording.progress(comparison),
        "failures": wording.failures(comparison),
        "out_of_time": wording.out_of_time(comparison),
        "machines": wording.unequal_machines(comparison),
        "cost_columns": wording.COST,
        "with_vectors": [row for row in rows if row.get("vectors")],
        "vector_columns": wording.VECTORS,
        "with_drift": with_drift,
        "drift_steps": range(max(steps, default=0)),
        "drift_measures": wording.DRIFT,
        "alpha": wording.ALPHA,
    }
