"""Training that ends at a deadline, after the step under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any


class TimeSpentError(Exception):
    """Leaves RecBole's loop over epochs, which offers no other way out."""


class UntilDeadline:
    """A loader that gives no further batch once the deadline has passed; one at least is given.

    Args:
        loader: RecBole's loader; its other attributes shine through.
        deadline: in seconds of ``time.monotonic()``.
    """

    def __init__(self, loader: Any, deadline: float) -> None:
        self._loader, self._deadline = loader, deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            if time.monotonic() >= self._deadline:
                return
