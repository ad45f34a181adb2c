"""All that the rest of a training depends on, as one checkpoint holds it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.checkpoint import read_weights, save_state, save_tensors
from recbole_jepa4rec.base.random_state import random_state, restore_random_state

COUNTERS = (
    "best_epoch",
    "best_valid_result",
    "best_valid_score",
    "checkpoint_from",
    "cur_step",
    "epochs_before",
    "epochs_run",
    "is_trained",
    "item_ids",
    "learning_curve",
    "pretrain_datasets",
    "stage",
    "tokens_per_second",
)
"""Attributes of a trainer that go into a checkpoint as they are."""


def run_state(trainer: Any) -> dict[str, Any]:
    """The state of a ``ProtocolTrainer`` between two steps, as plain values and tensors."""
    reads = trainer.has_saved and processes.is_main()
    best = read_weights(trainer.saved_model_file) if reads else None
    return {
        **{name: getattr(trainer, name) for name in COUNTERS},
        "stage_seconds": trainer.stage_seconds_so_far(),
        "seconds": time.monotonic() - trainer.began,
        "model": _model_state(trainer.model),
        "other_parameter": trainer.other_parameter(),
        "optimizer": trainer.optimizer_state(),
        "best_weights": best,
        "random": random_state(),
        "position": trainer.position(),
    }


def restore_counters(trainer: Any, state: Mapping[str, Any]) -> None:
    """Give a trainer back what it had counted and measured, and the best weights their files."""
    for name in COUNTERS:
        setattr(trainer, name, state[name])
    trainer.stage_seconds = dict(state["stage_seconds"])
    trainer.seconds_before = state["seconds"]
    trainer.has_saved = state["best_weights"] is not None
    if trainer.has_saved and processes.is_main():
        _restore_best(trainer, *state["best_weights"])


def restore_tensors(trainer: Any, state: Mapping[str, Any]) -> None:
    """Give a trainer back its weights, its optimizer's state and its random numbers."""
    restore_model(trainer, state)
    trainer.load_optimizer_state(state["optimizer"])
    restore_random_state(state["random"])


def restore_model(trainer: Any, state: Mapping[str, Any]) -> None:
    """Give a trainer's model back its weights, and what it keeps beside them."""
    model = trainer.model
    if hasattr(model, "load_resumable_state"):
        model.load_resumable_state(state["model"])
    else:
        model.load_state_dict(state["model"])
    model.load_other_parameter(state["other_parameter"])


def _model_state(model: Any) -> dict[str, Any]:
    """A model's ``resumable_state``, where its ``state_dict`` is not all it goes on from."""
    return model.resumable_state() if hasattr(model, "resumable_state") else model.state_dict()


def _restore_best(trainer: Any, weights: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write the best weights again, unless they are still the ones on disk.

    They are not if the run went on after the checkpoint and found better ones. The optimizer's
    state of their epoch, which ``state.pt`` held, is lost then.
    """
    path = Path(trainer.saved_model_file)
    try:
        if read_weights(path)[1].get("token") == metadata["token"]:
            return
    except ValueError:  # missing or damaged
        pass
    save_state(trainer.state_file, {"token": metadata["token"]})
    save_tensors(path, weights, metadata)
