"""The same seed gives the same run on a CPU: in another process, and with loader workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_jepa4rec.base.checkpoint import read_weights
from recbole_jepa4rec.runner.quick_start import run
from tests.conftest import ROOT, TINY
from tests.tiny_encoder import tiny_bert  # noqa: F401

ID = {**TINY, "epochs": 2}
TEXT = {
    "hidden_size": 16,
    "vocab_size": 300,
    "intermediate_size": 32,
    "dropout": 0.1,
    "items_per_step": 8,
    "train_batch_size": 32,
    "epochs": 2,
}
VECTORS = {"hidden_size": 16, "inner_size": 16, "n_heads": 2, "max_text_tokens": 32, "epochs": 2}
MODELS: dict[str, dict[str, Any]] = {
    "JEPA4Rec": TEXT,
    "RecFormer": TEXT,
    "LLMJEPA": {key: value for key, value in TEXT.items() if key != "dropout"},
    "UniSRec": {**VECTORS, "n_experts": 3},
    "VQRec": {**VECTORS, "code_digits": 4, "code_values": 8},
    "SASRec": ID,
    "SASRec-BPR": ID,
    "BERT4Rec": ID,
    "S3Rec": {**ID, "pretrain_epochs": 2, "pretrain_batch_size": 128},
}
WITH_WORKERS = ("JEPA4Rec", "SASRec", "SASRec-BPR", "BERT4Rec", "S3Rec")
DRAWN_IN_WORKERS = ("SASRec-BPR", "BERT4Rec")
"""Negatives and masks of these come from the workers' own random numbers."""


def train(encoder: str, folder: str, backwards: str) -> None:
    """Run every model, without and with loader workers; what a process of its own does."""
    runs = [(name, 0) for name in MODELS] + [(name, 2) for name in WITH_WORKERS]
    for name, workers in reversed(runs) if backwards else runs:
        settings = {**MODELS[name], "run_dir": f"{folder}/{name}-{workers}", "worker": workers}
        run(name, config_dict={**everywhere(name, encoder, folder), **settings})


def everywhere(name: str, encoder: Any, folder: Any) -> dict[str, Any]:
    shared = {
        "dataset": "toy",
        "data_path": str(ROOT / "dataset"),
        "cache_dir": f"{folder}/cache",
        "show_progress": False,
        "state": "error",
    }
    return {**shared, "text_encoder": str(encoder)} if name in ("UniSRec", "VQRec") else shared


@pytest.fixture(scope="module")
def twice(tiny_bert, tmp_path_factory):  # noqa: F811
    """Folders of two processes that hash differently and go through the models in two orders."""
    folders = [tmp_path_factory.mktemp("runs") for _ in range(2)]
    code = f"import sys; from {__name__} import train; train(*sys.argv[1:])"
    children = []
    for hash_seed, folder in enumerate(folders):
        changed = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(1 + hash_seed)}
        command = [sys.executable, "-c", code, str(tiny_bert), str(folder), "x" * hash_seed]
        options = {"cwd": folder, "env": {**os.environ, **changed}, "stderr": subprocess.PIPE}
        children.append(subprocess.Popen(command, text=True, **options))
    for child in children:
        errors = child.communicate()[1]
        assert child.returncode == 0, errors
    return folders


def outcome(folder: Path) -> dict[str, Any]:
    """What a run found out, without times; weights as bytes, so that equal is equal to the bit."""
    result = json.loads((folder / "result.json").read_text())
    curve = [{k: v for k, v in p.items() if k != "seconds"} for p in result["learning_curve"]]
    weights, _ = read_weights(folder / "model.safetensors")
    return {
        **{key: result[key] for key in ("valid", "test", "epochs", "best_epoch")},
        "learning_curve": curve,
        "per_user": (folder / "per_user.parquet").read_bytes(),
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
    }


@pytest.mark.parametrize("name", MODELS)
def test_another_process_finds_the_same(name, twice):
    first, second = (outcome(folder / f"{name}-0") for folder in twice)
    assert first == second


@pytest.mark.parametrize("name", WITH_WORKERS)
def test_another_process_with_loader_workers_finds_the_same(name, twice):
    first, second = (outcome(folder / f"{name}-2") for folder in twice)
    assert first == second


@pytest.mark.parametrize("name", [name for name in WITH_WORKERS if name not in DRAWN_IN_WORKERS])
def test_workers_change_nothing_where_they_draw_nothing(name, twice):
    assert outcome(twice[0] / f"{name}-0") == outcome(twice[0] / f"{name}-2")


def test_another_seed_finds_something_else(twice, tmp_path):
    """Else the equalities above would say nothing."""
    shared = everywhere("SASRec", None, tmp_path)
    run("SASRec", config_dict={**shared, **ID, "seed": 7, "run_dir": str(tmp_path / "other")})
    assert outcome(tmp_path / "other")["weights"] != outcome(twice[0] / "SASRec-0")["weights"]


class RacyAdditions(TorchDispatchMode):
    """Notes gradients that several threads would add up in an order that nobody fixes.

    The backward pass of ``tensor[index]`` adds by atomic operations in float32 on a CPU with more
    than one thread, from 32,768 numbers on (``index_put_`` with ``accumulate`` in torch's list
    under ``use_deterministic_algorithms``). Where an index occurs twice the sum then differs from
    run to run. ``index_select`` and ``embedding`` add in a fixed order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if "index_put" in function.__name__ and args[3:4] == (True,):
            into, indices, values = args[:3]
            if into.is_floating_point() and _adds_twice(indices, values):
                self.found.append(f"{function} into {list(into.shape)}")
        return function(*args, **(kwargs or {}))


def _adds_twice(indices: list[Tensor | None], values: Tensor) -> bool:
    """Whether two rows that are not zero go to the same place."""
    given = [index for index in indices if index is not None]
    if given[0].dtype == torch.bool:
        return False
    places = torch.stack(torch.broadcast_tensors(*given)).flatten(1)
    rows = values.reshape(places.shape[1], -1).ne(0).any(dim=1)
    places = places[:, rows]
    return torch.unique(places, dim=1).shape[1] < places.shape[1]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in MODELS),
        ("UniSRec", {"finetune_mode": "transductive"}),
        ("JEPA4Rec", {"sequence_pass": "clean", "positive_encoder": "target", "items_per_step": 0}),
        ("JEPA4Rec", {"training_targets": "random", "attention_window": 4, "num_layers": 2}),
    ],
)
def test_no_gradient_depends_on_which_thread_comes_first(name, settings, tiny_bert, tmp_path):  # noqa: F811
    shared = everywhere(name, tiny_bert, tmp_path)
    with RacyAdditions() as racy:
        run(
            name,
            config_dict={
                **shared,
                **MODELS[name],
                "epochs": 1,
                **settings,
                "run_dir": str(tmp_path / "run"),
            },
        )
    assert not racy.found


def test_racy_additions_are_seen():
    table, index = torch.zeros(3, 2, requires_grad=True), torch.tensor([0, 2, 0])
    for gather, seen in ((table.__getitem__, 1), (lambda i: table.index_select(0, i), 0)):
        with RacyAdditions() as racy:
            (gather(index) * torch.ones(3, 2)).sum().backward()
        assert len(racy.found) == seen
