"""What the processes of a run exchange; with one process nothing is done or copied.

Every function that exchanges something is a collective: all processes call it, in the same order.
The backward passes of :func:`all_gather` are collectives too. Autograd runs what is ready in the
reverse order of its creation, so that they match where the forward passes do and each process's
loss depends on every gathered tensor, if only by a product with zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20
"""Of gradients summed at once: large enough for the network, small beside the weights."""

GPU_PATIENCE = timedelta(seconds=50)
"""How long an exchange between GPUs may wait for one of them, which may have gone.

All have met on their CPUs shortly before.
"""

HALVES = (torch.float16, torch.bfloat16)
_CAUSE = "failed"  # where the store holds what the first process to fail says of it


class LostProcessError(RuntimeError):
    """Another process of the run has ended before its time."""


_GPUS: dict[str, Any] = {}
"""By the type of a device the group that exchanges its tensors; the run's own does the others'."""


def meet_on_gpus() -> None:
    """Let nccl exchange the GPUs' tensors, beside what the CPUs tell each other over gloo."""
    _GPUS["cuda"] = dist.new_group(backend="nccl", timeout=GPU_PATIENCE)


def part() -> None:
    """The run's processes exchange nothing from now on."""
    _GPUS.clear()
    dist.destroy_process_group()


def world_size() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes what is written once."""
    return rank() == 0


def shard(rows: Tensor) -> Tensor:
    """This process's part of rows that all processes know; no collective.

    Args:
        rows: ``[R, ...]``, the same everywhere.

    Returns:
        Consecutive rows, as ``tensor_split`` deals them out: none where rows are fewer than
        processes.
    """
    return rows.tensor_split(world_size())[rank()] if world_size() > 1 else rows


def all_gather(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their numbers; ``all_gather(shard(x))`` is ``x``.

    Args:
        rows: this process's, ``[R_p, ...]``; ``R_p`` may differ and be 0.

    Returns:
        ``[sum R_p, ...]``. Its gradient is summed over the processes, each of which gets that of
        its own rows.
    """
    return _Gather.apply(rows) if world_size() > 1 else rows


def shard_of_mean(mean: Tensor, rows: int) -> Tensor:
    """This process's part of a mean over the rows of all: the parts add up to it.

    Args:
        mean: over the rows of this process, zero where it has none.
        rows: of this process; where no process has any, the parts are zero.
    """
    if world_size() == 1:
        return mean
    total = int(_summed(torch.tensor(rows)))
    return mean * (rows / total if total else 0.0)


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over the processes, of the same shape everywhere; without gradient."""
    return _summed(tensor.detach()) if world_size() > 1 else tensor


def any_rank(flag: bool) -> bool:
    """Whether it holds in any process."""
    return bool(_summed(torch.tensor(int(flag)))) if world_size() > 1 else flag


def barrier() -> None:
    """Go on when all processes have come here."""
    any_rank(False)


@torch.no_grad()
def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over the processes, in place.

    Args:
        parameters: the same everywhere, in the same order. One without gradient here and with one
            elsewhere counts as zeros; one with none anywhere keeps none, so that the optimizer
            passes it by as it would in one process.
    """
    if world_size() == 1:
        return
    weights = list(parameters)
    has_gradient = torch.tensor([int(weight.grad is not None) for weight in weights])
    found = _summed(has_gradient).tolist()
    moving = [weight for weight, processes in zip(weights, found, strict=True) if processes]
    for weight in moving:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    for bucket in _buckets([weight.grad for weight in moving if weight.grad is not None]):
        total = _summed(torch.cat([gradient.flatten() for gradient in bucket]))
        for gradient, part in zip(bucket, total.split([*map(torch.numel, bucket)]), strict=True):
            gradient.copy_(part.view_as(gradient))


def broadcast_rows(rows: Tensor, source: int) -> Tensor:
    """What the process of that number has of these rows, of the same shape everywhere."""
    rows = rows.contiguous()
    if rows.numel():
        with _naming_lost_processes():
            dist.broadcast(rows, source, group=_group(rows))
    return rows


