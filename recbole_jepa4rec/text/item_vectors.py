"""One frozen vector for each item text, from a sentence encoder or a file the user brings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.device import PartlyOnCPU
from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.data.atomic_files import read_atomic
from recbole_jepa4rec.text.text_encoder import TextEncoder


class ItemVectors(PartlyOnCPU):
    """The item texts' vectors, each different one stored once.

    Buffers (none is saved with a model): ``table`` ``[R, W]`` and ``row_of_item`` int64 ``[N]``,
    which stays on the CPU. Row 0 is zero: it belongs to the padding item (0) and to items without
    text.

    Args:
        table: the vectors, row 0 zero, ``[R, W]``.
        row_of_item: which of them each item has, ``[N]``.
        key: sha256 of what the table was made of.
        texts: the text of each row, ``""`` in row 0; empty for vectors from a file.
        columns: names of the attributes that make up a text, in order.
        encoder: what made the table; ``None`` for vectors from a file.
        source: what tables call the encoder or the file.
    """

    on_cpu = ("row_of_item",)
    table: Tensor
    row_of_item: Tensor

    def __init__(
        self,
        table: Tensor,
        row_of_item: Tensor,
        key: str,
        texts: Sequence[str] = (),
        columns: Sequence[str] = (),
        encoder: TextEncoder | None = None,
        source: str = "",
    ) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("row_of_item", row_of_item, persistent=False)
        self.key, self.texts, self.columns = key, list(texts), list(columns)
        self.encoder, self.source = encoder, encoder.name if encoder else source

    @classmethod
    def of(cls, config: Any, dataset: Any) -> ItemVectors:
        """The vectors that the key ``text_encoder`` names, of a data set's items.

        Raises:
            ValueError: if the data set has no item text, or the encoder or file cannot be used.
        """
        if str(config["text_encoder"]).endswith(".npy"):
            return cls.from_file(Path(config["text_encoder"]), dataset)
        item_text = dataset.item_text
        encoder = TextEncoder.of(
            config["text_encoder"],
            config["text_pooling"],
            config["max_text_tokens"],
            config["cache_dir"],
            bool(config["show_progress"]),
        )
        return cls.encoded(item_text, encoder, config["device"])

    @classmethod
    def encoded(
        cls,
        item_text: pd.DataFrame,
        encoder: TextEncoder,
        device: torch.device | str = "cpu",
    ) -> ItemVectors:
        """Encode a catalogue, or read its vectors from the cache.

        Args:
            item_text: one row an item, row 0 (the padding item) empty; one column an attribute.
            encoder: of the texts.
            device: where the encoder computes.
        """
        row_of_text = {"": 0}
        texts = joined(item_text)
        rows = [row_of_text.setdefault(text, len(row_of_text)) for text in texts]
        distinct = list(row_of_text)
        return cls(
            encoder.cached(distinct, device),
            torch.tensor(rows, dtype=torch.int64),
            encoder.key(distinct),
            distinct,
            [str(name) for name in item_text.columns],
            encoder,
        )

    @classmethod
    def from_file(cls, path: Path, dataset: Any) -> ItemVectors:
        """Vectors from a ``.npy`` file: one row for each data line of the ``.item`` file, in order.

        With several data sets, the rows of their files follow each other. Equal rows are one.

        Raises:
            ValueError: if the file cannot be read, or its rows or numbers do not fit.
        """
        lines = _item_lines(dataset)
        vectors = _read_vectors(path, len(lines))
        of_item = np.zeros(dataset.item_num, dtype=np.int64)
        tokens = dataset.field2id_token[dataset.iid_field]
        number = {token: item for item, token in enumerate(tokens)}
        row_of_vector = {bytes(vectors.shape[1] * 4): 0}
        firsts: list[int] = []  # line that brought each row
        for line, token in enumerate(lines):
            if token not in number:
                continue
            row = row_of_vector.setdefault(vectors[line].tobytes(), len(row_of_vector))
            if row > len(firsts):
                firsts.append(line)
            of_item[number[token]] = row
        table = np.concatenate([np.zeros_like(vectors[:1]), vectors[firsts]])
        key = hashlib.sha256(table.tobytes()).hexdigest()
        return cls(torch.from_numpy(table), torch.from_numpy(of_item), key, source=path.name)

    @property
    def num_items(self) -> int:
        """Number of items ``N``, the padding item included."""
        return len(self.row_of_item)

    @property
    def width(self) -> int:
        """Dimensions ``W`` of a vector."""
        return self.table.shape[1]

    def word_dropped(self, ratio: float) -> Tensor | None:
        """Vectors of the texts without a share of their words; ``None`` for vectors from a file.

        Which words are dropped depends on the text and the ratio alone, so that the table is made
        once (UniSRec 2.2.2: the augmented texts are encoded before pre-training). One word stays.

        Args:
            ratio: share of the words that are dropped.

        Returns:
            ``[R, W]``, row 0 zero, on the table's device.
        """
        if self.encoder is None:
            return None
        texts = [drop_words(text, ratio) for text in self.texts]
        device = self.table.device
        return self.encoder.cached(texts, device).to(device)

    def append(self, item_text: pd.DataFrame) -> Tensor:
        """Add items at the end of the catalogue, reusing the vectors of texts it has already.

        Args:
            item_text: one row an item; a missing column or value counts as empty.

        Returns:
            Ids of the new items, ``[rows]``.

        Raises:
            ValueError: if a column is none of the catalogue's, or the vectors came from a file.
        """
        if self.encoder is None:
            raise ValueError(f"{self.source} holds no vectors of new items, and nothing makes them")
        row_of_text = {text: row for row, text in enumerate(self.texts)}
        texts = joined(in_columns(item_text, self.columns))
        rows = [row_of_text.setdefault(text, len(row_of_text)) for text in texts]
        if new := list(row_of_text)[len(self.texts) :]:
            vectors = self.encoder.encode(new, self.table.device).to(self.table)
            self.table = torch.cat([self.table, vectors])
            self.texts += new
        first = self.num_items
        self.row_of_item = torch.cat([self.row_of_item, torch.tensor(rows, dtype=torch.int64)])
        return torch.arange(first, self.num_items)

    def reassign(self, item_ids: Tensor, appended: Tensor) -> None:
        """Give items the vectors of as many that were appended last, which are forgotten."""
        rows = self.row_of_item[: self.num_items - len(appended)].clone()
        rows[item_ids] = self.row_of_item[appended]
        self.row_of_item = rows

    def truncate(self, num_items: int) -> None:
        """Forget the items from this id on, and the vectors that came with them."""
        self.row_of_item = self.row_of_item[:num_items]
        if self.encoder is not None:
            kept = int(self.row_of_item.max()) + 1
            self.table, self.texts = self.table[:kept], self.texts[:kept]


def in_columns(item_text: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Attributes in the catalogue's order; a missing column or value is empty.

    Raises:
        ValueError: if a column is none of the catalogue's.
    """
    for column in item_text.columns.difference(columns):
        hint = did_you_mean(str(column), columns)
        raise ValueError(f"unknown item attribute {column!r}{hint}")
    return item_text.reindex(columns=columns, fill_value="").fillna("")


