"""Files that are either whole or not there, and folders that one program holds alone."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Layout = Mapping[str, Any]

CAN_HOLD = fcntl is not None
"""Whether the system can tell who holds a file."""

RESULT_NAME = "result.json"
_PARTIAL, LOCK_NAME = f".{'[0-9a-f]' * 32}.partial", ".lock"
_JUST_BEGUN = 60 if CAN_HOLD else 86_400  # seconds in which a file may not be held yet
_POLL = 0.1  # seconds between looks at a lock that another has


def hold(file: Any) -> bool:
    """Hold an open file alone, until it is closed or the process ends.

    Args:
        file: open, or its descriptor; that of a folder will do. Processes that inherit it hold it
            too.

    Returns:
        False if another process holds it; True as well where the system cannot tell.

    Raises:
        OSError: if the file system has no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(folder: Path, job: str, patience: float = 0.0) -> Iterator[int]:
    """Make a folder and hold it alone, together with the processes that inherit the descriptor.

    Args:
        folder: gets a file ``.lock``, which stays.
        job: what is done in it, such as ``"comparison"``; for the message.
        patience: seconds to wait for what an earlier job, killed since, has left running.

    Yields:
        The descriptor of the lock.

    Raises:
        ValueError: if another job holds the folder, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK_NAME, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ValueError(f"run_dir {str(folder)!r} cannot be made: {error.strerror}") from error
    with file:
        deadline, told = time.monotonic() + patience, False
        while not hold(file):
            if time.monotonic() >= deadline:
                raise ValueError(f"run_dir {str(folder)!r} is in use by another {job}")
            if not told:
                print(f"waiting for the runs under way in {folder} to end", file=sys.stderr)
                told = True
            time.sleep(_POLL)
        yield file.fileno()


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
    temporary = path.with_name(f".{uuid4().hex}.partial")
    try:
        with open(
            temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8"
        ) as file:
            with suppress(OSError):  # no locks there
                hold(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
        raise
    sync(path.parent)


def remove_abandoned(folder: Path, shared: bool = False) -> None:
    """Remove what ``atomic_write`` left in a folder when its process was killed.

    Args:
        folder: need not be there.
        shared: whether others may write there as well; then what somebody holds or has just begun
            stays, and so does what cannot be removed.
    """
    for path in folder.glob(_PARTIAL):
        if not shared:
            path.unlink(missing_ok=True)
            continue
        with suppress(OSError), open(path, "rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > _JUST_BEGUN and hold(file):
                path.unlink()


def stranger(folder: Path, layout: Layout) -> Path | None:
    """The first thing in a folder that a program cannot have made there; ``None`` if all fits.

    Args:
        folder: to be looked through, with the folders in it.
        layout: by shell pattern what the program makes: ``None`` for a file, else a layout of a
            folder. What ``atomic_write`` leaves fits as well; links never do.
    """
    layout = {**layout, _PARTIAL: None}
    for path in sorted(folder.iterdir()):
        fitting = [inner for name, inner in layout.items() if fnmatchcase(path.name, name)]
        is_folder = bool(fitting) and fitting[0] is not None
        if not fitting or path.is_symlink() or path.is_dir() != is_folder:
            return path
        if is_folder and (found := stranger(path, fitting[0])):
            return found
    return None


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file's contents, in hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut, where the system can."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
