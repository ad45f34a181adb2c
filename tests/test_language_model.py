"""A language model: when it is looked for, and what its layers hold in a step."""

import sys

import pytest
import torch
import transformers

from recbole_jepa4rec.model import language_model
from recbole_jepa4rec.model.language_model import (
    Verbaliser,
    add_lora,
    hold_little,
    load_language_model,
)
from tests.tiny_encoder import TEXTS
from tests.tiny_llama import save_tiny_llama


def test_without_peft_nothing_is_loaded(monkeypatch):
    def locate(source):
        raise AssertionError("looked for the weights")

    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("recbole_jepa4rec.model.language_model.locate", locate)
    with pytest.raises(ValueError, match=r'pip install "recbole_jepa4rec\[llm\]"') as caught:
        load_language_model("no/such", "fp32")
    assert "\n" not in str(caught.value)


def test_weights_of_8_bits_are_made_on_the_gpu(tmp_path, monkeypatch):
    """What transformers is told; nothing here has a GPU to make them on."""
    folder, told = save_tiny_llama(tmp_path, TEXTS), {}
    for device, message in (
        ("cpu", "language_model_precision is 'int8'; allowed on a CPU: fp32, bf16, fp16"),
        ("cuda:1", "language_model_precision is 'int8', which needs bitsandbytes: pip install"),
    ):
        monkeypatch.setattr(language_model, "find_spec", lambda name: name != "bitsandbytes")
        with pytest.raises(ValueError, match=f"^{message}"):
            load_language_model(folder, "int8", device)

    def load(source, **how):
        told.update(how)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(language_model, "find_spec", lambda _: True)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    load_language_model(folder, "int8", "cuda:1")
    assert told["quantization_config"].load_in_8bit
    assert told["device_map"] == {"": "cuda:1"}


def test_layers_that_are_computed_again_give_the_same_gradients(tmp_path):
    pytest.importorskip("peft", reason="the extra llm is not installed")
    model, tokenizer = load_language_model(save_tiny_llama(tmp_path, TEXTS), "fp32")
    torch.manual_seed(1)
    verbaliser = Verbaliser(add_lora(model, 4, 8, 0.0, ["q_proj"]), [5, 6, 7]).train()
    prompts, gradients = tokenizer(TEXTS)["input_ids"], []
    for holds_little in (False, True):
        if holds_little:
            hold_little(verbaliser.language_model)
            assert verbaliser.language_model.is_gradient_checkpointing
        verbaliser.zero_grad()
        verbaliser(prompts).square().sum().backward()
        trained = [weight.grad for weight in verbaliser.parameters() if weight.requires_grad]
        assert any(gradient.any() for gradient in trained)
        gradients.append(trained)
    for held, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, held)


def test_padding_needs_no_mask(tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="the extra llm is not installed")
    model, tokenizer = load_language_model(save_tiny_llama(tmp_path, TEXTS), "fp32")
    verbaliser = Verbaliser(add_lora(model, 4, 8, 0.0, ["q_proj"]), [5, 6, 7]).eval()
    prompts = tokenizer(TEXTS)["input_ids"]
    assert len({*map(len, prompts)}) > 1
    masked = verbaliser(prompts)
    monkeypatch.setattr(Verbaliser, "needs_mask", False)
    torch.testing.assert_close(verbaliser(prompts), masked, atol=1e-5, rtol=1e-5)
    alone = torch.cat([verbaliser([prompt]) for prompt in prompts])
    torch.testing.assert_close(alone, masked, atol=1e-5, rtol=1e-5)
