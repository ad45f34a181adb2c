"""What a comparison and a search give back to Python: their numbers, shown as tables."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.runner.run_result import RunResult
from recbole_jepa4rec.study.wording import failures, headline, metric_name

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


class Comparison(dict[str, Any]):
    """What ``comparison.json`` holds.

    Attributes:
        folder: where it stands, with ``comparison.html``, ``.md``, ``.tex`` and the runs.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(json.loads((folder / "comparison.json").read_text(encoding="utf-8")))
        self.folder = folder

    def to_frame(self, split: str = "test") -> pd.DataFrame:
        """Mean of every metric over the seeds: a row for each model, a column for each metric.

        Args:
            split: ``test`` or ``valid``.
        """
        import pandas as pd

        rows = [row for row in self["rows"] if split in row]
        means = [{key: value["mean"] for key, value in row[split].items()} for row in rows]
        return pd.DataFrame(means, pd.Index([row["label"] for row in rows], name="model"))

    def runs(self) -> list[RunResult]:
        """Every finished run, by model and seed."""
        folders = [folder for row in self["rows"] for folder in row["folders"]]
        return [RunResult.read(Path(folder) / "result.json") for folder in folders]

    def plot(self, title: str | None = None) -> go.Figure:
        """A figure of the page, for plotly.

        Args:
            title: of the figure, such as ``NDCG@10``, ``Learning curves`` or ``Cold and warm
                targets``; by default the metric that selects models.

        Raises:
            ValueError: if there is no such figure.
        """
        import plotly.graph_objects as go

        from recbole_jepa4rec.study.figures import comparison_plots

        plots = {plot["title"]: plot["figure"] for plot in comparison_plots(self)}
        title = title or metric_name(self["valid_metric"])
        if title not in plots:
            raise ValueError(f"there is no figure {title!r}; allowed: {', '.join(plots)}")
        figure = go.Figure(plots[title])
        named = len(figure.data) > 1
        return figure.update_layout(title=title, margin_t=48, template="plotly", showlegend=named)

    def __repr__(self) -> str:
        return f"{self._says()}\n{self.to_frame().round(4).to_string()}\n{self._page()}"

    def _repr_html_(self) -> str:
        table = self.to_frame().round(4)
        says = html.escape(self._says())
        return f"<p>{says}</p>{table.to_html()}<small>{html.escape(self._page())}</small>"

    def _says(self) -> str:
        return " ".join([*headline(self), *failures(self)])

    def _page(self) -> str:
        return f"page: {self.folder / 'comparison.html'}"


class Search:
    """A finished search.

    Attributes:
        folder: where it stands, with ``search.html``, ``trials.csv`` and ``best.yaml``.
        best: settings of the best trial, with what every trial was given.
        result: of the winner, trained again and tested.
    """

    def __init__(self, folder: Path, result: RunResult) -> None:
        self.folder, self.result = folder, result
        self.best: dict[str, Any] = read_yaml(folder / "best.yaml")

    def to_frame(self) -> pd.DataFrame:
        """Every trial, as in ``trials.csv``: status, score, settings."""
        import pandas as pd

        return pd.read_csv(self.folder / "trials.csv", index_col="trial", dtype={"trial": str})

    def __repr__(self) -> str:
        return f"{self._says()}\n{self.result!r}"

    def _repr_html_(self) -> str:
        trials = self.to_frame().dropna(axis="columns", how="all").to_html()
        return f"<p>{html.escape(self._says())}</p>{trials}{self.result._repr_html_()}"

    def _says(self) -> str:
        best = ", ".join(f"{key}={value}" for key, value in self.best.items())
        return f"Best of {len(self.to_frame())} trials on validation: {best}"
