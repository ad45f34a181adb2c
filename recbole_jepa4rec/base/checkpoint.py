"""Weights and training state on disk: tensors and plain values, never a pickled object."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from recbole_jepa4rec.base.files import atomic_write

WEIGHTS_NAME, STATE_NAME = "model.safetensors", "state.pt"


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's ``state_dict`` as safetensors, whole or not at all.

    Args:
        model: its parameters and persistent buffers are written; tied ones once per name.
        path: the file; its folder must exist.
        metadata: short texts that travel with the weights; ``model`` is added: the class name.

    Raises:
        OSError: if the file cannot be written; names it.
    """
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    save_tensors(path, tensors, {"model": _class_name(model), **(metadata or {})})


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors on the CPU as safetensors, whole or not at all.

    Raises:
        OSError: if the file cannot be written; names it.
    """
    with atomic_write(path) as file:
        file.write(safetensors.save(dict(tensors), dict(metadata)))


def load_weights(
    model: nn.Module,
    path: str | Path,
    optional: Collection[str] = (),
    item_ids: str | None = None,
    keep: Collection[str] = (),
) -> dict[str, str]:
    """Fill a model from a file of ``save_weights``; the model is untouched if anything is wrong.

    Args:
        model: must have exactly the file's names and shapes.
        path: the file.
        optional: names (shell patterns) that may be missing from the file or from the model.
        item_ids: ``item_ids_digest`` of the items that the model is for; None where any will do.
        keep: names (shell patterns) that stay as the model has them, whatever the file holds.

    Returns:
        The file's metadata.

    Raises:
        ValueError: if the file is missing, truncated or foreign, or holds weights of another shape
            or for other items.
    """
    tensors, metadata = read_weights(path)
    own = model.state_dict()
    tensors = {name: t for name, t in tensors.items() if not _is_one_of(name, keep)}
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}
    author = metadata.get("model", "another program")
    what = f"weights of {author} in {path} do not fit {_class_name(model)}"
    refuse_misfits(what, tensors, shapes, optional=(*optional, *keep))
    if item_ids is not None and metadata.get("item_ids") != item_ids:
        raise ValueError(
            f"weights in {path} do not fit: {_class_name(model)} knows items by their number, and "
            "the data set they were trained on has other items or another order"
        )
    model.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)
    return metadata


def refuse_misfits(
    what: str,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, list[int]],
    optional: Collection[str] = (),
) -> None:
    """Refuse tensors that are missing, unknown or of another shape.

    Args:
        what: says that they do not fit, before the error names three of them.
        tensors: by name.
        shapes: wanted, by name.
        optional: names (shell patterns) that may be missing on either side.

    Raises:
        ValueError: if one does not fit.
    """
    required = (name for name in shapes if not _is_one_of(name, optional))
    faults = [f"{name} is missing" for name in required if name not in tensors]
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        if name not in shapes and not _is_one_of(name, optional):
            faults.append(f"{name} {shape} is unknown")
        elif name in shapes and shape != shapes[name]:
            faults.append(f"{name} is {shape} instead of {shapes[name]}")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{what}: {'; '.join(faults[:3])}{more}")


def item_ids_digest(dataset: Any, knows_items: bool = True) -> str | None:
    """SHA-256 of a data set's item ids in internal order; None for weights that fit any items."""
    if not knows_items:
        return None
    return hashlib.sha256("\n".join(dataset.field2id_token[dataset.iid_field]).encode()).hexdigest()


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, on the CPU.

    Raises:
        ValueError: if the file is missing, truncated or not safetensors.
    """
    if not Path(path).is_file():
        raise ValueError(f"weights file {path} does not exist")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from None


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write plain values and tensors that ``load_state`` can read back, whole or not at all.

    Args:
        path: the file; its folder must exist.
        state: numbers, texts, tensors, and dicts, lists and tuples of them; NumPy scalars become
            Python's.

    Raises:
        ValueError: for a value of any other type; names its key.
        OSError: if the file cannot be written; names it.
    """
    buffer = BytesIO()
    write_state(buffer, state)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def write_state(file: IO[bytes], state: Mapping[str, Any]) -> None:
    """Do what ``save_state`` does, into an open file.

    Raises:
        ValueError: as ``save_state``.
    """
    torch.save({key: _plain(value, key) for key, value in state.items()}, file)


def load_state(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file of ``save_state`` without running any code that it may hold.

    Raises:
        ValueError: if the file is missing, unreadable, truncated or holds more than plain values.
    """
    if not Path(path).is_file():
        raise ValueError(f"state file {path} does not exist")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # of many types; torch's own advice would be to run what it holds
        fault = f"is truncated or holds more than plain values ({type(error).__name__})"
        raise ValueError(f"{path} {fault}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a training state")
    return state


def weights_file(path: str | Path) -> Path:
    """The weights that ``--checkpoint`` names: a file, or a run folder that holds one.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path)
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"checkpoint {str(path)!r} is neither a file nor holds {WEIGHTS_NAME}")
    return file


def _is_one_of(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _class_name(model: nn.Module) -> str:
    return type(model).__name__


def _plain(value: Any, key: str) -> Any:
    """The value without NumPy scalars, checked to be loadable by a weights-only reader."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor) and not value.numel():
        return value.clone()  # torch refuses empty ones of two types that begin at the same place
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, key) for item in value)
    raise ValueError(f"state {key!r} is a {type(value).__name__}, not a plain value or tensor")
