"""Whether somebody sees a progress bar, and a line now and then for where nobody does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

EVERY = 30
"""Seconds between two lines."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def shows_bars() -> bool:
    """Whether a bar that is drawn on standard error can be seen to move."""
    return sys.stderr.isatty() or in_notebook()


class Pulse:
    """Says every ``EVERY`` seconds how far a training is, where no bar shows it.

    Args:
        say: what is done with a line.
        clock: seconds that never go back.
    """

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock, self._last = say, clock, clock()

    def beat(self, what: str, done: int, of: int, unit: str) -> None:
        """Take in that ``done`` of ``of`` are done, after every step."""
        now = self._clock()
        if now - self._last >= EVERY and not shows_bars():
            self._last = now
            self._say(f"{what}: {done:,} of {of:,} {unit}")
