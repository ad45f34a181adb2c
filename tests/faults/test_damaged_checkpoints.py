"""Checkpoints that are cut short or altered: the one before serves, or one line says why not."""

from __future__ import annotations

import pytest

from tests.faults.conftest import slow, words
from tests.faults.faulty_run import ended
from tests.faults.run_contents import digests, outcome


def cut(contents: bytes) -> bytes:
    return contents[: len(contents) // 2]


def flip(contents: bytes) -> bytes:
    middle = len(contents) // 2
    return contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :]


@pytest.fixture
def killed(tmp_path, unbroken):
    """A run that was killed in finetuning, and its two checkpoints, oldest first."""
    folder, said = tmp_path / "run", tmp_path / "said"
    at = unbroken("JEPA4Rec").last("step finetune")
    assert ended(words("JEPA4Rec", folder), said, at).status == -9
    files = sorted((folder / "checkpoints").iterdir())
    assert len(files) == 2
    return folder, files


def resumed(folder):
    return ended([f"--resume={folder}", "--model=JEPA4Rec"], folder.with_name("said"))


@pytest.mark.parametrize(
    "damage", [slow(cut), flip, slow(lambda _: b"")], ids=["cut", "flipped", "empty"]
)
def test_the_one_before_a_damaged_one_is_used(damage, killed, unbroken):
    folder, (_, newest) = killed
    newest.write_bytes(damage(newest.read_bytes()))
    done = resumed(folder)
    assert done.status == 0, done.errors
    assert sum("is damaged" in line and str(newest) in line for line in done.errors) == 1
    assert outcome(folder) == unbroken("JEPA4Rec").outcome


def test_two_damaged_ones_are_one_line_and_nothing_is_lost(killed):
    folder, files = killed
    for file in files:
        file.write_bytes(flip(file.read_bytes()))
    before = digests(folder)
    done = resumed(folder)
    assert (done.status, done.out) == (2, [])
    errors = [line for line in done.errors if line.startswith("error: ")]
    assert errors == done.errors[-1:]
    assert f"no checkpoint in {folder / 'checkpoints'} is whole" in errors[0]
    assert digests(folder) == before
