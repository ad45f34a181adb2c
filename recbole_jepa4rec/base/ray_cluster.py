"""A Ray cluster: found or started, and left at the end; importing this needs Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import torch

from recbole_jepa4rec.base.command import FAILED, python_path
from recbole_jepa4rec.base.stopping import ending_on_sigterm

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
"""Time to reach an address, and for Ray to answer there."""

LEAVE_SECONDS = 60.0
"""Time to leave a cluster: without Ray's own process on this machine it would take for ever."""


@contextmanager
def connected(address: str | None, threads: int) -> Iterator[None]:
    """Join a cluster, or start one on this machine; leave it at the end.

    A cluster that this process belongs to already is kept.

    Args:
        address: ``"auto"``, HOST:PORT of a cluster's head, or ``ray://HOST:PORT``; ``None`` starts
            a cluster, also where another one runs.
        threads: of the numerical libraries, in each process of the cluster.

    Raises:
        ValueError: if there is no such cluster.
    """
    if ray.is_initialized():
        yield
        return
    numbers = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    options: dict[str, Any] = {
        "address": address or "local",  # Ray left to itself would join any cluster that runs here
        "runtime_env": {"env_vars": {**numbers, "PYTHONPATH": python_path()}},
        "log_to_driver": False,
        "logging_level": "CRITICAL",
    }
    if address is None:
        options |= {"include_dashboard": False, "num_gpus": torch.cuda.device_count()}
    try:
        if address not in (None, "auto"):
            _refuse_silent(str(address))
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        says = f"address {options['address']!r}: no Ray cluster: {reason[:200]}"
        raise ValueError(says) from None
    try:
        with ending_on_sigterm():  # anew, since Ray has put in a handler that aborts
            yield
    finally:
        late = threading.Timer(LEAVE_SECONDS, _end_without_ray)
        late.daemon = True
        late.start()
        ray.shutdown()
        late.cancel()


def _end_without_ray() -> None:
    print("error: Ray does not end; what is finished is on disk", file=sys.stderr, flush=True)
    os._exit(FAILED)


def _refuse_silent(address: str) -> None:
    """Refuse an address where no Ray answers; ``ray.init`` would try for minutes.

    Raises:
        OSError: if nothing listens there.
        ValueError: if it is no address, or something else answers.
    """
    place = urlsplit(address if "//" in address else f"//{address}")
    if not place.hostname or not place.port:
        raise ValueError("allowed: auto, HOST:PORT, ray://HOST:PORT")
    socket.create_connection((place.hostname, place.port), CONNECT_SECONDS).close()
    if place.scheme:  # Ray's client has another protocol
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=ANSWER_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise ValueError(f"what answers there is none of version {ray.__version__}") from None
