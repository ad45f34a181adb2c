"""How the processes of a run start, meet and end together: torch's launcher, and what it lacks.

The launcher is what torchrun is made of, and torchrun may start the processes as well. Against a
launcher of one's own two things are lost: machines that start different numbers of processes
(torchrun takes those), and, before torch 2.12, more than 30 seconds between SIGTERM and SIGKILL
for a step and its checkpoint. Ours is what it has not: one line for what went wrong, the status of
the process that failed, signal handlers given back, no orphans where the launcher is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.command import python_path
from recbole_jepa4rec.base.processes import LostProcessError

JOIN_SECONDS = 300
"""How long a process waits for the others to start."""
PATIENCE = timedelta(hours=12)
"""How long an exchange may wait, as for the first process while it reads a corpus.

A process that ends breaks the exchanges of the others long before.
"""
END_SECONDS = 300
"""From SIGTERM to SIGKILL where all are told to end, and may write a checkpoint."""
ECHO = 121
"""Exit status of a process that ended because another had failed, and said nothing."""
ECHO_SECONDS = 10.0
"""How long it waits to be ended, so that the launcher takes note of the failure first."""

NAMES = {
    "nproc": "LOCAL_WORLD_SIZE",
    "world_size": "WORLD_SIZE",
    "ip": "MASTER_ADDR",
    "port": "MASTER_PORT",
}
"""Settings, and what torchrun calls them in the environment."""


def launch(
    words: Sequence[str],
    *,
    nproc: int,
    ip: str = "localhost",
    port: int | None = None,
    world_size: int | None = None,
    group_offset: int = 0,
) -> int:
    """Run Python in several processes, which meet in :func:`joined`; when one fails all are ended.

    Args:
        words: what follows ``python``, such as ``-m`` and a module.
        nproc: processes to start on this machine, as on every other.
        ip: of the machine that has the run's first process.
        port: that the processes meet at; a free one by default.
        world_size: processes of the run on all machines; ``nproc`` by default.
        group_offset: number of this machine's first process among them.

    Returns:
        Exit status of the first process to fail, 128 + the signal's number where a signal ended it
        or told all to end; 0 if none failed.

    Raises:
        ValueError: for numbers that do not fit, or a port in use; nothing is started then.
        RuntimeError: if the other machines do not come.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    world_size = nproc if world_size is None else world_size
    _refuse_numbers(nproc, world_size, group_offset, port)
    with _undone_afterwards():
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(END_SECONDS))
        os.environ["PYTHONPATH"] = python_path()
        config = LaunchConfig(
            min_nodes=world_size // nproc,
            max_nodes=world_size // nproc,
            nproc_per_node=nproc,
            run_id="run",
            rdzv_backend="static" if port else "c10d",
            rdzv_endpoint=f"{ip}:{port}" if port else "localhost:0",
            rdzv_configs={"rank": group_offset // nproc, "timeout": JOIN_SECONDS},
            local_addr=ip,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        config.signals_to_handle = "SIGTERM,SIGINT"  # leave SIGHUP to nohup; old torch cannot
        try:
            launch_agent(config, sys.executable, [*words])
        except ChildFailedError as error:
            return _status(error.failures)
        except SignalException as error:
            return 128 + error.sigval
        except dist.DistError as error:  # torch tells it in several lines
            raise RuntimeError(f"no machine is met at {config.rdzv_endpoint}: {error}") from error
    return 0


def _refuse_numbers(nproc: int, world_size: int, group_offset: int, port: int | None) -> None:
    """Refuse numbers that do not fit together, and a port that is not free."""
    if world_size % nproc or group_offset % nproc:
        raise ValueError(
            f"world_size is {world_size} and group_offset {group_offset}; allowed with "
            f"nproc={nproc}: multiples of it (torchrun takes machines of different sizes)"
        )
    if group_offset + nproc > world_size:
        raise ValueError(
            f"world_size is {world_size}; allowed with group_offset={group_offset} and "
            f"nproc={nproc}: {group_offset + nproc} or more"
        )
    if port is None:
        if world_size > nproc:
            raise ValueError(f"port is not given; world_size={world_size} needs one to meet at")
        return
    if port >= 2**16:
        raise ValueError(f"port is {port}; allowed: 1 to {2**16 - 1}")
    if not group_offset:  # the first machine opens it
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            raise ValueError(f"port {port} is in use; allowed: a free one") from error


@contextmanager
def _undone_afterwards() -> Iterator[None]:
    """Hush torch's launcher meanwhile; give back the environment and the signal handlers."""
    environment = dict(os.environ)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        os.environ.clear()
        os.environ.update(environment)
        if _may_set_handlers():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _status(failures: Mapping[int, Any]) -> int:
    """Status of the first process that failed of itself; says what one could not say itself."""
    failed = [(rank, each.exitcode) for rank, each in failures.items() if each.exitcode != ECHO]
    if not failed:
        print("error: a process on another machine ended the run", file=sys.stderr)
        return 1
    rank, status = failed[0]
    if status < 0:
        name = signal.Signals(-status).name
        print(f"error: process {rank} was ended by {name}", file=sys.stderr)
    return status if status > 0 else 128 - status


def is_launched() -> bool:
    """Whether the environment says that this process is one of a run."""
    return bool(os.environ.get("RANK"))


@contextmanager
def joined(on_gpu: bool, given: Mapping[str, Any]) -> Iterator[None]:
    """Be one of the run's processes meanwhile, over gloo and between GPUs over nccl; or be alone.

    Threads are divided among a machine's processes, unless OMP_NUM_THREADS says how many each has.
    An error is claimed by the first process that has one; the others, which lose it, leave by
    ``SystemExit`` with status ``ECHO``, so that the message is shown once.

    Args:
        on_gpu: whether tensors are on GPUs; each process then gets that of its local number.
        given: the settings among ``NAMES`` that a user has given.

    Raises:
        ValueError: if the settings and the environment differ, or there are too few GPUs.
        RuntimeError: if the other processes do not come.
    """
    if not is_launched():
        yield
        return
    _refuse_environment(on_gpu, given)
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not os.environ.get("OMP_NUM_THREADS"):
        share = torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        torch.set_num_threads(max(1, share))
    has_launcher = "TORCHELASTIC_RUN_ID" in os.environ
    if has_launcher:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    _meet(on_gpu)
    try:
        yield
        processes.barrier()  # the store may stand in the first process, which others still read
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        named = has_launcher and isinstance(error, LostProcessError)  # by the launcher
        first = not named and processes.claim(f"process {processes.rank()}: {_line(error)}")
        if not on_gpu:  # nccl's end may wait for the others
            processes.part()
        if first or isinstance(error, SystemExit):
            raise
        if has_launcher and isinstance(error, Exception):
            _wait_to_be_ended()
        raise SystemExit(ECHO) from error
    processes.part()


def _refuse_environment(on_gpu: bool, given: Mapping[str, Any]) -> None:
    """Refuse variables that are no numbers, other than the settings, or of a GPU too many."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value.isdecimal():
            raise ValueError(f"RANK is set and {name} is {value!r}; allowed: a whole number")
    for key, value in given.items():
        there = os.environ.get(NAMES[key], str(value))
        if value is not None and str(value) != there:
            raise ValueError(f"{key} is {value!r} but the environment's {NAMES[key]} {there}")
    if on_gpu and int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK is {os.environ['LOCAL_RANK']}; allowed with this machine's GPUs: 0 to "
            f"{torch.cuda.device_count() - 1} (or --use_gpu=False)"
        )


def _meet(on_gpu: bool) -> None:
    """Make the process groups, through the store that the environment names."""
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        store.set_timeout(PATIENCE)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
        if on_gpu:
            processes.meet_on_gpus()
    except RuntimeError as error:
        place = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RuntimeError(f"{place} meets nobody at {where}: {_line(error)}") from error


def _wait_to_be_ended() -> None:
    """The launcher ends all once the first has left; who leaves before would be taken for it."""
    if _may_set_handlers():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(ECHO))
    time.sleep(ECHO_SECONDS)


def _end_with_launcher() -> None:
    """No orphan is left where the launcher is killed."""
    launcher = os.getppid()
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(128 + signal.SIGKILL)


def _may_set_handlers() -> bool:
    return threading.current_thread() is threading.main_thread()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, LostProcessError)):
        return text
    return f"{type(error).__name__}: {text}"
