"""What the cache of item sentences is keyed by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import tokenizers

from recbole_jepa4rec.text import tensor_cache
from recbole_jepa4rec.text.row_encoder import ROWS_AT_ONCE

_FORMAT = "recbole_jepa4rec item sentences 2"


class SentenceCache(tensor_cache.TensorCache):
    """The cache file of a catalogue's sentences.

    Args:
        folder: folder of the cache, made when first written to.
        key: `content_key` of the catalogue.
    """

    def __init__(self, folder: Path, key: str) -> None:
        super().__init__(folder, "sentences", key)


def content_key(
    item_text: pd.DataFrame, tokenizer: tokenizers.Tokenizer, max_attribute_tokens: int
) -> str:
    """sha256 over everything the item sentences depend on, as 64 hex digits."""
    settings = [_FORMAT, tokenizers.__version__, str(max_attribute_tokens), tokenizer.to_str()]
    return tensor_cache.content_key(
        settings, *(_NamedColumn(item_text[name]) for name in item_text.columns)
    )


class _NamedColumn:
    """A column's name and then its values, some of which are Python strings at a time."""

    def __init__(self, column: pd.Series) -> None:
        self._column = column

    def __iter__(self) -> Iterator[str]:
        yield str(self._column.name)
        for first in range(0, len(self._column), ROWS_AT_ONCE):
            yield from self._column.iloc[first : first + ROWS_AT_ONCE].to_numpy(dtype=object)
