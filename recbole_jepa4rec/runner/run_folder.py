"""The one folder that a run writes: settings, log, events, weights, result."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet  # here, so that a run without it does not begin

from recbole_jepa4rec.base.checkpoint import STATE_NAME, WEIGHTS_NAME
from recbole_jepa4rec.base.command import add_note
from recbole_jepa4rec.base.files import RESULT_NAME, Layout, atomic_write, hold, remove_abandoned
from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.run_settings import ATTRIBUTE_KEYS
from recbole_jepa4rec.config.syntax import deciding, first_difference
from recbole_jepa4rec.training import checkpoints

WRITTEN: Layout = {
    **dict.fromkeys(("config.yaml", WEIGHTS_NAME, STATE_NAME, "per_user.parquet")),
    **dict.fromkeys(("tokenizer.json", "encoder.json", "pretrained.pt")),
    "checkpoints": checkpoints.LAYOUT,
}
"""What every run may write beside its log and its result, once its settings are written."""

LOGS: Layout = dict.fromkeys(("run.log", "events.out.tfevents.*"))
WHOLE: Layout = {**WRITTEN, **LOGS, RESULT_NAME: None}
LAYOUT: Layout = {**WHOLE, "retriever": WHOLE}
"""All that is in a run's folder."""

COLOR = re.compile(r"\x1b\[[0-9;]*m")


