"""What every test shares: one thread, and a small data set that RecBole can read as well."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# the same on a busy machine
slow = [HealthCheck.too_slow]
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=slow)
settings.load_profile("steady")

ROOT = Path(__file__).resolve().parent.parent

TINY = {
    "hidden_size": 8,
    "inner_size": 16,
    "n_layers": 1,
    "n_heads": 1,
    "MAX_ITEM_LIST_LENGTH": 5,
    "train_batch_size": 64,
    "show_progress": False,
}
"""Settings under which SASRec trains on the toy set in a moment."""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty current folder, so that whatever is written there can be seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def toy():
    """Settings that find the toy data set."""
    return {"dataset": "toy", "data_path": str(ROOT / "dataset")}


class Clock:
    """A clock that stands still unless it is told to go on, for what reads seconds of training."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """What training measures its time by."""
    clock = Clock()
    monkeypatch.setattr("recbole_jepa4rec.training.state.time", clock)
    return clock
