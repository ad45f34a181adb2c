"""Starts the processes of a run on one machine, and sees that all of them end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from recbole_jepa4rec.base.processes.membership import ECHO, JOIN_SECONDS, Place, claim

ERROR_GRACE = 10.0
"""Seconds that the other processes have to end by themselves after one has failed."""
END_GRACE = 300.0
"""The same after all were told to end, and may write a checkpoint."""
KILL_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for those that did not end by themselves."""

LOCALHOST = "localhost"


def launch(
    function: Callable[..., int],
    arguments: Sequence[Any],
    *,
    nproc: int,
    ip: str = LOCALHOST,
    port: int | None = None,
    world_size: int | None = None,
    group_offset: int = 0,
) -> int:
    """Run a function in several processes, each of which finds its place in the environment.

    The processes are spawned, with torchrun's variables set, and meet in :func:`joined`. Signals
    are passed on: SIGTERM and SIGINT once, whatever comes after as SIGKILL. When one fails the
    others are ended. Threads are divided among the processes unless OMP_NUM_THREADS says how many
    each has.

    Args:
        function: importable; returns an exit status.
        arguments: of the function, picklable.
        nproc: processes to start on this machine.
        ip: of the machine that has the run's first process.
        port: that the processes meet at; a free one by default.
        world_size: processes of the run on all machines; ``nproc`` by default.
        group_offset: number of this machine's first process among them.

    Returns:
        Exit status of the first process to fail, 128 + the signal's number where a signal ended
        it; 0 if none did.

    Raises:
        ValueError: for numbers that do not fit, or a port in use; nothing is started then.
    """
    world_size = nproc if world_size is None else world_size
    _check(nproc, world_size, group_offset, port)
    store = _open_store(ip, port) if group_offset == 0 else None
    places = [
        Place(
            rank=group_offset + local_rank,
            world_size=world_size,
            local_rank=local_rank,
            ip=ip,
            port=store.port if store else int(port or 0),
            launched=True,
        )
        for local_rank in range(nproc)
    ]
    threads = 0 if os.environ.get("OMP_NUM_THREADS") else torch.get_num_threads() // nproc
    context = torch.multiprocessing.get_context("spawn")
    children = [
        context.Process(
            target=_child,
            args=({**place.environment(), "LOCAL_WORLD_SIZE": str(nproc)}, threads),
            kwargs={"function": function, "arguments": arguments},
            name=f"process {place.rank}",
        )
        for place in places
    ]
    return _Family(children, ip, places[0].port).run()


class _Family:
    """Processes that start and end together.

    Args:
        children: not started yet.
        ip: where the store is.
        port: of the store.
    """

    def __init__(self, children: list[Any], ip: str, port: int) -> None:
        self.children, self.address = children, (ip, port)
        self.told: int | None = None  # the signal that told all to end
        self.status = 0

    def run(self) -> int:
        """Start them, wait for all, and leave none behind."""
        try:
            with self._passing_signals_on():
                with _blocked(signal.SIGINT):  # inherited: a child that still imports would show
                    for child in self.children:  # where it was
                        child.start()
                self._wait()
        finally:
            self._send(signal.SIGKILL)
            for child in self.children:
                if child.pid is not None:
                    child.join()
        if self.status == ECHO:
            print("error: a process on another machine ended the run", file=sys.stderr)
            return 1
        return self.status

    def _wait(self) -> None:
        """Wait until all have ended, not long for the others once one has failed."""
        running = list(self.children)
        steps: list[tuple[float, int]] = []  # when to send what to those still running
        while running:
            patience = max(0.0, steps[0][0] - time.monotonic()) if steps else None
            wait_for([child.sentinel for child in running], patience)
            ended = [child for child in running if not child.is_alive()]
            running = [child for child in running if child not in ended]
            for child in ended:
                self._note(child)
            failed = [child for child in ended if child.exitcode]
            now = time.monotonic()
            if failed and not steps:
                grace = END_GRACE if self.told else ERROR_GRACE
                steps = [(now + grace, signal.SIGTERM), (now + grace + KILL_GRACE, signal.SIGKILL)]
            if steps and now >= steps[0][0]:
                self._send(steps.pop(0)[1])

    def _note(self, child: Any) -> None:
        """Keep the first status that tells something; say what a process could not say itself."""
        if child.exitcode >= 0:
            if self.status in (0, ECHO):
                self.status = child.exitcode or self.status
            return
        if self.status in (0, ECHO):
            self.status = 128 - child.exitcode
        cause = f"{child.name} was ended by {signal.Signals(-child.exitcode).name}"
        if not self.told and _claim(self.address, cause):
            print(f"error: {cause}", file=sys.stderr)

    def _send(self, number: int) -> None:
        for child in self.children:
            if child.pid is not None and child.is_alive():
                with suppress(ProcessLookupError):  # it has ended since
                    os.kill(child.pid, number)

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """Hand SIGTERM and SIGINT to the children, which end in their own way."""
        if threading.current_thread() is not threading.main_thread():  # only it may set handlers
            yield
            return

        def pass_on(number: int, _: Any) -> None:
            self._send(signal.SIGKILL if self.told else number)
            self.told = number

        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, pass_on) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def _child(
    environment: dict[str, str], threads: int, function: Callable[..., int], arguments: Any
) -> None:
    """What a spawned process does."""
    os.setpgrp()  # Ctrl-C reaches the parent alone, which passes it on once
    os.environ.update(environment)
    if threads:
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        sys.exit(function(*arguments))
    except KeyboardInterrupt:  # before the function could say how it ends
        sys.exit(128 + signal.SIGINT)


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Keep a signal waiting meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """No orphan is left where the parent is killed."""
    parent = parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(128 + signal.SIGKILL)


def _check(nproc: int, world_size: int, group_offset: int, port: int | None) -> None:
    """Refuse numbers that do not fit together."""
    numbers = {
        "nproc": (nproc, 1),
        "world_size": (world_size, 1),
        "group_offset": (group_offset, 0),
    }
    for key, (value, least) in numbers.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{key} is {value!r}; allowed: a whole number, {least} or more")
    if group_offset + nproc > world_size:
        raise ValueError(
            f"world_size is {world_size}; allowed with group_offset={group_offset} and "
            f"nproc={nproc}: {group_offset + nproc} or more"
        )
    if port is None and world_size > nproc:
        raise ValueError(f"port is not given; world_size={world_size} needs one to meet at")
    if port is not None and (type(port) is not int or not 0 < port < 2**16):
        raise ValueError(f"port is {port!r}; allowed: 1 to {2**16 - 1}")


def _open_store(ip: str, port: int | None) -> dist.TCPStore:
    """The store of the run, here so that it outlives any of its processes.

    Raises:
        ValueError: if the port is in use.
    """
    in_use = f"port {port} is in use; allowed: a free one"
    if port is not None:
        try:  # torch would say so in several lines
            socket.create_server(("", port)).close()
        except OSError as error:
            raise ValueError(in_use) from error
    try:
        return dist.TCPStore(ip, port or 0, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise ValueError(in_use) from error


def _claim(address: tuple[str, int], cause: str) -> bool:
    """``claim`` through a connection of its own; a child's death says what others cannot."""
    try:
        seconds = timedelta(seconds=min(JOIN_SECONDS, 5))
        return claim(dist.TCPStore(*address, is_master=False, timeout=seconds), cause)
    except RuntimeError:
        return True
