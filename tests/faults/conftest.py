"""Settings of the runs that faults happen to, and one unbroken run of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY
from tests.faults.faulty_run import ended
from tests.faults.run_contents import outcome

ID = {**TINY, "train_batch_size": 128, "epochs": 3}
MODELS: dict[str, dict[str, Any]] = {
    "JEPA4Rec": {
        "hidden_size": 8,
        "intermediate_size": 16,
        "vocab_size": 200,
        "dropout": 0.1,
        "train_batch_size": 16,
        "pretrain_batch_size": 16,
        "pretrain_epochs": 2,
        "epochs": 2,
        "frozen_items_epochs": 1,
    },
    "SASRec": ID,
    "BERT4Rec": {**ID, "train_batch_size": 16, "worker": 2},
    "S3Rec": {**ID, "epochs": 2, "pretrain_epochs": 2, "pretrain_batch_size": 128},
    "UniSRec": {
        **{"hidden_size": 8, "n_layers": 1, "n_heads": 1, "inner_size": 8},
        **{"epochs": 3, "pretrain_epochs": 0},
    },
}


@dataclass
class Unbroken:
    """A run that nothing happened to.

    Attributes:
        points: names of the points that it passed, in order.
        outcome: what it found out.
    """

    points: list[str]
    outcome: dict[str, Any]

    def last(self, name: str) -> int:
        """Number of the last point of that name."""
        return max(number for number, point in enumerate(self.points, 1) if point == name)


def slow(*values: Any) -> Any:
    """A case of a test that the fast suite leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


def words(model: str, folder: Path, **changes: Any) -> list[str]:
    """The command line of a run in ``folder``, its cache beside it, under changed settings."""
    shared = {
        "model": model,
        "dataset": "toy",
        "data_path": ROOT / "dataset",
        "cache_dir": folder.with_name(f"{folder.name}-cache"),
        "run_dir": folder,
        "checkpoint_steps": 2,
        "show_progress": False,
        "state": "warning",
    }
    settings = {**shared, **MODELS[model], **changes}
    return [f"--{key}={value}" for key, value in settings.items()]


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """Gives the unbroken run of a model under some settings, made at the first call."""
    folder, made = tmp_path_factory.mktemp("unbroken"), {}

    def of(model: str, **changes: Any) -> Unbroken:
        name = f"{model} {changes}"
        if name not in made:
            place = folder / str(len(made))
            done = ended(words(model, place, **changes), folder / f"{place.name}-said")
            assert done.status == 0, done.errors
            made[name] = Unbroken(done.points, outcome(place))
        return made[name]

    return of
