"""Drawn rounds of what loses data elsewhere: nothing is lost, nothing of others is written over.

A round draws when a run is stopped, what is damaged, what lies in the way; either everything ends
as an unbroken run does, or one line says why not and no byte has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_jepa4rec.convert import command_line as convert
from recbole_jepa4rec.runner.recommender import load
from recbole_jepa4rec.study import group
from recbole_jepa4rec.study.search import driver
from recbole_jepa4rec.study.search.trials import FINISHED, Record
from tests.conftest import ROOT, TINY
from tests.convert.conftest import reviews, write_json_lines
from tests.faults.conftest import slow, words
from tests.faults.faulty_run import BEFORE_LOCK, PAUSE, ended, go_on, paused, start
from tests.faults.run_contents import digests, outcome

ROUNDS, QUICK, SEED = 100, 3, 14
MODELS = ("SASRec", "JEPA4Rec", "S3Rec")


class Round:
    """One round: its draws, its places, and the unbroken runs to be held against.

    Args:
        turn: number of the round; decides every draw.
        folder: empty.
        unbroken: the fixture.
    """

    def __init__(self, turn: int, folder: Path, unbroken: Any) -> None:
        self.draw = random.Random(f"{SEED} {turn}")
        self.place, self.unbroken = folder, unbroken
        self.folder, self.said = folder / "run", folder / "said"

    def again(self, model: str) -> list[str]:
        return [f"--resume={self.folder}", f"--model={model}"]

    def killed(self, model: str, after: int, **changes: Any) -> list[Path]:
        """Kill a run between a checkpoint and its result; returns its checkpoints, oldest first."""
        points = self.unbroken(model, **changes).points
        written = [n for n, point in enumerate(points, 1) if point == "name checkpoints"]
        at = self.draw.randint(written[after - 1] + 1, points.index("name result.json"))
        done = ended(words(model, self.folder, **changes), self.said, at)
        assert done.status == -signal.SIGKILL
        return sorted(self.folder.glob("checkpoints/*.pt"))

    def goes_on(self, model: str, **changes: Any) -> list[str]:
        """Resume, and hold the outcome against the unbroken one; returns what was said."""
        done = ended(self.again(model), self.said)
        assert done.status == 0, done.errors
        assert outcome(self.folder) == self.unbroken(model, **changes).outcome
        return done.errors


def refused(done: Any) -> str:
    """The one line of a run that was refused."""
    errors = [line for line in done.errors if line.startswith("error: ")]
    assert (done.status, done.out, len(errors)) == (2, [], 1), done
    assert not any("Traceback" in line for line in done.errors)
    return errors[0]


def two_starts(this: Round) -> None:
    """A run pauses at a step; another start of its folder pauses between its check and the lock."""
    whole = this.unbroken("SASRec")
    at = this.draw.choice([BEFORE_LOCK, this.draw.randint(1, len(whole.points))])
    first = start(words("SASRec", this.folder), this.said, at, PAUSE)
    assert paused(first, this.said)
    said = this.place / "second"
    is_begun = (this.folder / "config.yaml").exists()
    asked = this.again("SASRec") if is_begun and this.draw.random() < 0.5 else None
    second = start(asked or words("SASRec", this.folder), said, BEFORE_LOCK, PAUSE)
    waits = paused(second, said)
    if waits and this.draw.random() < 0.5:
        winner, loser = go_on(first, this.said), lambda: go_on(second, said)
    elif at == BEFORE_LOCK:
        winner, loser = go_on(second, said), lambda: go_on(first, this.said)
    else:
        before = digests(this.folder)
        refused(go_on(second, said))
        assert digests(this.folder) == before
        winner, loser = go_on(first, this.said), None
    assert winner.status == 0, winner.errors
    assert outcome(this.folder) == whole.outcome
    if loser:
        before = digests(this.folder)
        refused(loser())
        assert digests(this.folder) == before


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _input_output_error(path: Path) -> None:
    path.symlink_to("/proc/self/mem")  # whose first byte nobody can read


def unreadable_newest(this: Round) -> None:
    model = this.draw.choice(MODELS)
    *others, newest = this.killed(model, after=2)
    assert others
    newest.unlink()
    this.draw.choice([Path.mkdir, _dangling, _input_output_error])(newest)
    said = this.goes_on(model)
    assert sum(f"{newest} cannot be read (" in line for line in said) == 1
    assert [*this.folder.glob("checkpoints/*")] == [newest]  # which no run has made


def _damage(this: Round, path: Path) -> None:
    contents = path.read_bytes()
    place = this.draw.randrange(len(contents))
    flipped = contents[:place] + bytes([contents[place] ^ 1]) + contents[place + 1 :]
    path.write_bytes(this.draw.choice([contents[:place], flipped, b""]))


def one_damaged_after_another(this: Round) -> None:
    """The newest is damaged, the resumed run killed, and its newest damaged as well, and again."""
    model = this.draw.choice(MODELS)
    whole = this.killed(model, after=2)
    for _ in range(this.draw.randint(1, 3)):
        if len(whole) < 2:
            break
        _damage(this, whole.pop())
        at = this.draw.randint(1, 40)
        if ended(this.again(model), this.said, at).status == 0:
            break
        whole = [*filter(_is_whole, sorted(this.folder.glob("checkpoints/*.pt")))]
        assert whole, "the last whole checkpoint was deleted"
    if (this.folder / "result.json").exists():
        assert outcome(this.folder) == this.unbroken(model).outcome
    else:
        this.goes_on(model)


def _whole_files(folder: Path) -> dict[str, str]:
    """Digests of files with a name; what a killed process wrote under none may go."""
    found = digests(folder)
    return {name: found[name] for name in found if not name.endswith(".partial")}


def _is_whole(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.partition("-")[2])


OF_A_RUN = (
    *("model.safetensors", "state.pt", "config.yaml", "tokenizer.json", "encoder.json"),
    *("result.json", "per_user.parquet", "checkpoints/a", "retriever/a", "pretrained.pt"),
)
IN_THE_WAY = {
    "single": [*(f"run/{name}" for name in OF_A_RUN), "run/notes.txt", "run-cache/notes.txt"],
    "resumed": ["run/notes.txt", "run/checkpoints/notes.txt", "run/checkpoints/1.pt"],
    "comparison": [
        *(f"out/{name}" for name in ("comparison.json", "comparison.tex", "notes.txt", ".notes")),
        *(f"out/Popularity/{name}" for name in ("seed-2020.output.log", "notes.txt")),
        *(f"out/Popularity/seed-2020/{name}" for name in (*OF_A_RUN, "notes.txt")),
    ],
    "search": [
        *(f"search/{name}" for name in ("ray/a", "best/a", "best.yaml", "trials.csv", "notes.txt")),
        *(f"search/{name}" for name in ("search.html", "trials/0000/a", "best/model.safetensors")),
    ],
    "conversion": [
        *(f"made/{name}" for name in ("notes.txt", "made.user", "made.train.link", "a/b")),
        *(".made.notes", "made.stats.json", ".made.0123456789abcdef/a"),
    ],
}
"""By command what others have put where it writes, or near that."""


def others_files(this: Round) -> None:
    """Files of others lie where a command writes: it ends well and leaves them, or refuses."""
    command = this.draw.choice([*IN_THE_WAY])
    if command == "resumed":
        this.killed("SASRec", after=1)
    elif this.draw.random() < 0.5 and command in ("search", "conversion"):
        assert _commanded(command, this)[0] == 0  # so that something stands there already
    names = this.draw.sample(IN_THE_WAY[command], this.draw.randint(1, 3))
    foreign = {}
    for name in names:
        path = this.place / name
        if path.exists():  # what the command has made itself
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(foreign.setdefault(path, f"precious {name}"))
    before = _files(this.place)
    status, errors = _commanded(command, this)
    assert {path: path.read_text() for path in foreign} == foreign
    if status:
        (error,) = [line for line in errors if line.startswith("error: ")]
        assert status == 2 and "Traceback" not in " ".join(errors)
        assert {path: text for path, text in _files(this.place).items() if path in before} == before
        assert any(part in error for path in foreign for part in (path.name, path.parent.name))
    elif command in ("single", "resumed"):
        assert outcome(this.folder) == this.unbroken("SASRec").outcome


def _files(place: Path) -> dict[Path, bytes]:
    logs = ("run.log", "out", "errors", "points", ".lock")
    files = [path for path in place.rglob("*") if path.is_file() and path.name not in logs]
    return {path: path.read_bytes() for path in files}


def _commanded(command: str, this: Round) -> tuple[int, list[str]]:
    """Status and errors of a command in the round's place."""
    if command in ("single", "resumed"):
        asked = words("SASRec", this.folder) if command == "single" else this.again("SASRec")
        done = ended(asked, this.said)
        return done.status, done.errors
    base = ["--dataset=toy", f"--data_path={ROOT / 'dataset'}", "--show_progress=False"]
    said, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        if command == "comparison":
            place = f"--run_dir={this.place / 'out'}"
            status = group.main([*base, "--model_list=Popularity", place])
        elif command == "search":
            status = _search(this, base)
        else:
            rows = reviews([(user, item, 5) for user in "uv" for item in "abc"])
            raw = write_json_lines(this.place / "raw.json", rows)
            made = this.place / "made"
            status = convert.main(["amazon2018", str(raw), "--force", "--out", str(made)])
    return status, said.getvalue().splitlines()


