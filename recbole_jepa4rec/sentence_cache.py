"""The item sentences' cache on disk: keyed by content and settings, checked whenever it is read."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pandas as pd
import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from recbole_jepa4rec.files import atomic_write

logger = logging.getLogger(__name__)

_FORMAT = "recbole_jepa4rec item sentences 1"


def default_cache_dir() -> Path:
    """The user's cache folder, after the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recbole_jepa4rec"


class SentenceCache:
    """One cache file; what it holds is used only if it is whole and was made for this content.

    Args:
        folder: folder of the cache, made when first written to.
        key: `content_key` of the catalogue.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = Path(folder) / f"sentences-{key[:16]}.safetensors"
        self.key = key

    def read(self) -> dict[str, Tensor] | None:
        """The stored tensors; None, with a warning, if there is a file that cannot be used."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("token cache %s is rebuilt: %s", self.path, error)
            return None
        expected = {"format": _FORMAT, "key": self.key, "checksum": _checksum(tensors)}
        wrong = [name for name, value in expected.items() if metadata.get(name) != value]
        if wrong:
            logger.warning("token cache %s is rebuilt: wrong %s", self.path, ", ".join(wrong))
            return None
        return tensors

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Store the tensors; a folder that cannot be written to costs a warning, not the run."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"format": _FORMAT, "key": self.key, "checksum": _checksum(tensors)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                file.write(save(tensors, metadata))
        except OSError as error:
            logger.warning("token cache %s was not written: %s", self.path, error)


def content_key(
    item_text: pd.DataFrame, tokenizer: tokenizers.Tokenizer, max_attribute_tokens: int
) -> str:
    """sha256 over everything the item sentences depend on, as 64 hex digits."""
    digest = hashlib.sha256()
    settings = [_FORMAT, tokenizers.__version__, str(max_attribute_tokens), tokenizer.to_str()]
    columns = [[str(name), *item_text[name]] for name in item_text.columns]
    for texts in [settings, *columns]:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        digest.update(" ".join(str(len(text)) for text in encoded).encode() + b"\n")
        digest.update(b"".join(encoded))
    return digest.hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
