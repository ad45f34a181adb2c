"""On a GPU every model runs, is resumed to the bit, and gives what it gives on a CPU.

Without one these are skipped, and test_device says what is known all the same; see docs/gpu.md.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch

from recbole_jepa4rec.model.loss import contrastive_loss, softmax_loss
from recbole_jepa4rec.runner.recommender import load
from tests.device_runs import RUNS, go_through, prepare
from tests.test_packed_attention import READINGS, batch, encoders, gradients, outputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
ROUNDING = {"atol": 1e-4, "rtol": 1e-4}
SCORES = {"atol": 1e-3, "rtol": 1e-3}  # cosines, or logits: cosines over a temperature of 0.05


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the runs of a test lie, and the current folder meanwhile."""
    monkeypatch.chdir(".")  # and back here in the end
    prepare(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_resumed_to_the_bit_and_read_on_a_cpu(name, folder):
    """What it recommends there has the scores that it has on the GPU."""
    found = go_through(name, nullcontext())
    assert found["resumed"] == found["test"]
    assert found["recommended"] == 3
    if "bf16" not in name and "language_model" not in RUNS[name]:  # which is held in bf16 there
        run_dir = name.replace(" ", "-")
        a_cpu_can = {"attention": None} if "attention" in RUNS[name] else {}
        here, there = load(run_dir, use_gpu=False, **a_cpu_can), load(run_dir)
        assert torch.device(there.model.device).type != torch.device(here.model.device).type
        histories = [here.item_ids[1:4], here.item_ids[7:8]]
        pairs = [each.recommend(histories, k=len(here.item_ids)) for each in (here, there)]
        scores = [each.sort_values(["history", "item_id"])["score"] for each in pairs]
        torch.testing.assert_close(*(torch.tensor(each.to_numpy()) for each in scores), **SCORES)


@pytest.mark.parametrize("reading", READINGS)
def test_one_attention_call_on_a_gpu_equals_the_buckets_of_a_cpu(reading):
    """FlexAttention's own kernels, forward and backward."""
    buckets, flex = encoders(reading)
    flex = flex.cuda()
    with torch.no_grad():
        pairs = zip(*(outputs(each, batch(reading)) for each in (buckets, flex)), strict=True)
        for expected, found in pairs:
            torch.testing.assert_close(found.cpu(), expected, **ROUNDING)
    pairs = zip(*(gradients(each, reading) for each in (buckets, flex)), strict=True)
    for expected, found in pairs:
        torch.testing.assert_close(
            found.cpu(), expected, atol=1e-4 * expected.abs().max(), rtol=1e-4
        )


@pytest.mark.parametrize("items", [300, 200_000])
def test_losses_are_those_of_a_cpu(items):
    """Of few items, whose gradient is made at once, and of many."""
    torch.manual_seed(0)
    sequences, vectors = torch.randn(40, 96), torch.randn(items, 96)
    positive = torch.randint(items, (40,))
    for loss in (softmax_loss, lambda *given: contrastive_loss(*given, 0.05)):
        found = []
        for device in ("cpu", "cuda"):
            given = [each.detach().to(device).requires_grad_() for each in (sequences, vectors)]
            value = loss(*given, positive.to(device))
            parts = (value.detach(), *torch.autograd.grad(value, given))
            found.append([part.cpu() for part in parts])
        for expected, here in zip(*found, strict=True):  # gradients of most items are tiny
            torch.testing.assert_close(here, expected, atol=1e-5 * expected.abs().max(), rtol=1e-4)


@pytest.mark.skipif(not find_spec("peft"), reason="the extra llm is not installed")
def test_a_language_model_is_held_in_bf16(folder):
    """Its frozen weights; what learns stays in fp32."""
    go_through("LlamaRec", nullcontext())
    weights = dict(load("LlamaRec").model.named_parameters())
    learns = {name: "lora_" in name for name in weights if "q_proj" in name}
    assert {*learns.values()} == {False, True}
    for name, lora in learns.items():
        assert weights[name].dtype == (torch.float32 if lora else torch.bfloat16)