def _search(this: Round, base: list[str]) -> int:
    """A search whose trials are made up: Ray is not started, the winner is trained."""
    space, place = this.place / "space.yaml", this.place / "search"
    space.write_text("learning_rate: {choice: [0.001, 0.01]}\n")
    tiny = [f"--{key}={value}" for key, value in {**TINY, "epochs": 1}.items()]
    tiny = [word for word in tiny if "show_progress" not in word]

    def make_up(request: Any, data: Any, board: Any, identity: Any) -> None:
        driver._write_identity(request.folder, identity)
        for number, (name, point) in enumerate(request.points.items()):
            curve: Any = [{"stage": "train", "epoch": 0, "seconds": 1.0, "valid": 0.1 * number}]
            record = Record(name, dict(point), FINISHED, curve)
            if name not in board.ended:
                record.write(request.folder / "trials" / name)
                board.end(name, record, "made up")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_run_missing", make_up)
        asked = [*base, *tiny, "--model=SASRec", f"--search={space}", f"--run_dir={place}"]
        resume = ["--resume"] if (place / "search.json").exists() else []
        return driver.main([*asked, *resume])


def _vectors(path: Path, seed: int) -> None:
    np.save(path, np.random.default_rng(seed).normal(size=(30, 4)).astype(np.float32))


