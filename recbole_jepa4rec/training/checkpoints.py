"""Checkpoints that a run can go on from: each one file, whose name tells whether it is whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from io import BytesIO
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base.checkpoint import load_state, write_state
from recbole_jepa4rec.base.files import Layout, atomic_write

KEPT = 2
"""Checkpoints that stay: the newest, and the one before it in case that one is damaged."""

LAYOUT: Layout = {f"{'[0-9]' * 8}-{'[0-9a-f]' * 32}.pt": None}
"""What the folder holds."""

NAME = re.compile(r"(?P<number>\d{8})-(?P<digest>[0-9a-f]{32})\.pt")


class CheckpointFolder:
    """The newest checkpoints of one run.

    A file is called ``<number>-<digest>.pt``, the digest being the first half of its contents'
    SHA-256. It is written under a temporary name, flushed and renamed; older ones go afterwards,
    but for the newest that is whole. What only has such a name, a folder or a link, is left alone.

    Args:
        path: the folder; made when the first checkpoint is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: set[Path] = set()  # known to be, so that none is read twice

    def write(self, state: Mapping[str, Any]) -> Path:
        """Write a state of plain values and tensors as the newest checkpoint.

        Raises:
            ValueError: for a value of any other type; names its key.
            OSError: if the file cannot be written; names it. The others are as they were.
        """
        buffer = BytesIO()
        write_state(buffer, state)
        number = 1 + max(self._named(), default=0)
        path = self.path / f"{number:08d}-{_digest(buffer.getbuffer())}.pt"
        self.path.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
        self._whole.add(path)
        self._remove_older()
        return path

    def newest(self) -> dict[str, Any] | None:
        """The newest state that is whole; ``None`` if nothing was written yet.

        What is not whole is reported as a warning and passed over.

        Raises:
            ValueError: if there are checkpoints and none of them is whole.
        """
        named = self._named()
        for number in sorted(named, reverse=True):
            if not (fault := self._fault(path := named[number])):
                return load_state(path)
            getLogger().warning(f"{path} {fault} and is not used")
        if named:
            raise ValueError(
                f"no checkpoint in {self.path} is whole; allowed: a run without --resume in "
                "another folder"
            )
        return None

    def has_whole(self) -> bool:
        """Whether there is a checkpoint that is whole."""
        return not all(map(self._fault, self._named().values()))

    def remove(self) -> None:
        """Remove the checkpoints, and the folder if it holds nothing else: the run is over."""
        for path in self._named().values():
            _remove(path)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _named(self) -> dict[int, Path]:
        """What is called as a checkpoint is, by its number."""
        named = ((NAME.fullmatch(path.name), path) for path in self.path.glob("*.pt"))
        return {int(match["number"]): path for match, path in named if match}

    def _fault(self, path: Path) -> str:
        """What is wrong with a checkpoint; empty if its contents are those its name tells of."""
        if path in self._whole:
            return ""
        try:
            contents = path.read_bytes()
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if path.stem.partition("-")[2] != _digest(contents):
            return "is damaged (its checksum is another)"
        self._whole.add(path)
        return ""

    def _remove_older(self) -> None:
        """Remove what is older than the ``KEPT`` newest that are whole; these alone count."""
        named, kept = self._named(), 0
        for number in sorted(named, reverse=True):
            if kept == KEPT:
                _remove(named[number])
            elif not self._fault(named[number]):
                kept += 1


def _remove(path: Path) -> None:
    """Remove a checkpoint; what is no file was not written by a run."""
    if path.is_file() and not path.is_symlink():
        path.unlink(missing_ok=True)


def _digest(contents: bytes | memoryview) -> str:
    return hashlib.sha256(contents).hexdigest()[:32]
