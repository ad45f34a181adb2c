"""Where TensorBoard's events go: into the run's folder, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import recbole.trainer.trainer as recbole_trainer
from torch.utils.tensorboard import SummaryWriter

from recbole_jepa4rec.base import processes


class _NoEvents:
    """Takes what a ``SummaryWriter`` takes, and writes nothing."""

    def add_scalar(self, *_: Any) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Nothing is open."""


def event_writer(run_dir: str | None) -> Callable[[Any], Any]:
    """RecBole's maker of event writers, or one for the run folder; RecBole knows only its own.

    Args:
        run_dir: the folder; ``None`` where RecBole's folders serve.

    Returns:
        A function of RecBole's logger. Of several processes only the first one's writer writes.
    """
    if not processes.is_main():
        return lambda logger: _NoEvents()
    if run_dir is None:
        return recbole_trainer.get_tensorboard
    return lambda logger: SummaryWriter(str(run_dir))
