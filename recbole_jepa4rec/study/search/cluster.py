"""The Ray cluster of a search: found or started, watched while it works, left at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import torch

from recbole_jepa4rec.base.stopping import ending_on_sigterm
from recbole_jepa4rec.study.search.request import Request

WATCH_SECONDS = 2.0
"""Between two looks at the machines of a cluster."""

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 60.0
"""Time to reach an address, and for Ray to answer there."""


def gpus_per_trial(request: Request) -> float:
    """What was asked for, else one where the cluster has any and the settings use it."""
    if request.gpus is not None:
        return request.gpus
    has_any = ray.cluster_resources().get("GPU", 0) > 0
    return 1.0 if has_any and request.config["use_gpu"] else 0.0


@contextmanager
def cluster(request: Request) -> Iterator[None]:
    """Connect to the cluster asked for, or start one on this machine; leave it at the end.

    Raises:
        ValueError: if there is no such cluster, or no machine of it can hold a trial.
    """
    package = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"OMP_NUM_THREADS": str(request.cpus), "PYTHONPATH": paths}
    options: dict[str, Any] = {
        "address": request.address or "local",
        "runtime_env": {"env_vars": variables},
        "log_to_driver": False,
        "logging_level": "CRITICAL",
    }
    if not request.address:  # Ray left to itself would join any cluster that runs here
        options |= {"include_dashboard": False, "num_gpus": torch.cuda.device_count()}
    elif request.address != "auto":
        _refuse_silent(request.address)
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"address {options['address']!r}: no Ray cluster: {reason}") from None
    try:
        with ending_on_sigterm():  # anew, since Ray has put in a handler that aborts
            needs = {"CPU": float(request.cpus), "GPU": gpus_per_trial(request)}
            if problem := _too_large(needs, _alive()):
                raise ValueError(problem)
            with _watched(needs):
                yield
    finally:
        ray.shutdown()


def _refuse_silent(address: str) -> None:
    """Refuse an address where no Ray answers; ``ray.init`` would try for minutes.

    Raises:
        ValueError: says what is wrong there.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"address {address!r}: no Ray cluster: {reason}") from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=ANSWER_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise ValueError(
            f"address {address!r}: what answers there is no Ray of version {ray.__version__}"
        ) from None


def _alive() -> dict[str, Mapping[str, float]]:
    """What each machine of the cluster has, by Ray's name for it."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _too_large(needs: Mapping[str, float], machines: Mapping[str, Mapping[str, float]]) -> str:
    """Why no machine can hold a trial, for which Ray would wait for ever; empty if one can."""
    nodes = machines.values()
    if any(all(node.get(key, 0.0) >= needs[key] for key in needs) for node in nodes):
        return ""
    for key, name in (("CPU", "cpus_per_trial"), ("GPU", "gpus_per_trial")):
        most = max((node.get(key, 0.0) for node in nodes), default=0.0)
        if needs[key] > most:
            return f"{name} {needs[key]:g}: the largest machine has {most:g}"
    return f"no machine has {needs['CPU']:g} CPU cores and {needs['GPU']:g} GPUs"


@contextmanager
def _watched(needs: Mapping[str, float]) -> Iterator[None]:
    """Notice the losses that Ray itself waits out for ever.

    A machine that goes is Ray's to notice: its trials fail and are tried again. Ray's own process
    on the machine of the search is not: without it hardly a call of Ray's returns, nor does its
    shutdown, and trials fail that have nothing wrong with them.
    """
    own = ray.get_runtime_context().get_node_id()
    node = next(each for each in ray.nodes() if each["NodeID"] == own)
    place = (node["NodeManagerAddress"], node["NodeManagerPort"])
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(needs, place, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join(CONNECT_SECONDS)
        _end_without(place)  # Ray may have given up all trials before the watch looked


def _watch(needs: Mapping[str, float], place: tuple[str, int], over: threading.Event) -> None:
    """Look again and again whether Ray is still there, and whether it has room for a trial."""
    waits = False
    while not over.wait(WATCH_SECONDS):
        _end_without(place)
        problem = _too_large(needs, _alive())
        if problem and not waits:
            _say(f"{problem}; the search waits for one (or end it, and go on with --resume)")
        waits = bool(problem)


def _end_without(place: tuple[str, int]) -> None:
    """End the search, at once, if Ray's process on its machine listens no more."""
    try:
        socket.create_connection(place, CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        _say(
            "error: Ray has ended on the machine of the search; the same command with --resume "
            "goes on"
        )
        os._exit(1)  # an exception would wait for Ray; what has ended is on disk
    except OSError:
        return  # a busy machine answers late


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
