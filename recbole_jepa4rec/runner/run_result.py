"""What a run gives back to Python: its ``result.json``, shown as a table."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from recbole_jepa4rec.runner.recommender import Recommender


class RunResult(dict[str, Any]):
    """What ``result.json`` of a run holds, and its ``path``."""

    @classmethod
    def read(cls, file: str | Path) -> RunResult:
        """That of a finished run, by its ``result.json``."""
        return cls({**json.loads(Path(file).read_text(encoding="utf-8")), "path": str(file)})

    @property
    def folder(self) -> Path:
        """Where the run stands."""
        return Path(self["path"]).parent

    def load(self, **settings: Any) -> Recommender:
        """The trained model, ready to recommend; see ``recbole_jepa4rec.load``."""
        from recbole_jepa4rec.runner.recommender import load

        return load(self.folder, **settings)

    def to_frame(self) -> pd.DataFrame:
        """Every metric on validation and on the test split, by metric."""
        import pandas as pd

        return pd.DataFrame({split: self[split] for split in ("valid", "test")})

    def __repr__(self) -> str:
        return f"{heading(self)}\n{self.to_frame().round(4).to_string()}\n{self._cost()}"

    def _repr_html_(self) -> str:
        title, cost = html.escape(heading(self)), html.escape(self._cost())
        return f"<b>{title}</b>{self.to_frame().round(4).to_html()}<small>{cost}</small>"

    def _cost(self) -> str:
        return f"{self['epochs']} epochs, {self['seconds']['total']:,.0f} s; {self.folder}"


def heading(result: Mapping[str, Any]) -> str:
    """What a run is called above its metrics."""
    return f"{result['label']} on {result['dataset']}, seed {result['seed']}"
