"""Runs on a pretended GPU: nothing lies on the wrong device, and little is waited for or sent.

Where there is no GPU, this is what is known of how a run does on one; see docs/gpu.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from recbole_jepa4rec.base.device import Awaited, Mirror, PartlyOnCPU, computing, sent
from recbole_jepa4rec.text.token_batch import TokenBatch
from tests.conftest import ROOT
from tests.pretended_device import TORCH

MOST: dict[str, dict[str, tuple[int, int]]] = {
    "JEPA4Rec": {
        "sequence_item, mlm, mapping step": (0, 5),
        "finetune step": (0, 4),
        "ranking batch": (0, 3),
    },
    "JEPA4Rec, as in the paper": {
        "sequence_item, mlm, mapping step": (0, 4),
        "finetune step": (0, 2),
        "ranking batch": (0, 2),
    },
    "JEPA4Rec, bf16": {
        "sequence_item, mlm, mapping step": (0, 5),
        "finetune step": (0, 4),
        "ranking batch": (0, 3),
    },
    "JEPA4Rec, whole head": {
        "sequence_item, mlm, mapping step": (0, 5),
        "finetune step": (0, 4),
        "ranking batch": (0, 3),
    },
    "JEPA4Rec, frozen layers": {
        "sequence_item, mlm, mapping step": (0, 5),
        "finetune step": (0, 4),
        "ranking batch": (0, 3),
    },
    "JEPA4Rec, SIGReg": {
        "mlm, mapping, sigreg step": (0, 5),
        "finetune step": (0, 4),
        "ranking batch": (0, 3),
    },
    "JEPA4Rec, one attention call": {
        "sequence_item, mlm, mapping step": (0, 5),
        "finetune step": (0, 4),
        "ranking batch": (0, 3),
    },
    "JEPA4Rec, as in the paper, one attention call": {
        "sequence_item, mlm, mapping step": (0, 4),
        "finetune step": (0, 2),
        "ranking batch": (0, 2),
    },
    "JEPA4Rec, rollouts": {
        "sequence_item, mlm, mapping, rollout step": (0, 9),
        "finetune, rollout step": (0, 8),
        "ranking batch": (0, 3),
    },
    "RecFormer": {
        "sequence_item, mlm step": (0, 3),
        "finetune step": (0, 4),
        "ranking batch": (0, 3),
    },
    "LLMJEPA": {
        "next_token, jepa step": (2, 4),
        "finetune step": (2, 4),
        "ranking batch": (1, 3),
    },
    "LLMJEPA, among negatives, whole head": {
        "next_token, jepa step": (2, 5),
        "finetune step": (2, 4),
        "ranking batch": (1, 3),
    },
    "LLMJEPA, a language model": {
        "next_token, jepa step": (2, 4),
        "finetune step": (1, 3),
        "ranking batch": (1, 3),
    },
    "UniSRec": {
        "sequence_item, sequence_sequence step": (0, 4),
        "finetune step": (0, 2),
        "ranking batch": (0, 3),
    },
    "UniSRec, whole head": {
        "sequence_item, sequence_sequence step": (0, 4),
        "finetune step": (0, 2),
        "ranking batch": (0, 3),
    },
    "VQRec": {
        "sequence_item step": (0, 2),
        "finetune step": (0, 2),
        "ranking batch": (0, 3),
    },
    "LlamaRec": {
        "step": (3, 1),
        "letter step": (1, 2),
        "ranking batch": (3, 3),
    },
    "SASRec": {
        "step": (3, 1),
        "ranking batch": (0, 2),
    },
    "STAR": {
        "ranking batch": (1, 3),
    },
    "Popularity": {
        "ranking batch": (0, 1),
    },
    "Markov": {
        "ranking batch": (0, 2),
    },
}
"""Waits for the device and copies to it, of the step and the ranking batch that have most; by run
of ``device_runs`` and what is done. A commit may lower a number, and none may raise one."""


class Thing(PartlyOnCPU):
    on_cpu = ("steps",)

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(4))
        self.register_buffer("steps", torch.zeros(()))


def test_on_a_cpu_nothing_is_sent():
    value = {"a": [torch.arange(3)], "b": (torch.ones(2, dtype=torch.bool),)}
    assert sent(value, "cpu") is value
    assert Mirror().of("a", value["a"][0], torch.device("cpu")) is value["a"][0]


def test_what_is_sent_keeps_its_form():
    """Types, shapes and order, whatever lies around them; all in one block."""
    batch = TokenBatch(*torch.arange(30).split(5))
    part = torch.rand(2, 3).bfloat16()
    value = [batch, {"a": torch.ones(3, dtype=torch.bool), "b": None}, (part[:, :1], part, 5)]
    moved = sent(value, "meta")
    assert [type(one) for one in moved] == [TokenBatch, dict, tuple]
    assert moved[0].training_targets == batch.training_targets
    assert moved[0].sentences is None and moved[1]["b"] is None and moved[2][2] == 5
    pairs = [(moved[0].offsets, batch.offsets), (moved[1]["a"], value[1]["a"])]
    pairs += zip(moved[2][:2], value[2][:2], strict=True)
    for there, here in pairs:
        assert there.is_meta and there.dtype == here.dtype and there.shape == here.shape
    assert len({one.untyped_storage()._cdata for one, _ in pairs}) == 1


def test_some_buffers_stay_where_plans_are_made():
    thing = Thing().to("meta")
    assert thing.table.is_meta and not thing.steps.is_meta
    assert [*thing.state_dict()] == ["table", "steps"]


def test_numbers_come_back_later():
    numbers = torch.arange(4.0).view(2, 2)
    assert Awaited(numbers).tolist() == numbers.tolist()


def test_a_gpu_computes_as_asked_and_torch_is_as_it_was(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    asked = (
        torch.get_float32_matmul_precision,
        torch.are_deterministic_algorithms_enabled,
        torch.backends.cuda.cudnn_sdp_enabled,
    )
    before = [ask() for ask in asked]
    with computing(torch.device("cpu"), "high", True):
        assert [ask() for ask in asked] == before
    with computing(torch.device("cuda"), "high", True):
        assert [ask() for ask in asked] == ["high", True, False]
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert [ask() for ask in asked] == before


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if not torch.__version__.startswith(TORCH):
        pytest.skip(f"the pretended device calls private functions of torch {TORCH}")
    folder = tmp_path_factory.mktemp("device")
    command = [sys.executable, "-W", "ignore", "-m", "tests.device_runs", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", MOST)
def test_runs_on_the_device_with_few_waits_and_copies(name, found):
    """Trains, ranks, goes on after an interruption and recommends, within its ceilings."""
    if name in ("LlamaRec", "LLMJEPA, a language model") and not find_spec("peft"):
        pytest.skip("the extra llm is not installed")
    run = found[name]
    assert run["resumed"] == run["test"]
    assert run["recommended"] == 3
    assert run["most"].keys() == MOST[name].keys()
    for doing, ceilings in MOST[name].items():
        counted = run["most"][doing][:2]
        within = all(number <= most for number, most in zip(counted, ceilings, strict=True))
        asked = "\n".join(run["at"][doing])
        assert within, f"{doing}: {counted} waits and copies, allowed {ceilings}\n{asked}"
