"""Every command is killed at a drawn moment and typed again: it ends as if nothing had happened.

Where the same words do not go on by themselves, one line says which do.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT, TINY
from tests.convert.conftest import reviews, write_json_lines
from tests.faults.run_contents import outcome

ROUNDS, SEED = 20, 3
SECONDS = 300
"""A command that takes longer hangs."""

SMALL = {**TINY, "dataset": "toy", "data_path": ROOT / "dataset", "epochs": 3, "state": "warning"}
KEYS = [f"--{key}={value}" for key, value in SMALL.items()]
ADVICE = re.compile(r"write (--resume[^ ,]*)[ ,]")
"""In the line that says what goes on."""


@dataclass
class Unbroken:
    """What a command made that nothing happened to, and the seconds it took."""

    found: Any
    seconds: float


def command(name: str) -> list[str]:
    """Words of a command whose folders are seen from the current one."""
    given = {
        "single": ["run_recbole.py", "--model=SASRec", *KEYS, "--run_dir=run"],
        "comparison": ["run_recbole_group.py", "--model_list=Popularity,SASRec", *KEYS],
        "search": ["run_hyper.py", "--model=SASRec", *KEYS, "--search=space.yaml"],
        "conversion": ["-m", "recbole_jepa4rec.convert", "amazon2018", "raw.json", "--force"],
    }[name]
    more = {
        "single": [],
        "comparison": ["--run_dir=out"],
        "search": ["--run_dir=out", "--algorithm=grid", "--scheduler=none"],
        "conversion": ["--out", "made"],
    }[name]
    script = [str(ROOT / given[0])] if given[0].endswith(".py") else [given[0]]
    return [sys.executable, *script, *given[1:], *more]


def made(name: str, place: Path) -> Any:
    """What a command has found out, without times."""
    if name == "single":
        return outcome(place / "run")
    if name == "comparison":
        rows = json.loads((place / "out" / "comparison.json").read_text())["rows"]
        keys = ("entry", "status", "seeds", "valid", "test", "groups", "ranking")
        return [{key: row[key] for key in keys} for row in rows]
    if name == "search":
        table = pd.read_csv(place / "out" / "trials.csv").sort_values("trial")
        columns = ["trial", "status", "ndcg@10", "learning_rate", "last_epoch"]
        best = yaml.safe_load((place / "out" / "best.yaml").read_text())
        return table[columns].to_dict("list"), best, outcome(place / "out" / "best")
    files = sorted((place / "made").iterdir())
    assert not list(place.glob(".made.*"))
    return {file.name: file.read_bytes() for file in files if file.suffix != ".json"}


def prepare(place: Path) -> None:
    """Write what the commands read, and a data set for the conversion to replace."""
    (place / "space.yaml").write_text("learning_rate: {choice: [0.001, 0.01]}\n")
    users = [f"u{number}" for number in range(200)]
    rows = [(user, f"i{n % 37}", n) for n, user in enumerate(users * 30)]
    write_json_lines(place / "raw.json", reviews(rows))
    (place / "made").mkdir()
    (place / "made" / "made.inter").write_text("user_id:token\titem_id:token\n")


def begin(words: list[str], place: Path) -> subprocess.Popen[str]:
    """Start a command as a user does, in a group of its own."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=place, env=environment, start_new_session=True, **pipes)


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Status and errors."""
    try:
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors.splitlines()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Gives what a command makes that nothing happens to."""
    known: dict[str, Unbroken] = {}

    def of(name: str) -> Unbroken:
        if name not in known:
            place = tmp_path_factory.mktemp(name)
            prepare(place)
            began = time.monotonic()
            status, errors = end(begin(command(name), place))
            assert status == 0, errors
            known[name] = Unbroken(made(name, place), time.monotonic() - began)
        return known[name]

    return of


def go_on(name: str, words: list[str], place: Path) -> None:
    """Type the same again, and what a refusal says to type."""
    status, errors = end(begin(words, place))
    if status == 0:
        return
    said = [line for line in errors if line.startswith("error: ")]
    assert (status, len(said)) == (2, 1), errors
    if "already holds result.json" in said[0]:  # killed when all was done
        assert name == "single"
        return
    advice = ADVICE.search(said[0])
    assert advice, said
    again = shlex.split(advice[1])
    script = words[:2] if name == "single" else words
    status, errors = end(begin([*script, *again], place))
    assert status == 0, errors


NAMES = ("single", "comparison", "conversion", "search")
CASES = [
    pytest.param(name, turn, marks=pytest.mark.ray if name == "search" else pytest.mark.slow)
    for name in NAMES
    for turn in range(ROUNDS)
]


@pytest.mark.parametrize(("name", "turn"), CASES)
def test_the_same_words_again_after_a_kill(name, turn, tmp_path, unbroken):
    whole = unbroken(name)
    prepare(tmp_path)
    process = begin(command(name), tmp_path)
    draw = random.Random(f"{SEED} {name} {turn}")
    time.sleep(whole.seconds * draw.uniform(0.2, 1.0))  # anywhere: no step is waited for
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    go_on(name, command(name), tmp_path)
    assert made(name, tmp_path) == whole.found