def joined(item_text: pd.DataFrame) -> list[str]:
    """Text of each item: the values of its attributes, in order, with a blank between them."""
    rows = zip(*(item_text[name] for name in item_text.columns), strict=True)
    return [" ".join(value for value in row if value) for row in rows]


def drop_words(text: str, ratio: float) -> str:
    """The text without a share of its words; which, the text decides, and one stays."""
    words = text.split()
    if not words:
        return ""
    name = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:7], "big")
    draws = uniform(derive(name, Draw.WORD_DROP, torch.arange(len(words))))
    kept = draws >= ratio
    kept[draws.argmax()] = True
    return " ".join(word for word, stays in zip(words, kept.tolist(), strict=True) if stays)


def _item_lines(dataset: Any) -> list[str]:
    """Item ids of the data lines of the ``.item`` files, in order."""
    tokens: list[str] = []
    for name, folder in dataset._source_folders().items():
        table = read_atomic(folder / f"{name}.item", {dataset.iid_field}, as_text=True)
        tokens += [dataset._prefix(name) + token for token in table[dataset.iid_field]]
    return tokens


def _read_vectors(path: Path, lines: int) -> np.ndarray:
    """The file's vectors as float32, ``[lines, W]``."""
    if not path.is_file():
        raise ValueError(f"text_encoder {str(path)!r} does not exist")
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"text_encoder {str(path)!r} is no .npy file of numbers: {error}") from (
            None
        )
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f" or vectors.ndim != 2:
        kind = f"{vectors.dtype} {list(vectors.shape)}" if hasattr(vectors, "dtype") else "archive"
        raise ValueError(f"text_encoder {str(path)!r} is {kind}; allowed: float [items, width]")
    if len(vectors) != lines:
        raise ValueError(
            f"text_encoder {str(path)!r} has {len(vectors)} rows; the .item file has {lines} lines"
        )
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.argwhere(~np.isfinite(vectors))[0, 0])
        raise ValueError(f"text_encoder {str(path)!r} holds NaN or infinity in row {row}")
    return vectors
