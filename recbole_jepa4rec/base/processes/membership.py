"""A process's place in its run: read from torchrun's environment, joined, and left."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from recbole_jepa4rec.base.processes.collectives import CAUSE, LostProcessError, barrier, rank

JOIN_SECONDS = 300
"""How long a process waits for the others to start."""
PATIENCE = timedelta(hours=12)
"""How long an exchange may wait, as for the first process while it reads a corpus.

A process that ends breaks the exchanges of the others long before.
"""
ECHO = 121
"""Exit status of a process that ended because another had failed, and said nothing."""

_WHOLE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
_ADDRESS = "MASTER_ADDR"


@dataclass(frozen=True)
class Place:
    """One process of a run.

    Attributes:
        rank: number of the process among all of the run.
        world_size: processes of the run.
        local_rank: number among those of this machine, which is that of its GPU.
        ip: machine that the processes meet at.
        port: where they meet.
        launched: whether somebody else than the first process opens that port.
    """

    rank: int
    world_size: int
    local_rank: int
    ip: str
    port: int
    launched: bool

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """What torchrun, or :func:`launch`, has written into the environment.

        Raises:
            ValueError: if a variable is missing or holds no whole number.
        """
        missing = [name for name in (*_WHOLE, _ADDRESS) if not environment.get(name)]
        if missing:
            raise ValueError(
                f"RANK is set but {', '.join(missing)} is not; several processes need "
                f"{', '.join([*_WHOLE, _ADDRESS])}"
            )
        numbers = {}
        for name in _WHOLE:
            if not environment[name].isdecimal():
                raise ValueError(f"{name} is {environment[name]!r}; allowed: a whole number")
            numbers[name] = int(environment[name])
        if numbers["RANK"] >= numbers["WORLD_SIZE"]:
            raise ValueError(
                f"RANK is {numbers['RANK']}; allowed with WORLD_SIZE {numbers['WORLD_SIZE']}: "
                f"0 to {numbers['WORLD_SIZE'] - 1}"
            )
        return cls(
            rank=numbers["RANK"],
            world_size=numbers["WORLD_SIZE"],
            local_rank=numbers["LOCAL_RANK"],
            ip=environment[_ADDRESS],
            port=numbers["MASTER_PORT"],
            launched=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )

    def environment(self) -> dict[str, str]:
        """The variables that :meth:`of` reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.ip,
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_USE_AGENT_STORE": str(self.launched),
        }


def is_launched() -> bool:
    """Whether the environment says that this process is one of a run."""
    return bool(os.environ.get("RANK"))


def is_alone_or_main() -> bool:
    """Whether this process speaks for its run, by the environment; before and after it as well."""
    return not is_launched() or Place.of(os.environ).rank == 0


@contextmanager
def joined(
    on_gpu: bool,
    nproc: int | None = None,
    world_size: int | None = None,
    ip: str | None = None,
    port: int | None = None,
) -> Iterator[None]:
    """Be one of the run's processes meanwhile: over nccl on GPUs, else over gloo.

    An error is claimed by the first process that has one; the others, which lose it, leave by
    ``SystemExit`` with status ``ECHO``, so that the message is shown once.

    Args:
        on_gpu: whether tensors are on GPUs; each process then gets that of its local number.
        nproc: processes of this machine, where the settings name them.
        world_size: processes of the run, where the settings name them.
        ip: machine to meet at, where the settings name it.
        port: where to meet, where the settings name it.

    Raises:
        ValueError: if the settings and the environment differ, or there are too few GPUs.
        RuntimeError: if the other processes do not come.
    """
    place = Place.of(os.environ)
    given = {
        "nproc": (nproc, "LOCAL_WORLD_SIZE"),
        "world_size": (world_size, "WORLD_SIZE"),
        "ip": (ip, "MASTER_ADDR"),
        "port": (port, "MASTER_PORT"),
    }
    for key, (value, name) in given.items():
        if value is not None and str(value) != os.environ.get(name, str(value)):
            raise ValueError(f"{key} is {value!r} but the environment's {name} {os.environ[name]}")
    if on_gpu:
        if place.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK is {place.local_rank}; allowed with this machine's GPUs: 0 to "
                f"{torch.cuda.device_count() - 1} (or --use_gpu=False)"
            )
        torch.cuda.set_device(place.local_rank)
    store = _meet(place)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=PATIENCE,
    )
    try:
        yield
        barrier()  # the store may stand in the first process, which others still read
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        first = claim(store, f"process {rank()}: {_line(error)}")
        if not on_gpu:  # nccl's end may wait for the others
            dist.destroy_process_group()
        if not first and not isinstance(error, SystemExit):
            raise SystemExit(ECHO) from error
        raise
    dist.destroy_process_group()


def claim(store: dist.Store, cause: str) -> bool:
    """Whether nobody of the run had failed before; tells the others the cause."""
    try:
        return store.compare_set(CAUSE, "", cause).decode("utf-8") == cause
    except RuntimeError:  # whoever holds the store is gone, so somebody has failed
        return False


def _meet(place: Place) -> dist.Store:
    """The store that all processes of the run share."""
    try:
        store = dist.TCPStore(
            place.ip,
            place.port,
            place.world_size,
            is_master=place.rank == 0 and not place.launched,
            timeout=timedelta(seconds=JOIN_SECONDS),
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"process {place.rank} of {place.world_size} meets nobody at {place.ip}:{place.port}: "
            f"{_line(error)}"
        ) from error
    if store.add("arrived", 1) == place.world_size:
        store.set("complete", "")
    try:
        store.wait(["complete"])
    except RuntimeError as error:
        arrived = store.add("arrived", 0)
        raise RuntimeError(
            f"{arrived} of {place.world_size} processes came to {place.ip}:{place.port} within "
            f"{JOIN_SECONDS} s"
        ) from error
    store.set_timeout(PATIENCE)
    return store


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, LostProcessError)):
        return text
    return f"{type(error).__name__}: {text}"
