"""A whole catalogue tokenised some rows at a time, on this machine or on a Ray cluster.

Here the tokenizer's own threads share the work (``RAYON_NUM_THREADS``).
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from recbole_jepa4rec.text.row_encoder import EncodedRows, RowEncoder, chunks


def encoded_rows(
    encoder: RowEncoder, item_text: pd.DataFrame, address: str | None = None
) -> Iterator[EncodedRows]:
    """Sentences of all rows, in order, the same wherever they are made.

    Args:
        encoder: of rows.
        item_text: one row an item.
        address: of a Ray cluster; ``None`` uses none.

    Raises:
        ValueError: if there is no such cluster, or a text holds a lone surrogate.
    """
    if address is None:
        return map(encoder, chunks(item_text))
    from recbole_jepa4rec.text.ray_encoding import encoded_on_ray

    return encoded_on_ray(encoder, item_text, address)