class RunFolder:
    """Names of the files of one run, and how they are written.

    Args:
        path: the folder; ``create`` makes it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.log_file = self.path / "run.log"
        self.weights_file = self.path / WEIGHTS_NAME
        self.result_file = self.path / RESULT_NAME
        self.per_user_file = self.path / "per_user.parquet"
        self.checkpoints = checkpoints.CheckpointFolder(self.path / "checkpoints")

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """``run_dir``, or else a new ``<runs_path>/<dataset>/<model>/<stamp>-<id>``; not made yet.

        Raises:
            ValueError: if ``run_dir`` is a file or holds another run, finished or not, or files
                that no run has written.
        """
        if not config["run_dir"]:
            name = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
            return cls(Path(config["runs_path"], config["dataset"], config["model"], name))
        folder = cls(config["run_dir"])
        if folder.path.exists() and not folder.path.is_dir():
            raise ValueError(f"run_dir {config['run_dir']!r} is not a folder")
        folder.refuse_taken(resume=bool(config["resume"]))
        if foreign := folder.foreign_file():
            raise ValueError(
                f"run_dir {config['run_dir']!r} holds {foreign}, which no run of ours has written "
                "there; allowed: a new or empty folder"
            )
        if not config["resume"]:
            folder.refuse_other_weights(config)
        return folder

    def refuse_other_weights(self, config: Config) -> None:
        """Refuse weights that a run of other settings has left without a checkpoint.

        Columns that are yet to be found in the data are not compared.

        Raises:
            ValueError: names the first setting that differs.
        """
        if not self.weights_file.exists():
            return
        there, here = deciding(self.settings()), config.deciding()
        open_keys = {*ATTRIBUTE_KEYS, "load_col"}
        both = [{k: v for k, v in each.items() if k not in open_keys} for each in (there, here)]
        if found := first_difference(*both):
            key, old, new = found
            raise ValueError(
                f"run_dir {str(self.path)!r} holds weights of another run: {key} is {old!r} there "
                f"and {new!r} here; allowed: a new or empty folder"
            )

    def refuse_taken(self, resume: bool) -> None:
        """Refuse a folder that holds another run, or a finished one.

        To be asked early, and again under the lock: the other run may have ended meanwhile.

        Args:
            resume: whether an unfinished run is to go on here.

        Raises:
            ValueError: if so; says what works instead.
        """
        name = str(self.path)
        if self.result_file.exists() and resume:
            raise ValueError(
                f"resume {name!r}: the run is finished (--checkpoint starts from its weights)"
            )
        if self.result_file.exists():
            raise ValueError(f"run_dir {name!r} already holds result.json")
        if self.checkpoints.path.exists() and not resume:
            raise ValueError(
                f"run_dir {name!r} holds an unfinished run (write --resume={name} to go on with "
                "it, or another --run_dir)"
            )

    def foreign_file(self) -> str | None:
        """A file that a run would write over although none has begun here, if there is one."""
        if self.log_file.exists() and self.settings():
            return None
        names = (*WRITTEN, "retriever")
        return next((name for name in names if os.path.lexists(self.path / name)), None)

    def settings(self) -> dict[str, Any]:
        """What ``config.yaml`` holds; nothing where it is missing or no run of ours wrote it."""
        try:
            settings = read_yaml(self.config_file)
        except ValueError:
            return {}
        return settings if {"model", "dataset", "filter_history"} <= {*settings} else {}

    @property
    def is_unfinished(self) -> bool:
        """Whether a run began here that ``resume`` can go on with."""
        return self.config_file.exists() and not self.result_file.exists()

    def create(self) -> None:
        """Make the folder.

        Raises:
            ValueError: if it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise ValueError(f"run_dir {str(self.path)!r} cannot be made: {reason}") from error

    @contextmanager
    def writing(self, level: str, resume: bool) -> Iterator[None]:
        """Send the log to standard error and to ``run.log`` meanwhile; an error leaves its trace.

        An exception that passes gets a note: what goes on with the run, or where its trace is.

        Args:
            level: RecBole's ``state``, such as ``"info"``.
            resume: whether an unfinished run goes on.

        Raises:
            ValueError: if another run holds the folder, or has ended in it meanwhile.
        """
        file = _LogFile(self.log_file, encoding="utf-8")
        file.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
        if not hold(file.stream):
            file.close()
            raise ValueError(f"run_dir {str(self.path)!r} is in use by another run")
        with closing(file):
            self.refuse_taken(resume)
            with self._logged(file, level):
                yield

    @contextmanager
    def _logged(self, file: logging.FileHandler, level: str) -> Iterator[None]:
        screen = logging.StreamHandler(sys.stderr)
        screen.setFormatter(_Plain("%(asctime)s %(message)s", "%H:%M:%S"))
        for folder in (self.path, self.checkpoints.path):
            remove_abandoned(folder)
        root = logging.getLogger()
        handlers, level_before = root.handlers[:], root.level
        root.handlers = [file, *(handlers or [screen])]
        root.setLevel(level.upper())
        try:
            yield
        except BaseException as error:
            details = f"details in {self.log_file}"
            add_note(error, self._next() if isinstance(error, KeyboardInterrupt) else details)
            root.handlers = [file]
            with suppress(OSError):  # which the run may have ended by
                root.critical("the run ended early", exc_info=True)
            raise
        finally:
            root.handlers = handlers
            root.setLevel(level_before)

    def _next(self) -> str:
        return f"--resume={self.path} goes on" if self.is_unfinished else f"see {self.path}"

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, whole or not at all.

        Raises:
            ValueError: if a number is not finite.
            OSError: if the file cannot be written.
        """
        text = json.dumps(result, indent=2, allow_nan=False)
        with atomic_write(self.result_file, "w") as file:
            file.write(text + "\n")

    def write_per_user(self, rows: pd.DataFrame) -> None:
        """Write ``per_user.parquet``, whole or not at all.

        Raises:
            OSError: if the file cannot be written.
        """
        with atomic_write(self.per_user_file) as file:
            parquet.write_table(pa.Table.from_pandas(rows, preserve_index=False), file)


@contextmanager
def without_logging() -> Iterator[None]:
    """Log nothing meanwhile, as in every process of a run but the first."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class _LogFile(logging.FileHandler):
    """A log that cannot be written is an error; Python's own handler prints a trace a line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """End the run by the line that names the file.

        Raises:
            OSError: if that is what has happened.
        """
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            reason = f"cannot write: {error.strerror}"
            raise OSError(error.errno, reason, self.baseFilename) from error
        super().handleError(record)

    def close(self) -> None:
        """Close the file, whatever has become of what could not be written."""
        with suppress(OSError):
            super().close()


class _Plain(logging.Formatter):
    """A line without RecBole's colours."""

    def format(self, record: logging.LogRecord) -> str:
        return COLOR.sub("", super().format(record))
