"""What a run folder holds: whether each file is whole, and what the run found out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from recbole_jepa4rec.base.checkpoint import load_state, read_weights

MOST_CHECKPOINTS = 2


def refuse_damage(folder: Path) -> None:
    """Read every file that has its final name, in a run folder or a cache, if there is one."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.endswith(".partial"):
            continue
        if path.parent.name == "checkpoints":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest.startswith(path.stem.partition("-")[2]), path
        _read(path)
    checkpoints = list(folder.glob("checkpoints/*.pt"))
    assert len(checkpoints) <= MOST_CHECKPOINTS + 1  # the oldest may be about to go


def _read(path: Path) -> None:
    if path.suffix == ".safetensors":
        assert read_weights(path)[0]
    elif path.suffix == ".pt":
        assert load_state(path)
    elif path.suffix == ".json":
        assert json.loads(path.read_text())
    elif path.suffix == ".yaml":
        assert yaml.safe_load(path.read_text())["model"]
    elif path.suffix == ".parquet":
        assert len(pd.read_parquet(path))
    else:  # what grows line by line
        assert path.name == "run.log" or "tfevents" in path.name, path


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run found out, without times; weights as bytes, to compare them exactly."""
    result = json.loads((folder / "result.json").read_text())
    curve = [{k: v for k, v in p.items() if k != "seconds"} for p in result["learning_curve"]]
    same = ("model", "stage", "valid", "test", "epochs", "best_epoch", "pretrain_datasets")
    weights, _ = read_weights(folder / "model.safetensors")
    return {
        **{key: result[key] for key in same},
        "learning_curve": curve,
        "per_user": pd.read_parquet(folder / "per_user.parquet").to_dict("list"),
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
    }


def digests(folder: Path) -> dict[str, str]:
    """Contents of a run folder's files, logs left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.log" and "tfevents" not in path.name
    }
