"""Tensors cached on disk: keyed by what they were made of, checked whenever they are read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from recbole_jepa4rec.files import atomic_write

logger = logging.getLogger(__name__)


class TensorCache:
    """One cache file; what it holds is used only if it is whole and was made for this content.

    Args:
        folder: folder of the cache, made when first written to.
        kind: what is cached, a word; the file is named after it.
        key: `content_key` of everything the tensors depend on.
    """

    def __init__(self, folder: Path, kind: str, key: str) -> None:
        self.path = Path(folder) / f"{kind}-{key[:16]}.safetensors"
        self.kind, self.key = kind, key

    def read(self) -> dict[str, Tensor] | None:
        """The stored tensors; None, with a warning, if there is a file that cannot be used."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s cache %s is rebuilt: %s", self.kind, self.path, error)
            return None
        expected = self._metadata(tensors)
        wrong = [name for name, value in expected.items() if metadata.get(name) != value]
        if wrong:
            logger.warning(
                "%s cache %s is rebuilt: wrong %s", self.kind, self.path, ", ".join(wrong)
            )
            return None
        return tensors

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors; a folder that cannot be written to costs a warning, not the run."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                file.write(save(tensors, self._metadata(tensors)))
        except OSError as error:
            logger.warning("%s cache %s was not written: %s", self.kind, self.path, error)

    def _metadata(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        kind = f"recbole_jepa4rec {self.kind} 1"
        return {"format": kind, "key": self.key, "checksum": _checksum(tensors)}


def content_key(*parts: Iterable[str]) -> str:
    """sha256 over lists of texts, whose bounds count, as 64 hex digits."""
    digest = hashlib.sha256()
    for texts in parts:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        digest.update(" ".join(str(len(text)) for text in encoded).encode() + b"\n")
        digest.update(b"".join(encoded))
    return digest.hexdigest()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(uint8).numpy().data)
    return digest.hexdigest()
