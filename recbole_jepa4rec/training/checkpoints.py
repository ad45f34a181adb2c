"""Checkpoints that a run can go on from: each one file, whose name tells whether it is whole."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from io import BytesIO
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base.checkpoint import load_state, write_state
from recbole_jepa4rec.base.files import atomic_write

KEPT = 2
"""Checkpoints that stay: the newest, and the one before it in case that one is damaged."""

NAME = re.compile(r"(?P<number>\d{8})-(?P<digest>[0-9a-f]{32})\.pt")


class CheckpointFolder:
    """The newest checkpoints of one run.

    A file is called ``<number>-<digest>.pt``, the digest being the first half of its contents'
    SHA-256. It is written under a temporary name, flushed and renamed; older ones go afterwards.

    Args:
        path: the folder; made when the first checkpoint is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, state: Mapping[str, Any]) -> Path:
        """Write a state of plain values and tensors as the newest checkpoint.

        Raises:
            ValueError: for a value of any other type; names its key.
            OSError: if the file cannot be written; names it. The others are as they were.
        """
        buffer = BytesIO()
        write_state(buffer, state)
        files = self._files()
        number = 1 + max(files, default=0)
        path = self.path / f"{number:08d}-{_digest(buffer.getbuffer())}.pt"
        self.path.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
        for older in sorted(files)[: 1 - KEPT]:
            files[older].unlink(missing_ok=True)
        return path

    def newest(self) -> dict[str, Any] | None:
        """The newest state that is whole; ``None`` if nothing was written yet.

        A file that is not whole is reported as a warning and passed over.

        Raises:
            ValueError: if there are checkpoints and none of them is whole.
        """
        files = self._files()
        for number in sorted(files, reverse=True):
            if _is_whole(path := files[number]):
                return load_state(path)
            getLogger().warning(f"{path} is damaged (its checksum is another) and not used")
        if files:
            raise ValueError(
                f"no checkpoint in {self.path} is whole; allowed: a run without --resume in "
                "another folder"
            )
        return None

    def has_whole(self) -> bool:
        """Whether there is a checkpoint that is whole."""
        return any(map(_is_whole, self._files().values()))

    def remove(self) -> None:
        """Remove the folder: the run is over."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def _files(self) -> dict[int, Path]:
        """Files of checkpoints by their number."""
        named = ((NAME.fullmatch(path.name), path) for path in self.path.glob("*.pt"))
        return {int(match["number"]): path for match, path in named if match}


def _is_whole(path: Path) -> bool:
    """Whether a file's contents are those that its name tells of."""
    return path.stem.partition("-")[2] == _digest(path.read_bytes())


def _digest(contents: bytes | memoryview) -> str:
    return hashlib.sha256(contents).hexdigest()[:32]
