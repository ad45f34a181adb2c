"""What a study writes for people: html pages that need no network, and tables in other formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.study import wording
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


def write_report(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write ``comparison.md``, ``.tex`` and ``.html``, each whole or not at all.

    Args:
        comparison: what ``comparison.json`` holds.
        folder: where to write.

    Raises:
        OSError: if a file cannot be written.
    """
    for kind, render in (("md", markdown), ("tex", latex), ("html", html)):
        with atomic_write(folder / f"comparison.{kind}", "w") as file:
            file.write(render(comparison))


def markdown(comparison: Mapping[str, Any]) -> str:
    """The tables as GitHub shows them."""
    return _environment(escape_markdown).get_template("comparison.md").render(_view(comparison))


def latex(comparison: Mapping[str, Any]) -> str:
    """The table of results for a paper that loads ``booktabs``."""
    environment = _environment(escape_latex, **TEX_SIGNS)
    return environment.get_template("comparison.tex").render(_view(comparison))


def html(comparison: Mapping[str, Any]) -> str:
    """The page of a comparison."""
    view = {**_view(comparison), "styles": styles(comparison)}
    return page("comparison.html", comparison_plots(comparison), view)


def page(template: str, plots: Sequence[Mapping[str, Any]], view: Mapping[str, Any]) -> str:
    """A page that needs no network.

    Args:
        template: that extends ``page.html``.
        plots: of ``figures.drawn``.
        view: what else the template reads.
    """
    environment = _environment(None, autoescape=True)
    return environment.get_template(template).render(view, plots=plots, plotly=get_plotlyjs())


def escape_markdown(value: Any) -> str:
    """Text that a cell of a GitHub table shows as it is."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", line).replace("&", "&amp;")


def escape_latex(value: Any) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(sign, sign) for sign in str(value))


def _environment(escape: Callable[[Any], str] | None, **options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("recbole_jepa4rec.study"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    for name in ("metric_name", "number", "spread", "amount", "percent", "p_value", "plain"):
        environment.filters[name] = getattr(wording, name)
    if escape:
        environment.filters["esc"] = escape
    return environment


def _view(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates read beside the comparison's own fields."""
    rows = comparison["rows"]
    return {
        "c": comparison,
        "labels": {row["entry"]: row["label"] for row in rows},
        "shown": [row for row in rows if "test" in row],
        "baselines": list(dict.fromkeys(test["baseline"] for test in comparison["tests"])),
        "tests": {(test["baseline"], test["metric"]): test for test in comparison["tests"]},
        "headline": wording.headline(comparison),
        "progress": wording.progress(comparison),
        "failures": wording.failures(comparison),
        "out_of_time": wording.out_of_time(comparison),
        "machines": wording.unequal_machines(comparison),
        "cost_columns": wording.COST,
        "alpha": wording.ALPHA,
    }
