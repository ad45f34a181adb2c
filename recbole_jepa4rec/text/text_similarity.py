"""How alike the texts of items are: cosines of tf-idf vectors, or of a sentence encoder's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.text.item_vectors import ItemVectors, in_columns, joined

TFIDF = "tfidf"
"""The ``text_encoder`` that needs no weights."""

SCORES_AT_ONCE = 2**23
"""Cosines that are computed together, so that a batch needs little more than its result."""


class TextSimilarity(nn.Module):
    """Cosines of histories with all items; a subclass says of which vectors.

    Items with the same text have the same cosine, bit for bit; without text it is 0.

    Attributes:
        source: what tables call the vectors.
    """

    source: str

    @property
    def catalogue(self) -> TfidfSimilarity | ItemVectors:
        """What holds the items' vectors, and takes new items."""
        raise NotImplementedError

    def of(self, weights: sparse.csr_matrix) -> Tensor:
        """Sums of cosines.

        Args:
            weights: of each history's items, ``[B, N]``.

        Returns:
            For each history and item x the sum of weight times cosine with x over the history's
            items, ``[B, N]`` float32.
        """
        rows = max(1, SCORES_AT_ONCE // weights.shape[1])
        firsts = range(0, weights.shape[0], rows)
        parts = [self._of(weights[first : first + rows]).float() for first in firsts]
        return torch.cat(parts) if parts else torch.zeros(weights.shape)

    def _of(self, weights: sparse.csr_matrix) -> Tensor:
        raise NotImplementedError


class TfidfSimilarity(TextSimilarity):
    """Of scikit-learn's tf-idf: words of letters a-z and digits, in two items at least.

    Words are weighed by the catalogue it is made of; items that are added later change no weight.

    Args:
        item_text: one row an item, row 0 (the padding item) empty; one column an attribute.
    """

    source = TFIDF

    def __init__(self, item_text: pd.DataFrame) -> None:
        super().__init__()
        self.columns = [str(name) for name in item_text.columns]
        self.tfidf = TfidfVectorizer(
            sublinear_tf=True, min_df=2, lowercase=True, token_pattern="[a-z0-9]+"
        )
        texts = joined(item_text)
        try:
            self.tfidf.fit(texts[1:])
        except ValueError:
            raise ValueError("text_encoder 'tfidf': no word is in two items' texts") from None
        self.vectors = self.tfidf.transform(texts).tocsr()  # [N, T], rows of length 1 or 0

    @property
    def catalogue(self) -> TfidfSimilarity:
        """This one holds its vectors itself."""
        return self

    @property
    def num_items(self) -> int:
        """Number of items ``N``, the padding item included."""
        return self.vectors.shape[0]

    def append(self, item_text: pd.DataFrame) -> Tensor:
        """Add items at the end, one row of attributes each; returns their ids.

        Raises:
            ValueError: for an unknown attribute.
        """
        texts = joined(in_columns(item_text, self.columns))
        first = self.num_items
        self.vectors = sparse.vstack([self.vectors, self.tfidf.transform(texts)], format="csr")
        return torch.arange(first, self.num_items)

    def reassign(self, item_ids: Tensor, appended: Tensor) -> None:
        """Give items the texts of as many that were appended last, which are forgotten."""
        row = np.arange(self.num_items - len(appended))
        row[item_ids.numpy()] = appended.numpy()
        self.vectors = self.vectors[row]

    def truncate(self, num_items: int) -> None:
        """Forget the items from this id on."""
        self.vectors = self.vectors[:num_items]

    def _of(self, weights: sparse.csr_matrix) -> Tensor:
        return torch.from_numpy(((weights @ self.vectors) @ self.vectors.T).toarray())


class VectorSimilarity(TextSimilarity):
    """Of the vectors that a sentence encoder or a file gives.

    Args:
        items: their vectors.
    """

    def __init__(self, items: ItemVectors) -> None:
        super().__init__()
        self.items, self.source = items, items.source

    @property
    def catalogue(self) -> ItemVectors:
        """Their vectors."""
        return self.items

    def _of(self, weights: sparse.csr_matrix) -> Tensor:
        table, row_of_item = self.items.table, self.items.row_of_item
        norms = table.norm(dim=1).clamp(min=1e-12)
        parts = (weights.indices, weights.indptr[:-1], weights.data)
        indices, first, data = sent([torch.from_numpy(part) for part in parts], table.device)
        rows = row_of_item[indices.long()]
        scale = data.to(table.dtype) / norms[rows]
        profiles = F.embedding_bag(rows, table, first.long(), mode="sum", per_sample_weights=scale)
        return (profiles @ table.T / norms)[:, row_of_item]


def text_similarity(config: Any, dataset: Any) -> TextSimilarity:
    """The one that the key ``text_encoder`` names, of a data set's items.

    Raises:
        ValueError: if the data set has no item text, or the encoder or file cannot be used.
    """
    if config["text_encoder"] == TFIDF:
        return TfidfSimilarity(dataset.item_text)
    return VectorSimilarity(ItemVectors.of(config, dataset))
