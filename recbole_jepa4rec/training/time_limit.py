"""Ends before the last epoch: a deadline, after the step under way, and SIGTERM, at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import Any


class TimeSpentError(Exception):
    """Leaves RecBole's loop over epochs, which offers no other way out."""


class UntilDeadline:
    """A loader that gives no further batch once the deadline has passed; one at least is given.

    Args:
        loader: RecBole's loader; its other attributes shine through.
        deadline: in seconds of ``time.monotonic()``.
    """

    def __init__(self, loader: Any, deadline: float) -> None:
        self._loader, self._deadline = loader, deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            if time.monotonic() >= self._deadline:
                return


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM leave through every ``finally``, and a line in the log."""

    def end(number: int, _: Any) -> None:
        getLogger().critical("told to end (SIGTERM)")
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
