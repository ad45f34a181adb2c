"""A data set's folder that takes its name only once everything in it is on disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFIT = set(",+:\t\n\r\0\"'")


def check_target(target: Path, force: bool) -> Path:
    """Refuse a place that cannot become the folder.

    Args:
        target: the folder to be.
        force: whether an existing data set of that name may be replaced.

    Returns:
        The absolute path.

    Raises:
        ValueError: if there is something already, or the name cannot be one of a data set.
    """
    path = Path(os.path.abspath(target))
    if not path.name or _UNFIT & set(path.name) or path.name.startswith("."):
        raise ValueError(f"--out {target}: expected a folder whose name can name a data set")
    if not os.path.lexists(path):
        return path
    if not force:
        raise ValueError(f"--out {target}: it is there already (--force replaces it)")
    if not path.is_dir() or path.is_symlink():
        raise ValueError(f"--out {target}: expected a folder")
    for other in path.iterdir():
        if not other.name.startswith(f"{path.name}.") or not other.is_file():
            raise ValueError(f"--out {target}: it holds {other.name!r}, which --force would delete")
    return path


@contextmanager
def whole_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Give a folder to write into; it is renamed to ``target`` when the block ends well.

    Files of the block must be closed by then; they are flushed to the disk before the rename. What
    killed processes left of earlier folders of that name is deleted.

    Args:
        target: the folder to be; see ``check_target``.
        force: whether a folder that stands there is replaced.

    Yields:
        The temporary folder, a sibling of the target.

    Raises:
        ValueError: if something has come to stand at the target that may not be replaced.
        OSError: if it cannot be made, flushed or renamed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _delete_abandoned(target)
    mark = uuid4().hex
    temporary, old = (target.with_name(f".{target.name}.{mark}{end}") for end in ("", ".old"))
    temporary.mkdir()
    lock = _lock(temporary)  # held until this process is gone, however it goes
    try:
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        check_target(target, force)
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[IO[str]]:
    """Open a file for UTF-8 text with bare newlines; a failure to write names it.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        with open(path, "x", encoding="utf-8", newline="\n", buffering=1 << 20) as file:
            yield file
    except OSError as error:
        if error.filename is None:  # a full disk names no file
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
        raise


def _delete_abandoned(target: Path) -> None:
    """Delete temporary folders of the target that no living process has locked."""
    for path in target.parent.glob(f".{escape(target.name)}.*"):
        if re.fullmatch("[0-9a-f]{32}", path.name.removeprefix(f".{target.name}.")):
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None if another has it or there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sync(path: Path) -> None:
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
