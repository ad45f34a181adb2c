"""What every test shares: one thread, and a small data set that RecBole can read as well."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from pathlib import Path

import pytest

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
