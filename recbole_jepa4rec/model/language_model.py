"""A causal language model from disk or the hub, and the low-rank weights that finetune it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import transformers
from torch import nn

from recbole_jepa4rec.base.weight_files import locate

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_language_model(source: str, precision: str) -> tuple[nn.Module, Any]:
    """The model, frozen, and its tokenizer; code that comes with the weights is never run.

    Args:
        source: folder or hub name.
        precision: that the weights are held in, one of ``PRECISIONS``.

    Raises:
        ValueError: if there is none or it is no causal language model; names the key. Without
            ``peft``, before anything is loaded.
    """
    refuse_without_peft()  # add_lora needs it next; the weights may take minutes to come
    # transformers 5 has renamed the argument
    dtype = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    try:
        folder = str(locate(source))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, **{dtype: PRECISIONS[precision]}
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(f"language_model {source!r} cannot be used: {reason}") from error
    return model.requires_grad_(False), tokenizer


def refuse_without_peft() -> None:
    """Refuse to start where the low-rank weights cannot be made.

    Raises:
        ValueError: names the extra to install.
    """
    if not find_spec("peft"):
        raise ValueError(
            'LlamaRec trains with peft, which is not installed: pip install "recbole_jepa4rec[llm]"'
        )


def add_lora(
    model: nn.Module, rank: int, alpha: int, dropout: float, target_modules: list[str]
) -> nn.Module:
    """The model with low-rank weights beside the named linear layers (Hu et al. 2022).

    These alone are trained, and are float32 whatever the model is.

    Raises:
        ValueError: if no layer has such a name.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ValueError(f"lora_target_modules {target_modules!r} do not fit: {error}") from error