def broadcast(text: str) -> str:
    """What the first process says, for all."""
    if world_size() == 1:
        return text
    own = text.encode() if is_main() else b""
    return bytes(all_gather(torch.tensor([*own], dtype=torch.uint8)).tolist()).decode()


def claim(cause: str) -> bool:
    """Whether nobody of the run had failed before; tells the others the cause. No collective."""
    try:
        return _store().compare_set(_CAUSE, "", cause).decode("utf-8") == cause
    except RuntimeError:  # whoever holds the store is gone, so somebody has failed
        return False


@contextmanager
def main_first() -> Iterator[None]:
    """The first process runs the block and then the others do, as where they read its cache.

    The block may not exchange anything. An error of the first process ends the others.
    """
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def refuse_difference(module: nn.Module) -> None:
    """Compare all weights and buffers bit for bit, by their digests, in one exchange.

    Raises:
        RuntimeError: if one differs between processes; names the first.
    """
    if world_size() == 1:
        return
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    everybody = _exchange(torch.stack([_digest(tensor) for tensor in tensors.values()]))
    differs = (everybody != everybody[0]).any(dim=(0, 2)).nonzero()[:, 0].tolist()
    if differs:
        raise RuntimeError(
            f"{[*tensors][differs[0]]} differs between the processes of the run, as do "
            f"{len(differs) - 1} other tensors of {len(tensors)}"
        )


class _Gather(torch.autograd.Function):
    """Rows of every process in each; backward sums what each process says of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """``[R_p, ...]`` to ``[sum R_p, ...]``."""
        sizes = _exchange(torch.tensor(len(rows))).tolist()
        ctx.first, ctx.size = sum(sizes[: rank()]), len(rows)
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = _exchange(padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """``[sum R_p, ...]`` to ``[R_p, ...]``."""
        return _summed(gradients[0])[ctx.first : ctx.first + ctx.size]


@contextmanager
def _naming_lost_processes() -> Iterator[None]:
    """Say why an exchange broke, where the process that failed has told.

    Raises:
        LostProcessError: instead of the backend's error.
    """
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(_cause() or "another process of the run is gone") from error


def _cause() -> str:
    """What the first process to fail told before it left; empty if it told nothing."""
    try:
        return _store().get(_CAUSE).decode("utf-8") if _store().check([_CAUSE]) else ""
    except RuntimeError:  # the store is gone as well
        return ""


def _store() -> Any:
    """What the processes met through."""
    return dist.distributed_c10d._get_default_store()


def _group(tensor: Tensor) -> Any:
    """Who exchanges it; ``None`` is the run's own group."""
    return _GPUS.get(tensor.device.type)


def _exchange(tensor: Tensor) -> Tensor:
    """Tensors of one shape, ``[...]``, of all processes: ``[P, ...]``, bit for bit."""
    if not tensor.numel():
        return tensor.new_empty(world_size(), *tensor.shape)
    own_bytes = tensor.contiguous().view(-1).view(torch.uint8)
    table = own_bytes.new_empty(world_size(), len(own_bytes))
    with _naming_lost_processes():
        dist.all_gather(list(table), own_bytes, group=_group(tensor))
    return table.view(tensor.dtype).view(world_size(), *tensor.shape)


def _summed(tensor: Tensor) -> Tensor:
    """A new tensor: the sum over the processes, of 16-bit numbers in float32."""
    dtype = torch.float32 if tensor.dtype in HALVES else tensor.dtype
    total = torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)
    if total.numel():
        with _naming_lost_processes():
            dist.all_reduce(total, group=_group(tensor))
    return total.to(tensor.dtype)


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype and device each, up to ``BUCKET_BYTES`` together."""
    kinds: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault((gradient.dtype, gradient.device), []).append(gradient)
    for alike in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for gradient in alike:
            if bucket and size + gradient.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(gradient)
            size += gradient.nbytes
        yield bucket


def _digest(tensor: Tensor) -> Tensor:
    """SHA-256 of the bytes, ``[32]``."""
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return torch.tensor([*sha256(content).digest()], dtype=torch.uint8)
