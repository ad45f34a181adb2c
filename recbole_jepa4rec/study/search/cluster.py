"""The Ray cluster of a search: large enough for a trial, and watched while it works."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from recbole_jepa4rec.base.ray_cluster import CONNECT_SECONDS, connected, ray
from recbole_jepa4rec.study.search.request import Request

WATCH_SECONDS = 2.0
"""Between two looks at the machines of a cluster."""


@contextmanager
def cluster(request: Request) -> Iterator[float]:
    """Connect to the cluster asked for, or start one on this machine; leave it at the end.

    Yields:
        The GPUs of a trial: what was asked for, else one where the cluster has any and the
        settings use it.

    Raises:
        ValueError: if there is no such cluster, or no machine of it can hold a trial.
    """
    keys = request.keys
    with connected(keys.address, keys.cpus_per_trial):
        gpus = keys.gpus_per_trial
        if gpus is None:
            has_any = ray.cluster_resources().get("GPU", 0) > 0
            gpus = 1.0 if has_any and request.config["use_gpu"] else 0.0
        needs = {"CPU": float(keys.cpus_per_trial), "GPU": gpus}
        if problem := _too_large(needs):
            raise ValueError(problem)
        with _watched(needs):
            yield gpus


def _too_large(needs: Mapping[str, float]) -> str:
    """Why no machine can hold a trial, for which Ray would wait for ever; empty if one can."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
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
        problem = _too_large(needs)
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
