"""A catalogue tokenised by a Ray cluster, a task for some rows.

Ray's tasks and not Ray Data: that of Ray 2.6.3, which RecBole pins, imports a part of setuptools
that is there no more, and hands over the whole catalogue before the first row is tokenised.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import ray

from recbole_jepa4rec.base.stopping import ending_on_sigterm
from recbole_jepa4rec.text.row_encoder import EncodedRows, RowEncoder, chunks

TASKS_A_CPU = 2
"""Under way at once for each processor of the cluster: one runs, the next one's rows are there."""

SECONDS_TO_ANSWER = 10


def encoded_on_ray(
    encoder: RowEncoder, item_text: pd.DataFrame, address: str
) -> Iterator[EncodedRows]:
    """Sentences of all rows, in order.

    A task whose machine is lost is run again elsewhere.

    Args:
        encoder: of rows.
        item_text: one row an item.
        address: of a running cluster, or ``"auto"``.

    Raises:
        ValueError: if no cluster is there, or a text holds a lone surrogate.
    """
    with _connected(address):
        encode: Any = ray.remote(_encode)
        shared = ray.put(encoder)
        most = TASKS_A_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        under_way: deque[Any] = deque()
        for rows in chunks(item_text):
            under_way.append(encode.remote(shared, rows))
            if len(under_way) >= most:
                yield _result(under_way.popleft())
        while under_way:
            yield _result(under_way.popleft())


def _encode(encoder: RowEncoder, rows: pd.DataFrame) -> EncodedRows:
    return encoder(rows)


def _result(task: Any) -> EncodedRows:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from None
        raise


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Join a cluster and leave it again; one that this process belongs to already is kept.

    Raises:
        ValueError: if there is no such cluster.
    """
    if ray.is_initialized():
        yield
        return
    package = str(Path(__file__).resolve().parent.parent.parent)
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": paths, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        _refuse_silent(address)
        ray.init(
            address=address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level="CRITICAL",
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"address {address!r}: no Ray cluster: {reason}") from None
    try:
        with ending_on_sigterm():  # anew, since Ray has put in a handler that aborts
            yield
    finally:
        ray.shutdown()


def _refuse_silent(address: str) -> None:
    """Refuse a host and port where nothing listens; Ray would try for minutes.

    Raises:
        OSError: if nothing does.
        ValueError: if the address is neither ``"auto"`` nor a host and a port.
    """
    if address == "auto":
        return
    place = urlsplit(address if "//" in address else f"//{address}")
    if not place.hostname or not place.port:
        raise ValueError("allowed: auto, HOST:PORT, ray://HOST:PORT")
    with socket.create_connection((place.hostname, place.port), SECONDS_TO_ANSWER):
        pass
