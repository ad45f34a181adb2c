"""How test_processes has several processes meet and end; they import nothing heavy but torch."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.command import run_command
from recbole_jepa4rec.base.launch import joined, launch


def meet(folder: Path) -> None:
    """Say who is there."""
    with joined(on_gpu=False, given={"world_size": None, "ip": "localhost"}):  # as a file may say
        there = processes.all_gather(torch.tensor([processes.rank()]))
        (folder / f"{processes.rank()}.met").write_text(str(there.tolist()))


def end(folder: Path, how: str) -> None:
    """End as told, in the second process; the first waits for it."""
    with joined(on_gpu=False, given={}):
        (folder / f"{processes.rank()}.pid").write_text(str(os.getpid()))
        if processes.rank() == 1 and how == "error":
            raise ValueError("the second process is at fault")
        if processes.rank() == 1 and how == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        processes.barrier()


def told_to_end(folder: Path) -> None:
    """Sleep until SIGTERM, and take a while to end then."""
    with joined(on_gpu=False, given={}):
        try:
            (folder / f"{processes.rank()}.pid").write_text(str(os.getpid()))
            time.sleep(230)
        except SystemExit as error:
            time.sleep(0.5 * processes.rank())
            (folder / f"{processes.rank()}.told").write_text(str(error.code))
            raise


def launched(function: Callable[..., None], folder: Path, *words: Any, **places: Any) -> int:
    """Call a function of a module that ends as this one, in several processes; their status."""
    called = [function.__module__, function.__name__, str(folder), *map(str, words)]
    return launch(["-m", *called], **places)


def call_named_function(names: Mapping[str, Any]) -> None:
    """What a process of ``launched`` does."""
    faulthandler.dump_traceback_later(240, exit=True)  # a deadlock fails the test
    name, folder, *words = sys.argv[1:]
    sys.exit(run_command(lambda: names[name](Path(folder), *words)))


if __name__ == "__main__":
    call_named_function(globals())
