"""One run as the child of a comparison: it ends when its parent does, however that ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from recbole_jepa4rec.runner.quick_start import main as run_main

GRACE = 10
"""Seconds between the request to end and the end."""


def main(command_line: Sequence[str]) -> int:
    """Run as ``run_recbole.py`` does, until standard input closes.

    The parent holds the other end of standard input and writes nothing there. A parent that was
    killed cannot tell its children to end, but the system closes its files.

    Args:
        command_line: the words that ``run_recbole.py`` takes.

    Returns:
        Exit status of the run.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return run_main(command_line)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