def other_bytes(this: Round) -> None:
    """What a setting names, or the data, holds other bytes when a run is to go on."""
    kind = this.draw.choice(["vectors", "items", "interactions"])
    shared = this.place.parent / "bytes"  # the same name in every round
    shared.mkdir(exist_ok=True)
    data, own = shared / "toy", shared / "own.npy"
    _vectors(own, 1)
    shutil.copytree(ROOT / "dataset" / "toy", data, dirs_exist_ok=True)
    model, changes = {
        "vectors": ("UniSRec", {"text_encoder": own}),
        "items": ("JEPA4Rec", {"data_path": shared}),
        "interactions": ("SASRec", {"data_path": shared}),
    }[kind]
    this.killed(model, after=1, **changes)
    file = {"vectors": own, "items": data / "toy.item", "interactions": data / "toy.inter"}[kind]
    contents = file.read_bytes()
    if kind == "vectors":
        _vectors(own, this.draw.randint(2, 99))
    else:  # a row goes
        rows = contents.splitlines(keepends=True)
        del rows[this.draw.randrange(1, len(rows))]
        file.write_bytes(b"".join(rows))
    before = _whole_files(this.folder)
    said = refused(ended(this.again(model), this.said))
    wanted = {"vectors": "held other bytes", "items": "text_fingerprint is "}
    assert wanted.get(kind, "data_fingerprint is ") in said
    assert _whole_files(this.folder) == before
    file.write_bytes(contents)
    this.goes_on(model, **changes)
    if kind == "vectors":
        _vectors(own, 2)
        with pytest.raises(ValueError, match="held other bytes"):
            load(this.folder)


KINDS = (two_starts, unreadable_newest, one_damaged_after_another, others_files, other_bytes)
TURNS = [(KINDS[turn % len(KINDS)], turn) for turn in range(ROUNDS)]


@pytest.mark.parametrize(
    ("kind", "turn"), [*TURNS[:QUICK], *(slow(*each) for each in TURNS[QUICK:])]
)
def test_nothing_is_lost_and_nothing_written_over(kind, turn, tmp_path_factory, unbroken):
    kind(Round(turn, tmp_path_factory.mktemp("round"), unbroken))
