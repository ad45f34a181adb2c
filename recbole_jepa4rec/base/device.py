"""What a step sends to a GPU and reads from it: little, at once, and without waiting.

Which tokens are read, where they stand and what is drawn follows from ids alone. That is worked out
on the CPU, and what comes of it is sent in one copy; so the GPU is never asked for a size, and has
work waiting while the next step is prepared. On a CPU nothing here copies anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Bytes: each tensor of a copy begins at a multiple, as its numbers need it."""

CHUNK_SHARE = 64
"""A chunk of a computation on a GPU takes this part of its memory: enough to keep it busy."""

SCORE_SHARE = 16
"""The scores of a batch to be ranked take this part of a GPU's memory."""

CPU_SCORES = 256 * 2**20
"""Bytes that they take on a CPU."""

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the key ``precision``: what products are computed in, where that is not float32."""

Value = TypeVar("Value")


def sent(value: Value, device: torch.device | str) -> Value:
    """The same with all of its tensors on a device, sent in one copy that nobody waits for.

    Args:
        value: a tensor of the CPU's, or tensors in tuples, lists, dictionaries and dataclasses.
        device: where to; on a CPU the value itself is returned.
    """
    if torch.device(device).type == "cpu":
        return value
    tensors = {id(tensor): tensor for tensor in _tensors(value)}
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors.values()]
    places = dict(zip(tensors, pairwise(accumulate(sizes, initial=0)), strict=True))
    is_pinned = torch.device(device).type == "cuda"
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=is_pinned)

    def of(whole: Tensor, tensor: Tensor) -> Tensor:
        place = whole[slice(*places[id(tensor)])][: tensor.nbytes]
        return place.view(tensor.dtype).view(tensor.shape)

    for tensor in tensors.values():
        of(packed, tensor).copy_(tensor)
    there = packed.to(device, non_blocking=True)
    return _with_tensors(value, {name: of(there, tensor) for name, tensor in tensors.items()})


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value):
        yield from _tensors(part)


def _parts(value: Any) -> list[Any]:
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, Mapping):
        return [*value.values()]
    return [*value] if isinstance(value, (tuple, list)) else []


def _with_tensors(value: Any, there: Mapping[int, Tensor]) -> Any:
    """The same value with other tensors, by the ``id`` of those that it has."""
    if isinstance(value, Tensor):
        return there[id(value)]
    parts = [_with_tensors(part, there) for part in _parts(value)]
    if is_dataclass(value) and not isinstance(value, type):
        named = zip(fields(value), parts, strict=True)
        return replace(value, **{field.name: part for field, part in named})
    if isinstance(value, Mapping):
        return dict(zip(value, parts, strict=True))
    return type(value)(parts) if isinstance(value, (tuple, list)) else value


class Mirror:
    """Tensors of the CPU's that a device has as well, each sent anew only when it is another."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[Tensor, Tensor]] = {}

    def of(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor that has this name, on the device."""
        before, there = self._sent.get(name, (None, tensor))
        if before is not tensor or there.device != device:
            self._sent[name] = tensor, sent(tensor, device)
        return self._sent[name][1]


class Awaited:
    """Numbers on their way from a device; whoever reads them later does not hold up its work.

    Args:
        numbers: on the device, ``[...]``.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrival: Any = None
        if numbers.device.type == "cuda":
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def tolist(self) -> Any:
        """The numbers, once they are here; what was asked of the device later is not waited for."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._numbers.tolist()


class PartlyOnCPU(nn.Module):
    """A module some of whose buffers stay on the CPU, which plans by them, wherever it is moved."""

    on_cpu: ClassVar[tuple[str, ...]]
    """Names of these buffers."""

    def _apply(self, fn: Any, recurse: bool = True) -> PartlyOnCPU:
        kept = {name: self._buffers[name] for name in self.on_cpu}
        self._buffers.update(dict.fromkeys(kept))
        try:
            return super()._apply(fn, recurse)
        finally:
            self._buffers.update(kept)


def autocast(device: torch.device, precision: str | None) -> torch.autocast:
    """The context in which a model computes at a precision, a key of ``PRECISIONS``."""
    dtype = PRECISIONS[precision or "fp32"]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def numbers_at_once(device: torch.device, on_cpu: int) -> int:
    """Numbers of float32 in a chunk: as many as serve a CPU, or those of a share of a GPU's memory.

    Of all its memory, not of what is free: the order of sums depends on it, and is to repeat.
    """
    return on_cpu if device.type == "cpu" else _memory(device) // (4 * CHUNK_SHARE)


def score_memory(device: torch.device) -> int:
    """Bytes that the scores of one batch may take, where nobody says how many."""
    return CPU_SCORES if device.type == "cpu" else _memory(device) // SCORE_SHARE


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


@contextmanager
def computing(device: torch.device, matmul_precision: str, repeats: bool) -> Iterator[None]:
    """Let a GPU compute as settings ask, and torch be as it was afterwards; a CPU needs nothing.

    Args:
        device: of the run.
        matmul_precision: of products of float32, in torch's words.
        repeats: whether the same run is to give the same numbers. Torch warns of an operator that
            has no way to.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    new_tensors: Any = torch.utils.deterministic
    strict, warns, fills = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        new_tensors.fill_uninitialized_memory,
    )
    fused_by_cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every shape, which few repeat
    torch.set_float32_matmul_precision(matmul_precision)
    if repeats:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins
        torch.use_deterministic_algorithms(True, warn_only=True)
        new_tensors.fill_uninitialized_memory = False  # a kernel for each
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(fused_by_cudnn)
        torch.set_float32_matmul_precision(before)
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        new_tensors.fill_uninitialized_memory = fills
