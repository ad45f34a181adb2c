"""Batches of BERT4Rec in which something is masked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class MaskedBatches:
    """A loader that leaves out batches in which RecBole's BERT4Rec has nothing to predict.

    Its loss is a mean over masked positions after the first; a batch without any (a small last one
    of short histories) gives 0 / 0, which would end the training.

    Args:
        loader: RecBole's loader; its other attributes shine through.
        field: name of the column of masked positions, ``[B, K]``, zero where there is none.
    """

    def __init__(self, loader: Any, field: str) -> None:
        self._loader, self._field = loader, field

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if batch[self._field].any():
                yield batch
