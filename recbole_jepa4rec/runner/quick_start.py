"""Which run is asked for, and in how many processes: from a command line to ``single_run``.

What takes seconds to import stands inside the functions, after the words are understood.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_jepa4rec.base.command import RESUMABLE, run_command, say_last
from recbole_jepa4rec.base.stopping import TERMINATED
from recbole_jepa4rec.config.help import asks_for_help, help_of
from recbole_jepa4rec.config.layers import Layers
from recbole_jepa4rec.config.registry import PHASED_MODELS
from recbole_jepa4rec.config.syntax import parse_command_line
from recbole_jepa4rec.runner.run_result import RunResult

if TYPE_CHECKING:
    from recbole_jepa4rec.config.config import Config
    from recbole_jepa4rec.runner.run_folder import RunFolder

CHILD_GRACE = 10
"""Seconds that a run takes to end whose parent, which would end it, is gone."""


def main(command_line: Sequence[str]) -> int:
    """Run as a script does; the last line on standard output is the path of ``result.json``.

    Args:
        command_line: the words after the script's name.

    Returns:
        Exit status; see ``run_command``.

    Raises:
        SystemExit: as ``run``.
    """
    if asks_for_help(command_line):
        print(
            help_of("run --model=NAME --dataset=NAME [--key=value ...]", "Train and test a model.")
        )
        return 0

    def run_and_print() -> None:
        _refuse_early(command_line)
        path = run(command_line=command_line)["path"]
        if os.environ.get("RANK") in (None, "", "0"):  # of several that torchrun starts the first
            say_last(path)

    return run_command(run_and_print)


def _refuse_early(command_line: Sequence[str]) -> None:
    """Refuse words that cannot be understood, before anything is imported that takes a while."""
    resume = parse_command_line(command_line).get("resume")
    files = [Path(resume, "config.yaml")] if resume else []
    if all(file.is_file() for file in files):
        Layers(files=files, command_line=command_line).refuse_early()


def run_as_child(command_line: Sequence[str]) -> int:
    """Run as ``run_recbole.py`` does, until standard input closes.

    The parent holds the other end of standard input and writes nothing there. A parent that was
    killed cannot tell its children to end, but the system closes its files.

    Args:
        command_line: the words that ``run_recbole.py`` takes.

    Returns:
        Exit status of the run.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return main(command_line)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(CHILD_GRACE)
    os._exit(128 + signal.SIGTERM)


def run(
    model: str | type | None = None,
    dataset: str | Sequence[str] | None = None,
    config_files: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    command_line: Sequence[str] = (),
) -> RunResult:
    """Train a model, select its best epoch on validation and test it once.

    Args:
        model: name or class.
        dataset: name, or several.
        config_files: yaml files.
        config_dict: settings.
        command_line: ``--key=value`` words; see ``Config`` for which of these wins.

    Returns:
        What ``result.json`` holds, and its ``path``.

    Raises:
        ValueError: for input that cannot be used.
        OSError: if a file cannot be written.
        SystemExit: told to end (SIGTERM): with ``RESUMABLE``, if ``resume`` can go on with the run,
            else 143. With ``nproc`` above 1: with the status of the process that failed, which has
            said why.
    """
    from recbole_jepa4rec.base.launch import is_launched, launch
    from recbole_jepa4rec.runner.result import asking_command
    from recbole_jepa4rec.runner.resume import asked_config
    from recbole_jepa4rec.runner.run_folder import RunFolder

    asked = (model, dataset, config_files, dict(config_dict or {}), command_line)
    config = asked_config(*asked)
    config.refuse_idle()
    folder, command = RunFolder.of(config), asking_command(*asked)
    several = config["nproc"] > 1 or (config["world_size"] or 1) > 1
    if several or is_launched():
        _refuse_processes(config)
    if not several or is_launched():
        return _run_here(config, folder, command)
    words = _worker_words((config["model"], *asked[1:]), str(folder.path), command)
    places = {key: config[key] for key in ("nproc", "ip", "port", "world_size", "group_offset")}
    status = launch(words, **places)
    if status == TERMINATED and folder.is_unfinished:
        status = RESUMABLE
    if status:
        raise SystemExit(status)
    return RunResult.read(folder.result_file)


def _worker_words(asked: Sequence[Any], run_dir: str, command: str) -> list[str]:
    """What follows ``python`` to start one of several processes of a run; see ``work``."""
    text = json.dumps([asked, run_dir, command], default=str)
    return ["-m", "recbole_jepa4rec", "worker", text.replace("$", "\\u0024")]  # torch fills in $


def work(text: str) -> int:
    """Be one of the processes that ``nproc`` asks for; returns its exit status.

    Args:
        text: the last of ``_worker_words``.
    """

    def run_here() -> None:
        from recbole_jepa4rec.runner.resume import asked_config
        from recbole_jepa4rec.runner.run_folder import RunFolder

        asked, run_dir, command = json.loads(text)
        _run_here(asked_config(*asked), RunFolder(run_dir), command)

    return run_command(run_here)


def _refuse_processes(config: Config) -> None:
    """Refuse to share a training whose loop is RecBole's, or a machine that is too small."""
    import torch

    if config["model"] not in PHASED_MODELS:
        raise ValueError(
            f"model {config['model']!r} runs in one process; allowed with nproc, world_size or "
            f"torchrun: {', '.join(PHASED_MODELS)}"
        )
    on_gpu = config["device"].type == "cuda"
    most = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    if config["nproc"] > most:
        given = f"GPUs, of gpu_id={config['gpu_id']}" if config.given("gpu_id") else "GPUs"
        what = given if on_gpu else "processor cores"
        raise ValueError(f"nproc is {config['nproc']}; allowed on this machine: {most}, its {what}")


def _run_here(config: Config, folder: RunFolder, command: str) -> RunResult:
    """The run in this process: alone, or as one of those that the environment tells of."""
    from recbole_jepa4rec.base import processes
    from recbole_jepa4rec.base.launch import NAMES, joined
    from recbole_jepa4rec.runner.run_folder import RunFolder
    from recbole_jepa4rec.runner.single_run import train_and_test

    given = {key: config[key] for key in NAMES if config.given(key)}
    with joined(config["device"].type == "cuda", given):
        folder = RunFolder(processes.broadcast(str(folder.path)))
        try:
            result = train_and_test(config, folder, command)
        except SystemExit as error:
            if error.code != TERMINATED or not folder.is_unfinished:
                raise
            if processes.is_main():
                print(f"stopped; --resume={folder.path} goes on", file=sys.stderr)
            raise SystemExit(RESUMABLE) from error
    return RunResult({**result, "path": str(folder.result_file)})
