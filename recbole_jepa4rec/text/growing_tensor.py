"""A tensor that grows, in memory while it is small and in an unnamed file from then on."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_jepa4rec.text import tensor_cache

logger = logging.getLogger(__name__)


class GrowingTensor:
    """Parts of a tensor laid end to end.

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
        if self._folder is None or self._bytes <= tensor_cache.LARGEST_IN_MEMORY:
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
