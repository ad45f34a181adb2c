"""TensorBoard's events, in a folder that is opened when there is something to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class EventWriter:
    """Stands for a ``SummaryWriter`` that is made with the first value: no value, no file.

    Args:
        make: makes it; ``None`` where nothing is to be written, as in all processes but one.
    """

    def __init__(self, make: Callable[[], SummaryWriter] | None) -> None:
        self._make = make
        self._writer: SummaryWriter | None = None

    @classmethod
    def into(cls, folder: str | Path) -> EventWriter:
        """A writer of events into a folder."""
        return cls(lambda: SummaryWriter(str(folder)))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a point of a curve."""
        if self._make is not None:
            self._opened.add_scalar(tag, value, step)

    def close(self) -> None:
        """Write what is held back; nothing happens where nothing was written."""
        if self._writer is not None:
            self._writer.close()

    @property
    def _opened(self) -> SummaryWriter:
        assert self._make is not None
        self._writer = self._writer or self._make()
        return self._writer

    def __getattr__(self, name: str) -> Any:
        """Whatever else a ``SummaryWriter`` can do, for RecBole's trainers."""
        if name.startswith("_") or self._make is None:
            raise AttributeError(f"no events are written: there is no {name!r}")
        return getattr(self._opened, name)
