"""Where every random number generator of a process stands, as plain values and tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_jepa4rec.base import processes


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
