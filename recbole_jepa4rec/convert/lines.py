"""Lines of a file, gzip or plain, numbered, with a bar that shows how much of the file is read."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

MAX_LINE_BYTES = 1 << 24
"""The longest line: what ``atomic_files`` reads."""

_BLOCK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


class BadLines:
    """Lines that are left out; one more than allowed ends the reading.

    Args:
        allowed: how many lines may be left out.
    """

    def __init__(self, allowed: int = 0) -> None:
        self.allowed = allowed
        self.found: dict[tuple[str, int], str] = {}

    def __len__(self) -> int:
        return len(self.found)

    def add(self, path: Path, line: int, expected: str) -> None:
        """Leave a line out; a second pass over the file finds it counted already.

        Raises:
            ValueError: naming file, line and what was expected, if that is one too many.
        """
        self.found[str(path), line] = expected
        if len(self.found) > self.allowed:
            reason = f"{path}, line {line}: {expected}"
            if self.allowed:
                reason += f" (bad line number {len(self.found)}; --max-bad allows {self.allowed})"
            raise ValueError(reason)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, counted from 1, and bytes of each line, without its line end.

    Raises:
        ValueError: if there is no such file, it is no whole gzip file, or a line is too long.
    """
    number, rest = 0, b""
    with opened(path) as file:
        while True:
            try:
                block = file.read1(_BLOCK_BYTES)  # type: ignore[attr-defined]
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                reason = "it ends early" if isinstance(error, EOFError) else str(error)
                raise ValueError(
                    f"{path}, line {number + 1}: expected a whole gzip file, found {reason}"
                ) from error
            if not block:
                break
            lines = block.split(b"\n")
            lines[0] = rest + lines[0]
            rest = lines.pop()
            if len(rest) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{path}, line {number + len(lines) + 1}: expected a line of at most "
                    f"{MAX_LINE_BYTES >> 20} MiB"
                )
            for line in lines:
                number += 1
                yield number, line
    if rest:
        yield number + 1, rest


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed if it is gzip, with a bar on a terminal.

    Raises:
        ValueError: if it cannot be opened.
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise ValueError(f"{path}: expected a file to read, found: {error.strerror}") from error
    with raw, progress(path) as bar:
        is_gzip = raw.peek(2)[:2] == _GZIP
        watched = _Watched(raw, bar)
        if is_gzip:
            with gzip.GzipFile(fileobj=watched) as file:
                yield file  # type: ignore[misc]
        else:
            yield watched  # type: ignore[misc]


def progress(path: Path) -> tqdm:
    """A bar of the bytes of a file, on standard error where that is a terminal."""
    size = path.stat().st_size
    return tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False)


class _Watched:
    """A file whose bytes move a bar as they are read."""

    def __init__(self, file: IO[bytes], bar: tqdm) -> None:
        self._file, self._bar = file, bar

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._bar.update(len(data))
        return data

    read1 = read

    def seek(self, *where: int) -> int:
        return self._file.seek(*where)

    def tell(self) -> int:
        return self._file.tell()
