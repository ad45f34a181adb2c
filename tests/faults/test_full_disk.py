"""A disk that fills up while a run saves: one line, and the files of before are as they were."""

from __future__ import annotations

import pytest

from tests.faults.conftest import slow, words
from tests.faults.faulty_run import DISK_LIMIT, ended
from tests.faults.run_contents import digests, outcome, refuse_damage


def numbered(names):
    """Names of whole files, without the checksums of checkpoints, which differ between runs."""
    return {name.partition("-")[0] for name in names if not name.endswith(".partial")}


@pytest.mark.parametrize(
    "point",
    [slow("step pretrain"), slow("step finetune"), "name state.pt", slow("name model.safetensors")],
)
def test_what_was_saved_before_stays(point, tmp_path, unbroken):
    folder, said, whole = tmp_path / "run", tmp_path / "said", unbroken("JEPA4Rec")
    at = whole.last(point)
    assert ended(words("JEPA4Rec", folder), said, at).status == -9
    before, folder_of_full = digests(folder), tmp_path / "full"
    done = ended(words("JEPA4Rec", folder_of_full), said, at, "fill disk")
    assert (done.status, done.out) == (1, [])
    error = done.errors[-1]
    assert error.startswith("error: [Errno 27] cannot write: File too large: ")
    assert str(folder_of_full) in error
    assert sum(line.startswith("error: ") for line in done.errors) == 1
    assert not list(folder_of_full.rglob("*.partial"))
    refuse_damage(folder_of_full)
    after = digests(folder_of_full)
    assert max((folder_of_full / name).stat().st_size for name in after) > DISK_LIMIT
    assert numbered(after) == numbered(before)
    done = ended([f"--resume={folder_of_full}", "--model=JEPA4Rec"], said)
    assert done.status == 0, done.errors
    assert outcome(folder_of_full) == whole.outcome
