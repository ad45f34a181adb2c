"""A run in a process of its own in which something happens at a chosen point.

The points of a run are numbered from 1: every optimizer step, every batch that is ranked, every
call of the tokenizer, and every call that makes a file durable or gives it its name. The same
settings pass the same points, so that a run can be stopped at each of them again and again.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from recbole_jepa4rec.config.registry import find_model
from recbole_jepa4rec.runner import run_folder
from recbole_jepa4rec.runner.quick_start import main
from recbole_jepa4rec.text import tokenizer

DISK_LIMIT = 30_000
"""Bytes that a file may grow to on a full disk: enough for a log, too few for weights."""

IMPORTED = (
    "pytest",
    "recbole_jepa4rec.runner.single_run",
    "recbole_jepa4rec.training.phase_trainer",
)
"""What the server of processes imports before it forks."""

BEFORE_LOCK = 0
"""The point between a run's first look at its folder and the lock; it is not counted."""


@dataclass
class Ended:
    """A run that has ended.

    Attributes:
        status: exit status; minus the signal's number if one killed it.
        out: lines on standard output.
        errors: lines on standard error.
        points: names of the points that it passed, in order, if it ended by itself.
    """

    status: int
    out: list[str]
    errors: list[str]
    points: list[str]


def start(words: Sequence[str], folder: Path, at: int | None = None, action: str = "kill") -> Any:
    """Start a run; returns its process.

    Args:
        words: its command line, ``--model`` among it.
        folder: where ``out``, ``errors`` and ``points`` go.
        at: number of the point at which ``action`` is taken; ``None``: at none.
        action: a key of ``ACTIONS``, or ``PAUSE``.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED, "recbole_jepa4rec.model.jepa4rec"])
    folder.mkdir(exist_ok=True)
    for name in ("out", "errors", "points", "paused", "go"):
        (folder / name).unlink(missing_ok=True)
    process = context.Process(target=_run, args=(list(words), str(folder), at, action))
    process.start()
    return process


def paused(process: Any, folder: Path) -> bool:
    """Wait until a run that ``start`` began there pauses, or ends; returns whether it pauses."""
    while process.is_alive() and not (folder / "paused").exists():
        process.join(0.02)
    return (folder / "paused").exists() and process.is_alive()


def go_on(process: Any, folder: Path) -> Ended:
    """Let a run that pauses go on, and wait for its end."""
    (folder / "go").touch()
    return end(process, folder)


def end(process: Any, folder: Path) -> Ended:
    """Wait for a run that ``start`` began there."""
    process.join(120)
    try:
        assert process.exitcode is not None, "the run does not end"
    finally:
        process.kill()
    points = folder / "points"
    return Ended(
        status=process.exitcode,
        out=(folder / "out").read_text().splitlines(),
        errors=(folder / "errors").read_text().splitlines(),
        points=json.loads(points.read_text()) if points.exists() else [],
    )


def ended(words: Sequence[str], folder: Path, at: int | None = None, action: str = "kill") -> Ended:
    """Start a run and wait for its end."""
    return end(start(words, folder, at, action), folder)


def _run(words: list[str], folder: str, at: int | None, action: str) -> None:
    """What the process does."""
    for descriptor, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.setpgid(0, 0)
    set_start_method("fork", force=True)  # of a loader's workers, as in a script
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    pause = functools.partial(_pause, Path(folder))
    points = _Points(at, pause if action == PAUSE else ACTIONS[action])
    points.watch(given["model"])
    try:
        sys.exit(main(words))
    finally:
        Path(folder, "points").write_text(json.dumps(points.passed))
        sys.stdout.flush()


class _Points:
    """Counts the points that this process passes.

    Args:
        at: number of the point at which to act.
        act: what to do there; gets the file that is about to be made durable, if there is one.
    """

    def __init__(self, at: int | None, act: Callable[[int | None], None]) -> None:
        self.at, self.act, self.phase = at, act, ""
        self.passed: list[str] = []

    def watch(self, model: str) -> None:
        """Wrap everything that is a point, for the rest of the process."""
        register_optimizer_step_post_hook(lambda *_: self._reach(f"step {self.phase}"))
        self._before(os, "fsync", lambda file: self._reach(_flushed(file), file))
        self._before(os, "replace", lambda _, name: self._reach(f"name {_called(name)}"))
        self._before(os, "unlink", lambda *_, **__: self._reach("remove"))
        if self.at == BEFORE_LOCK:
            self._before(run_folder, "hold", lambda *_: self.act(None))
        self._before(tokenizer, "encode_texts", lambda *_: self._reach("tokenise"))
        kind = find_model(model)
        self._before(kind, "full_sort_predict", lambda *_: self._reach(f"rank {self.phase}"))
        if hasattr(kind, "begin_phase"):
            self._before(kind, "begin_phase", lambda _, phase, *__: self._enter(phase))

    def _enter(self, phase: str) -> None:
        self.phase = phase

    def _reach(self, name: str, file: int | None = None) -> None:
        self.passed.append(name.strip())
        if len(self.passed) == self.at:
            self.act(file)

    @staticmethod
    def _before(owner: Any, name: str, notice: Callable[..., None]) -> None:
        function = getattr(owner, name)

        def noticed(*args: Any, **kwargs: Any) -> Any:
            notice(*args, **kwargs)
            return function(*args, **kwargs)

        setattr(owner, name, noticed)


def _called(path: str | Path) -> str:
    """Name of a file, without the checksum, which differs between runs."""
    path = Path(path)
    return path.parent.name if path.parent.name == "checkpoints" else path.name


def _flushed(file: int) -> str:
    return "flush" if stat.S_ISREG(os.fstat(file).st_mode) else "settle"  # a file's new name


def _kill(file: int | None) -> None:
    """End at once; of a file not flushed to the disk yet, half is lost."""
    if file is not None and _flushed(file) == "flush":
        os.ftruncate(file, os.fstat(file).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate(_: int | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _terminate_all(_: int | None) -> None:
    """Tell the workers of a loader as well, as a system does that ends a job.

    By another process: a worker takes SIGTERM from the one that trains for its own, expected end.
    """
    kill = ["kill", "-TERM", "--", f"-{os.getpgrp()}"]
    subprocess.run(kill, start_new_session=True, check=True)
    time.sleep(0.5)  # until they have heard of it


def _pause(folder: Path, _: int | None) -> None:
    """Wait until told to go on; what is done meanwhile is done within this step."""
    (folder / "paused").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)


def _fill_disk(_: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_LIMIT, resource.RLIM_INFINITY))


PAUSE = "pause"
ACTIONS = {
    "kill": _kill,
    "terminate": _terminate,
    "terminate all": _terminate_all,
    "fill disk": _fill_disk,
}
