"""The batches of one epoch in RecBole's loop: watched, and begun behind those already trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recbole_jepa4rec.base.random_state import random_state, restore_random_state

Losses = float | tuple[float, ...]


@dataclass
class EpochPosition:
    """How far an epoch of RecBole's loop has come.

    Attributes:
        epoch: its number.
        epochs_run: epochs that were begun before it.
        random: state of the random number generators before the first batch was drawn.
        loader: state of the loader's own generator then.
        batches: batches trained so far.
        losses: their summed losses; ``None`` before the first.
        is_trained: whether these were all, so that the validation comes next.
    """

    epoch: int
    epochs_run: int
    random: dict[str, Any]
    loader: Tensor
    batches: int = 0
    losses: Losses | None = None
    is_trained: bool = False

    @classmethod
    def start(cls, epoch: int, epochs_run: int, loader: Any) -> EpochPosition:
        """Before the first batch of RecBole's loader."""
        return cls(epoch, epochs_run, random_state(), loader.generator.get_state())

    def counting(self, loss_func: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A model's loss function, whose values are added up here."""

        def counted(interaction: Any) -> Any:
            losses = loss_func(interaction)
            if isinstance(losses, tuple):
                terms = tuple(each.item() for each in losses)
                before = self.losses if isinstance(self.losses, tuple) else (0.0,) * len(terms)
                self.losses = tuple(map(sum, zip(before, terms, strict=True)))
            else:
                self.losses = losses.item() + (self.losses or 0.0)
            return losses

        return counted


class EpochBatches:
    """A loader that starts at a position and stops when it is told to; one batch at least is given.

    The batches before the position are drawn again and left out, so that the same random numbers
    choose the same order; then the generators are set to where they stood at the position.

    Args:
        loader: RecBole's loader; its other attributes shine through.
        position: where to start; counts on.
        resumed: state of the random number generators at the position, if it lies behind the start.
        goes_on: asked after each batch was trained on.
    """

    def __init__(
        self,
        loader: Any,
        position: EpochPosition,
        resumed: dict[str, Any] | None,
        goes_on: Callable[[], bool],
    ) -> None:
        self._loader, self._position = loader, position
        self._resumed, self._goes_on = resumed, goes_on

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if self._resumed is not None:
            restore_random_state(self._position.random)
            self._loader.generator.set_state(self._position.loader)
        batches = iter(self._loader)
        try:
            for _ in range(self._position.batches):
                next(batches)
            if self._resumed is not None:
                restore_random_state(self._resumed)
            for batch in batches:
                yield batch
                self._position.batches += 1
                if not self._goes_on():
                    return
        finally:
            del batches  # ends the loader's workers; a traceback would keep them
