"""Under which conditions rows were made: what they share, and in what they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_jepa4rec.config.syntax import WHEREABOUTS
from recbole_jepa4rec.study.row import Row

IDENTITY = ("model", "seed")
"""Settings in which rows differ by what they are."""


def conditions(rows: Sequence[Row], given: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the first finished run of each row with those of the others.

    Args:
        rows: the models.
        given: settings that every run was given.

    Returns:
        ``protocol``; ``given``; ``shared`` settings, and ``differing`` ones by entry (a row without
        the key is left out); ``hardware`` and ``versions``, each a list of ``entries`` and the
        ``value`` that these have.
    """
    first = {row.entry: next(iter(row.runs.values())) for row in rows if row.runs}
    settings = {
        entry: {
            key: value
            for key, value in run.settings.items()
            if key not in (*IDENTITY, *WHEREABOUTS)
        }
        for entry, run in first.items()
    }
    keys = list(dict.fromkeys(key for each in settings.values() for key in each))
    shared = {key: value for key in keys if (value := _common(key, settings)) is not _DIFFERENT}
    differing = {
        key: {entry: each[key] for entry, each in settings.items() if key in each}
        for key in keys
        if key not in shared
    }
    runs = [(row.entry, run) for row in rows for run in row.runs.values()]
    return {
        "protocol": runs[0][1].result["protocol"] if runs else None,
        "given": dict(given),
        "shared": shared,
        "differing": differing,
        **{
            name: _gathered([(entry, run.result[name]) for entry, run in runs])
            for name in ("hardware", "versions")
        },
    }


_DIFFERENT = object()


def _common(key: str, settings: Mapping[str, Mapping[str, Any]]) -> Any:
    """The value that every row has, or ``_DIFFERENT``."""
    values = [each.get(key, _DIFFERENT) for each in settings.values()]
    return values[0] if all(value == values[0] for value in values) else _DIFFERENT


def _gathered(facts: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Distinct values, each with the entries that have it."""
    found: list[dict[str, Any]] = []
    for entry, value in facts:
        same = next((each for each in found if each["value"] == value), None)
        if same is None:
            found.append(same := {"entries": [], "value": value})
        if entry not in same["entries"]:
            same["entries"].append(entry)
    return found
