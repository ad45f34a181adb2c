"""TensorBoard's events, in a file that is opened when there is something to write."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

RECBOLE_SCORE = "Vaild_score"
"""Of RecBole's own loop; it stands under ``valid/`` with all other metrics."""


class EventFile:
    """A file of events, each on its way to the disk when the call returns.

    ``SummaryWriter`` leaves that to a thread, whose trace nobody asked for and whose error names no
    file.

    Args:
        folder: where it stands, under a new name.

    Raises:
        OSError: if it cannot be written; names it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        parts = f"{time.time():010.0f}", socket.gethostname(), str(os.getpid()), uuid4().hex[:8]
        self.path = folder / ".".join(["events.out.tfevents", *parts])
        self._file = open(self.path, "xb")  # noqa: SIM115 (closed by close)
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a point of a curve.

        Raises:
            OSError: if it cannot be written; names the file.
        """
        if tag != RECBOLE_SCORE:
            self._write(Event(step=int(step), summary=scalar(tag, float(value))))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        try:
            self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            reason = f"cannot write: {error.strerror}"
            raise OSError(error.errno, reason, str(self.path)) from error


class EventWriter:
    """Stands for a writer that is made with the first value: no value, no file.

    Args:
        make: makes it; ``None`` where nothing is to be written, as in all processes but one.
    """

    def __init__(self, make: Callable[[], Any] | None) -> None:
        self._make = make
        self._writer: Any = None

    @classmethod
    def into(cls, folder: str | Path) -> EventWriter:
        """A writer of events into a folder."""
        return cls(lambda: EventFile(Path(folder)))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a point of a curve.

        Raises:
            OSError: if it cannot be written.
        """
        if self._make is not None:
            self._opened.add_scalar(tag, value, step)

    def close(self) -> None:
        """Write what is held back; nothing happens where nothing was written."""
        if self._writer is not None:
            self._writer.close()

    @property
    def _opened(self) -> Any:
        assert self._make is not None
        self._writer = self._writer or self._make()
        return self._writer

    def __getattr__(self, name: str) -> Any:
        """Whatever else a ``SummaryWriter`` can do, for RecBole's own trainers."""
        if name.startswith("_") or self._make is None:
            raise AttributeError(f"no events are written: there is no {name!r}")
        return getattr(self._opened, name)
