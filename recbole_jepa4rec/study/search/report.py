"""``search.html``: the trials as a table and plots, in one file that needs no network."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.study import wording
from recbole_jepa4rec.study.search.board import Board
from recbole_jepa4rec.study.search.figures import figures
from recbole_jepa4rec.study.search.record import FAILED, STOPPED
from recbole_jepa4rec.study.search.request import Request
from recbole_jepa4rec.study.search.winner import metrics_on_test

REPORT_NAME = "search.html"


def write_report(request: Request, board: Board) -> None:
    """Write ``search.html``, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_write(request.folder / REPORT_NAME, "w") as file:
        file.write(html(request, board))


def html(request: Request, board: Board) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("recbole_jepa4rec.study"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    for name in ("metric_name", "number", "amount", "plain"):
        environment.filters[name] = getattr(wording, name)
    records = sorted(
        board.records.values(), key=lambda each: (each.score is None, -(each.score or 0.0))
    )
    return environment.get_template("search.html").render(
        records=records,
        best=board.best,
        keys=[each.key for each in request.space],
        metric=board.metric,
        counts=_counts(board),
        request=request,
        test=_test(request, board),
        plots=figures(request.space, records, board.metric),
        plotly=get_plotlyjs(),
    )


def _counts(board: Board) -> dict[str, int]:
    statuses = [each.status for each in board.records.values()]
    return {
        "all": len(statuses),
        "stopped": statuses.count(STOPPED),
        "failed": statuses.count(FAILED),
    }


def _test(request: Request, board: Board) -> dict[str, Any] | None:
    """Test metrics of the winner, once it has been tested."""
    return metrics_on_test(request, board.best) if board.best else None
