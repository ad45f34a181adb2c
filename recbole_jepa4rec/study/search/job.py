"""What the trials of a search are told; nothing here needs Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_jepa4rec.study.search.request import Request

NAME_KEY = "trial"
"""Of Ray's own configuration of a trial whose point is known beforehand."""


@dataclass(frozen=True)
class Job:
    """What every trial of a search is told; Ray copies it to the trial's process.

    Attributes:
        entry: the model.
        given: settings of every trial.
        points: what each trial is given, by name; empty where a search algorithm chooses.
        choices: the values that stand behind the numbers a search algorithm gives, by key.
        data_keys: searched settings that change what is read of the data.
        folder: of the trials, absolute.
        here: the current folder of the search; paths in the settings are seen from there.
        threads: of the numerical libraries.
        uses_gpu: whether trials have a share of a GPU; others must not touch one.
    """

    entry: str
    given: Mapping[str, Any]
    points: Mapping[str, Mapping[str, Any]]
    choices: Mapping[str, Sequence[Any]]
    data_keys: tuple[str, ...]
    folder: Path
    here: Path
    threads: int
    uses_gpu: bool = False

    def point(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The searched settings of a trial, from Ray's configuration of it."""
        if NAME_KEY in chosen:
            return dict(self.points[chosen[NAME_KEY]])
        return {
            key: self.choices[key][int(value)] if key in self.choices else float(value)
            for key, value in chosen.items()
        }

    def name(self, chosen: Mapping[str, Any], trial_id: str) -> str:
        """Name of a trial and its folder."""
        return str(chosen.get(NAME_KEY, trial_id))


def data_name(point: Mapping[str, Any], data_keys: Sequence[str]) -> str:
    """Which of the shared data sets a trial reads."""
    return json.dumps([point[key] for key in data_keys], default=str)


def job_of(request: Request, points: Mapping[str, Mapping[str, Any]], data_keys: Any) -> Job:
    """What the trials of a request are told."""
    return Job(
        entry=request.entry,
        given=dict(request.given),
        points=points,
        choices={each.key: each.points for each in request.space if each.points is not None},
        data_keys=tuple(data_keys),
        folder=(request.folder / "trials").resolve(),
        here=Path.cwd(),
        threads=request.cpus,
    )
