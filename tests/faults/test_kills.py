"""SIGKILL at any point: no file is half written, and the run goes on to the same result."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import slow, words
from tests.faults.faulty_run import end, ended, start
from tests.faults.run_contents import outcome, refuse_damage

ROUNDS = {"JEPA4Rec": 30, "SASRec": 8, "S3Rec": 12}
KINDS = ("step", "flush", "name", "settle", "remove", "rank", "tokenise")
QUICK = ("step", "flush")
SEED = 6


def drawn(points: list[str], count: int, seed: str) -> list[int]:
    """Numbers of points to be killed at, the kinds of points in turn."""
    generator = random.Random(seed)
    by_kind = [
        [number for number, name in enumerate(points, 1) if name.startswith(kind)] for kind in KINDS
    ]
    by_kind = [numbers for numbers in by_kind if numbers]
    return [generator.choice(by_kind[turn % len(by_kind)]) for turn in range(count)]


def again(model: str, folder: Path) -> list[str]:
    """What a user types after a run died: resume it, or, before it had a folder, the same again."""
    if (folder / "config.yaml").exists():
        return [f"--resume={folder}", f"--model={model}"]
    return words(model, folder)


def finish(model: str, folder: Path, said: Path, unbroken) -> None:
    """Let a killed run go on to its end, and compare what it found out."""
    if not (folder / "result.json").exists():
        done = ended(again(model, folder), said)
        assert done.status == 0, done.errors
        assert not list(folder.glob("checkpoints/*"))
    refuse_damage(folder)
    assert outcome(folder) == unbroken.outcome


def kill_and_go_on(model: str, points: list[int], tmp_path: Path, unbroken) -> None:
    """Kill a run and what is resumed of it at these points, then let it go on to its end."""
    folder, said = tmp_path / "run", tmp_path / "said"
    for at in points:
        if (folder / "result.json").exists():
            break
        status = ended(again(model, folder), said, at).status
        assert status == -signal.SIGKILL or (folder / "result.json").exists()
        for place in (folder, tmp_path / "run-cache"):
            refuse_damage(place)
    finish(model, folder, said, unbroken)


@pytest.mark.parametrize("kind", [*QUICK, *(slow(kind) for kind in KINDS if kind not in QUICK)])
def test_killed_at_each_kind_of_point(kind, tmp_path, unbroken):
    points = unbroken("JEPA4Rec").points
    numbers = [number for number, name in enumerate(points, 1) if name.startswith(kind)]
    at = random.Random(f"{SEED}{kind}").choice(numbers)
    kill_and_go_on("JEPA4Rec", [at], tmp_path, unbroken("JEPA4Rec"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "turn"), [(model, turn) for model, count in ROUNDS.items() for turn in range(count)]
)
def test_killed_at_any_point(model, turn, tmp_path, unbroken):
    """50 rounds; in every third the resumed run is killed as well, and once more."""
    points = unbroken(model).points
    at = drawn(points, ROUNDS[model], f"{SEED}{model}")[turn]
    more = [random.Random(f"{SEED}{model}{turn}{n}").randint(1, len(points) // 2) for n in (1, 2)]
    kill_and_go_on(model, [at, *more] if turn % 3 == 0 else [at], tmp_path, unbroken(model))


@pytest.mark.slow
def test_workers_of_a_loader_do_not_outlive_a_run_as_its_owners(tmp_path, unbroken):
    """It goes on at once, though they notice only seconds later that the run was killed."""
    kill_and_go_on("BERT4Rec", [unbroken("BERT4Rec").last("step")], tmp_path, unbroken("BERT4Rec"))


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(6))
def test_killed_at_any_moment(turn, tmp_path, unbroken):
    """By another process, so that it may be anywhere, in the middle of a write as well."""
    model = list(ROUNDS)[turn % len(ROUNDS)]
    folder, said = tmp_path / "run", tmp_path / "said"
    process = start(words(model, folder), said)
    deadline = time.monotonic() + 60
    while not folder.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(SEED + turn).uniform(0.0, 1.0))
    process.kill()
    end(process, said)
    for place in (folder, tmp_path / "run-cache"):
        refuse_damage(place)
    finish(model, folder, said, unbroken(model))
