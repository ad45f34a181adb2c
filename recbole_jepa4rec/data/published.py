"""The statistics of a data set beside those printed in the paper (Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml

TABLE = "published_statistics.yaml"
COUNTS = ("users", "items", "interactions")


def beside_published(dataset: str, statistics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compare statistics with the paper's.

    Args:
        dataset: name of the data set's folder.
        statistics: ``users``, ``items``, ``interactions``, ``average_length``, ``density``.

    Returns:
        ``name`` in the paper, its ``statistics``, the ``relative`` difference of each
        (0.1: ours is 10 % more), a ``note`` on the paper's row or ``None``, and ``warning``: a line
        if the counts differ, else ``None``. ``None`` if the paper has no such data set.
    """
    known = dataset.lower().replace("_", "-")
    for name, row in read_yaml(find_properties() / TABLE).items():
        if known in row["folders"]:
            published = {key: row[key] for key in statistics if key in row}
            relative = {key: statistics[key] / value - 1 for key, value in published.items()}
            return {
                "name": name,
                "statistics": published,
                "relative": relative,
                "note": row.get("note"),
                "warning": _warning(dataset, name, relative),
            }
    return None


def _warning(dataset: str, name: str, relative: Mapping[str, float]) -> str | None:
    different = [f"{key} {100 * relative[key]:+.1f} %" for key in COUNTS if relative[key] != 0]
    if not different:
        return None
    return (
        f"{dataset} is not the paper's {name} ({', '.join(different)}): "
        "its figures cannot be set beside the paper's."
    )
