"""Tensors on disk: cached ones, keyed by what they were made of, and one that grows there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recbole_jepa4rec.base.files import atomic_write, remove_abandoned

logger = logging.getLogger(__name__)

LARGEST_IN_MEMORY = 1 << 26
"""Bytes of a tensor that is held in memory; a larger one is mapped from its file."""

_BYTES_AT_ONCE = 1 << 20
_TEXTS_AT_ONCE = 1 << 14


def default_cache_dir() -> Path:
    """The user's cache folder, after the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recbole_jepa4rec"


class TensorCache:
    """One cache file; what it holds is used only if it is whole and was made for this content.

    Large tensors are mapped: a page is read from the file when it is first touched, and the system
    may drop it again. Small ones are copied, so that nothing that happens to the file afterwards
    reaches them.

    Args:
        folder: folder of the cache, made when first written to.
        kind: what is cached, a word; the file is named after it.
        key: `content_key` of everything the tensors depend on.
    """

    def __init__(self, folder: Path, kind: str, key: str) -> None:
        self.path = Path(folder) / f"{kind}-{key[:16]}.safetensors"
        self.kind, self.key = kind, key

    def read(self) -> dict[str, Tensor] | None:
        """The stored tensors; None, with a warning, if there is a file that cannot be used.

        What a killed process has begun to write in the folder is removed.
        """
        remove_abandoned(self.path.parent, shared=True)
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            expected = self._metadata(tensors, _stored_bytes(self.path))
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s cache %s is rebuilt: %s", self.kind, self.path, error)
            return None
        wrong = [name for name, value in expected.items() if metadata.get(name) != value]
        if wrong:
            logger.warning(
                "%s cache %s is rebuilt: wrong %s", self.kind, self.path, ", ".join(wrong)
            )
            return None
        return {
            name: tensor if tensor.nbytes > LARGEST_IN_MEMORY else tensor.clone()
            for name, tensor in tensors.items()
        }

    def write(self, tensors: Mapping[str, Tensor]) -> bool:
        """Store the tensors; a folder that cannot be written to costs a warning, not the run.

        Returns:
            Whether they are stored.
        """
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = self._metadata(tensors)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                save_file(tensors, file.name, metadata)
        except (OSError, SafetensorError) as error:
            logger.warning("%s cache %s was not written: %s", self.kind, self.path, error)
            return False
        return True

    def _metadata(
        self, tensors: Mapping[str, Tensor], contents: Mapping[str, Iterable[Any]] | None = None
    ) -> dict[str, str]:
        kind = f"recbole_jepa4rec {self.kind} 1"
        return {"format": kind, "key": self.key, "checksum": checksum(tensors, contents)}


class GrowingTensor:
    """Parts of a tensor laid end to end, in memory while it is small and in a file from then on.

    The file has no name, so that it is gone with the process however that ends, and takes the
    place of the memory: what is read of it again the system may drop. If it cannot be written, a
    warning says so and all parts are held in memory.

    Args:
        begin: the first part, ``[n]``; says the type and the device of all.
        folder: where the file lies, made if missing; ``None`` holds everything in memory.
    """

    def __init__(self, begin: Tensor, folder: Path | None = None) -> None:
        self._parts, self._folder = [begin], folder
        self._file: Any = None  # unbuffered
        self._written = 0  # elements in the file
        self._bytes = begin.nbytes

    @property
    def is_mapped(self) -> bool:
        """Whether the tensor lies in a file."""
        return self._file is not None

    def append(self, part: np.ndarray) -> None:
        """Add a part at the end, ``[m]``."""
        self._parts.append(torch.from_numpy(part).to(self._parts[0]))
        self._bytes += part.nbytes
        if self._folder is None or self._bytes <= LARGEST_IN_MEMORY:
            return
        try:
            self._write(self._folder)
        except OSError as error:
            logger.warning("%s: tokens are held in memory: %s", self._folder, error.strerror)
            if self._file is not None:
                self._parts.insert(0, self._mapped().clone())
                self._file.close()
            self._file = self._folder = None

    def tensor(self) -> Tensor:
        """All parts, ``[n + m + ...]``."""
        return torch.cat(self._parts) if self._file is None else self._mapped()

    def _write(self, folder: Path) -> None:
        """Move the parts to the file."""
        if self._file is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (kept)
        part = torch.cat(self._parts)
        left = part.numpy().data.cast("B")
        while left:
            left = left[self._file.write(left) :]
        self._written += len(part)
        self._parts = [part[:0].clone()]

    def _mapped(self) -> Tensor:
        """What the file holds; pages that are written to become this process's own."""
        dtype = self._parts[0].numpy().dtype
        if not self._written:
            return self._parts[0][:0]
        return torch.from_numpy(np.memmap(self._file, dtype, "c", shape=(self._written,)))


def content_key(*parts: Iterable[str]) -> str:
    """sha256 over lists of texts, whose bounds count, as 64 hex digits.

    Args:
        parts: each is gone through twice.
    """
    digest = hashlib.sha256()
    for texts in parts:
        between = b""
        for encoded in _encoded(texts):
            digest.update(between + " ".join(str(len(text)) for text in encoded).encode())
            between = b" "
        digest.update(b"\n")
        for encoded in _encoded(texts):
            digest.update(b"".join(encoded))
    return digest.hexdigest()


def _encoded(texts: Iterable[str]) -> Iterator[list[bytes]]:
    """The texts in UTF-8, some at a time."""
    remaining = iter(texts)
    while some := [t.encode("utf-8", "surrogatepass") for t in islice(remaining, _TEXTS_AT_ONCE)]:
        yield some


def checksum(
    tensors: Mapping[str, Tensor], contents: Mapping[str, Iterable[Any]] | None = None
) -> str:
    """sha256 over names, types, shapes and contents.

    Args:
        tensors: by name.
        contents: bytes of each, in parts; by default those that it holds.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in _bytes(tensor) if contents is None else contents[name]:
            digest.update(part)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's contents, some at a time."""
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    for first in range(0, len(data), _BYTES_AT_ONCE):
        yield data[first : first + _BYTES_AT_ONCE]


def _stored_bytes(path: Path) -> dict[str, Iterator[bytes]]:
    """Contents of a file's tensors, read and not mapped: checking them leaves no page resident.

    A safetensors file begins with the length of its header in eight bytes, then the header, JSON.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: _between(path, *(8 + length + offset for offset in entry["data_offsets"]))
        for name, entry in header.items()
    }


def _between(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(begin)
        while begin < end:
            part = file.read(min(_BYTES_AT_ONCE, end - begin))
            if not part:
                raise OSError(f"{path} ends early")
            begin += len(part)
            yield part
