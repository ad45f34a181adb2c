"""SIGTERM: an end that waits for the step under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import FileHandler, getLogger
from typing import Any

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that was told to end (SIGTERM)."""

WORKER_SECONDS = 60
"""After SIGTERM a loader's worker that nobody ends is ended by the system."""


@dataclass
class _Sigterm:
    """What is known of SIGTERM in this process.

    Attributes:
        waits: whether it waits for ``asked_to_end`` to be called.
        came: whether it came while it had to wait.
        depth: blocks of ``ending_on_sigterm`` that are open.
    """

    waits: bool = False
    came: bool = False
    depth: int = 0


_SIGTERM = _Sigterm()


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM leave through every ``finally``, and a line in the log.

    The end of a block within another puts this right again, where a library has meanwhile put in
    a handler of its own.
    """
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    _SIGTERM.depth += 1
    try:
        yield
    finally:
        _SIGTERM.depth -= 1
        signal.signal(signal.SIGTERM, _end if _SIGTERM.depth else before)


def _end(*_: Any) -> None:
    getLogger().critical("told to end (SIGTERM)")
    if _SIGTERM.waits:
        _SIGTERM.came = True
    else:
        raise SystemExit(TERMINATED)


@contextmanager
def holding_sigterm() -> Iterator[None]:
    """Let SIGTERM wait until ``asked_to_end`` is called, or for the end of the block.

    Raises:
        SystemExit: at the end of the block, if it came and nobody acted on it.
    """
    if _SIGTERM.waits:  # a run within a run, such as a retriever's: the outer block decides
        yield
        return
    _SIGTERM.waits, _SIGTERM.came = True, False
    try:
        yield
    finally:
        _SIGTERM.waits = False
    if _SIGTERM.came:
        raise SystemExit(TERMINATED)


def begin_worker(_: int) -> None:
    """Make a worker of a loader outlive SIGTERM, and hold nothing; a ``worker_init_fn``.

    SIGTERM comes to all processes of a job at once, and a worker that it killed would end the run
    as a failure. The process that trains ends its workers itself; if it is killed, they notice
    after seconds, and until then would hold the log, by which a run has its folder to itself.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_SECONDS))
    for handler in getLogger().handlers:
        if isinstance(handler, FileHandler):
            handler.close()  # it opens its file again if there is anything to say


def asked_to_end() -> bool:
    """Whether SIGTERM came since ``holding_sigterm`` began."""
    return _SIGTERM.came
