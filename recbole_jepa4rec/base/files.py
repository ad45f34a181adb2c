"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_PARTIAL = ".partial"


def hold(file: Any) -> bool:
    """Hold an open file alone, until it is closed or the process ends.

    Returns:
        False if another process holds it; True as well where the system cannot tell.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes its name only once it is completely on disk.

    The bytes go to a temporary name in the same folder, are flushed to the disk and then renamed.
    When the block raises, the temporary file is removed and an older file of that name stays.

    Args:
        path: the file to write; its folder must exist.
        mode: ``"wb"`` for bytes or ``"w"`` for UTF-8 text.

    Yields:
        The open file.

    Raises:
        ValueError: for another mode.
        OSError: if the file cannot be written or renamed.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode {mode!r} is not 'wb' or 'w'")
    path = Path(path)
    temporary = path.with_name(f".{uuid4().hex}{_PARTIAL}")
    try:
        with open(
            temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8"
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
        raise
    _sync_folder(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove what ``atomic_write`` left in a folder when its process was killed.

    To be called where nobody else writes there.
    """
    for path in folder.glob(f".{'[0-9a-f]' * 32}{_PARTIAL}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
