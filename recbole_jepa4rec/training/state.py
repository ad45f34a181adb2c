"""What a training has counted, measured and drawn, which a checkpoint holds beside weights."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.trackers import Tracker
from recbole_jepa4rec.model.base import PRETRAIN
from recbole_jepa4rec.training.checkpoints import CheckpointFolder


class Validation(TypedDict):
    """A point of a learning curve.

    Attributes:
        stage: what was trained.
        seconds: since training began.
        valid: the valid metric.
        epoch: from 0, over all stages.
    """

    stage: str
    seconds: float
    valid: float
    epoch: int


Listener = Callable[[Validation], None]


@dataclass
class TrainingState:
    """How far the training of a run has come, as plain values.

    Attributes:
        stage: ``train_stage`` of a model that has stages, else ``"train"``.
        epochs_run: epochs begun so far, those of earlier stages included.
        epochs_before: ... and only those.
        cur_step: validations since the best one, in RecBole's loop.
        best_epoch: the epoch, from 0 over all stages, whose weights are on disk; ``None`` before
            the first.
        best_valid_score: its ``valid_metric``.
        best_valid_result: all its metrics.
        vectors: how far its item vectors differ, see ``training/collapse.py``.
        has_saved: whether weights are on disk.
        learning_curve: every validation so far.
        stage_seconds: seconds spent in ``"pretrain"`` and ``"finetune"``.
        seconds: since training began, earlier stages and earlier starts of the run included.
        tokens_per_second: of training, for a model that reads tokens.
        checkpoint_from: the weights that training started from, if any.
        pretrain_datasets: data sets that the weights were pre-trained on.
        item_ids: ``item_ids_digest`` of the data set that the weights are for, once known.
        is_trained: whether training is over.
    """

    stage: str = "train"
    epochs_run: int = 0
    epochs_before: int = 0
    cur_step: int = 0
    best_epoch: int | None = None
    best_valid_score: float = -math.inf
    best_valid_result: dict[str, float] | None = None
    vectors: dict[str, float] | None = None
    has_saved: bool = False
    learning_curve: list[Validation] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=lambda: {"pretrain": 0, "finetune": 0})
    seconds: float = 0.0
    tokens_per_second: float | None = None
    checkpoint_from: str | None = None
    pretrain_datasets: list[str] = field(default_factory=list)
    item_ids: str | None = None
    is_trained: bool = False

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> TrainingState:
        """That of a checkpoint; what it does not know has its default."""
        has_saved = checkpoint["best_weights"] is not None
        known = {f.name: checkpoint[f.name] for f in fields(cls) if f.name in checkpoint}
        return cls(**{**known, "has_saved": has_saved})

    def next_stage(self, stage: str) -> TrainingState:
        """Where the next stage of the same run begins: time, epochs and curve count on."""
        return TrainingState(
            stage=stage,
            epochs_run=self.epochs_run,
            epochs_before=self.epochs_run,
            learning_curve=list(self.learning_curve),
            stage_seconds=dict(self.stage_seconds),
            seconds=self.seconds,
            pretrain_datasets=list(self.pretrain_datasets),
        )


class Timer:
    """Counts the seconds of a training on, into its state.

    Args:
        state: whose ``seconds`` say what came before.
        limit: seconds that may pass since training began; ``None`` for no limit.

    Attributes:
        began: when training began, in seconds of ``time.monotonic()``, moved back by what earlier
            stages and earlier starts of the run took.
        deadline: when it has to end, in the same seconds; infinite without limit.
    """

    def __init__(self, state: TrainingState, limit: float | None) -> None:
        self.state = state
        self.began = time.monotonic() - state.seconds
        self.deadline = math.inf if limit is None else self.began + limit
        self._kind: str | None = None
        self._last = time.monotonic()

    def update(self) -> None:
        """Bring ``seconds`` and ``stage_seconds`` up to now."""
        now = time.monotonic()
        self.state.seconds = now - self.began
        if self._kind:
            self.state.stage_seconds[self._kind] += now - self._last
        self._last = now

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count the time of the block as that of a stage."""
        self.update()
        self._kind = kind
        try:
            yield
        finally:
            self.update()
            self._kind = None

    def is_over(self) -> bool:
        """Whether the deadline has passed in this process."""
        return time.monotonic() >= self.deadline


@dataclass(frozen=True)
class Session:
    """What the run hands to a training beside its data.

    Attributes:
        checkpoints: where to write what the run can be resumed from; ``None``: nowhere.
        identity: goes into every checkpoint: what the run is and which data it reads.
        resumed: the checkpoint to go on from; ``None`` for a run that begins.
        before: state at the end of the stage before, in a run of several.
        time_share: of ``max_train_seconds`` that may be used until the end of this stage.
        on_validation: told each point of the learning curve as it is measured, those of a
            pre-training that finetuning follows left out. What it raises ends the training.
        trackers: told every curve that TensorBoard's events hold.
    """

    checkpoints: CheckpointFolder | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    resumed: Mapping[str, Any] | None = None
    before: TrainingState | None = None
    time_share: float = 1.0
    on_validation: Listener | None = None
    trackers: Sequence[Tracker] = ()

    def after(self, seconds: float) -> Session:
        """The same behind the training of a retriever, which took so long."""
        stage_seconds = {"pretrain": 0.0, "finetune": seconds}
        return replace(self, before=TrainingState(seconds=seconds, stage_seconds=stage_seconds))

    def tell(self, point: Validation, stage: str) -> None:
        """Pass on a point of the learning curve of a run in that stage."""
        if self.on_validation and (point["stage"] != PRETRAIN or stage == PRETRAIN):
            self.on_validation(point)


def random_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators; of torch's those of every process.

    Python's and NumPy's serve RecBole's own models, which one process trains.
    """
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 (RecBole's generator)
    kind, words, *position = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(words.astype(np.int64)), *position),
        "torch": processes.all_gather(torch.get_rng_state()[None]),
        "cuda": processes.all_gather(_cuda_state()[None]),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to what ``random_state`` returned."""
    random.setstate(state["python"])
    kind, words, *position = state["numpy"]
    position = (kind, words.numpy().astype(np.uint32), *position)
    np.random.set_state(position)  # noqa: NPY002 (RecBole's generator)
    own = {name: state[name][processes.rank()].clone() for name in ("torch", "cuda")}
    torch.set_rng_state(own["torch"])
    if len(own["cuda"]):
        torch.cuda.set_rng_state(own["cuda"])


def _cuda_state() -> Tensor:
    """State of this process's GPU; empty where none is used."""
    if not torch.cuda.is_initialized():
        return torch.empty(0, dtype=torch.uint8)
    return torch.cuda.get_rng_state()
