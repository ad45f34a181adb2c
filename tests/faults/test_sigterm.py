"""SIGTERM: status 75 and a run that goes on, or 143 where there is nothing to go on with."""

from __future__ import annotations

import pytest

from recbole_jepa4rec.base.command import RESUMABLE
from recbole_jepa4rec.base.stopping import TERMINATED
from tests.faults.conftest import slow, words
from tests.faults.faulty_run import ended
from tests.faults.run_contents import outcome, refuse_damage


def test_before_there_is_a_run_to_resume(tmp_path):
    done = ended(words("JEPA4Rec", tmp_path / "run"), tmp_path / "said", 1, "terminate")
    assert (done.status, done.out) == (TERMINATED, [])
    assert done.points[0] == "flush"  # of config.yaml
    refuse_damage(tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("model", "point"),
    [
        slow("JEPA4Rec", "tokenise"),
        slow("JEPA4Rec", "step pretrain"),
        slow("JEPA4Rec", "rank pretrain"),
        ("JEPA4Rec", "step finetune"),
        slow("JEPA4Rec", "rank finetune"),
        slow("JEPA4Rec", "step finetune_frozen_items"),
        slow("JEPA4Rec", "rank finetune_frozen_items"),  # the last one ranks the test split
        slow("JEPA4Rec", "name model.safetensors"),
        slow("SASRec", "step"),
        slow("SASRec", "rank"),
        slow("S3Rec", "step"),
    ],
)
def test_a_run_that_is_told_to_end_goes_on(model, point, tmp_path, unbroken):
    folder, said, whole = tmp_path / "run", tmp_path / "said", unbroken(model)
    at = whole.last(point)
    done = ended(words(model, folder), said, at, "terminate")
    assert (done.status, done.out) == (RESUMABLE, [])
    assert done.points[:at] == whole.points[:at]
    steps = [name for name in done.points[at:] if name.startswith("step")]
    assert len(steps) <= 1  # the one under way, or the first after the batch that is ranked
    assert done.errors[-1] == f"stopped; --resume={folder} goes on"
    refuse_damage(folder)
    done = ended([f"--resume={folder}", f"--model={model}"], said)
    assert done.status == 0, done.errors
    assert done.out == [str(folder / "result.json")]
    assert outcome(folder) == whole.outcome


@pytest.mark.slow
def test_loader_workers_that_are_told_too_do_not_break_the_run(tmp_path, unbroken):
    folder, said, whole = tmp_path / "run", tmp_path / "said", unbroken("BERT4Rec")
    done = ended(words("BERT4Rec", folder), said, 1 + whole.points.index("step"), "terminate all")
    assert (done.status, done.out) == (RESUMABLE, [])
    assert done.errors[-1] == f"stopped; --resume={folder} goes on"
    assert ended([f"--resume={folder}", "--model=BERT4Rec"], said).status == 0
    assert outcome(folder) == whole.outcome
