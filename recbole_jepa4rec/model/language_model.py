"""A causal language model, low-rank weights that finetune it, and its answer in one letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from recbole_jepa4rec.base.device import PRECISIONS, sent
from recbole_jepa4rec.base.weight_files import locate
from recbole_jepa4rec.config.language_model_settings import LanguageModelSettings
from recbole_jepa4rec.text.token_batch import fill_batches

GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How architectures are called that say what comes next; one with an encoder is refused later."""


def load_language_model(
    source: str, precision: str, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Any]:
    """The model, frozen, and its tokenizer; code that comes with the weights is never run.

    Args:
        source: folder or hub name.
        precision: that the weights are held in, one of ``PRECISIONS`` or int8.
        device: of the run, where weights of 8 bits are made.

    Raises:
        ValueError: if there is none or it is no causal language model; names the key. Without
            ``peft``, before anything is loaded: ``add_lora`` needs it next, and the weights may
            take minutes to come.
    """
    if not find_spec("peft"):
        raise ValueError(
            "a language_model trains with peft, which is not installed: pip install "
            '"recbole_jepa4rec[llm]"'
        )
    held = _held(precision, torch.device(device))
    try:
        folder = str(locate(source))
        said = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for name in (said.architectures or [])[:1]:
            if not name.endswith(GENERATING):
                allowed = "a causal language model, such as LlamaForCausalLM"
                raise ValueError(f"it holds a {name}; allowed: {allowed}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, **held
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(f"language_model {source!r} cannot be used: {reason}") from error
    return model.requires_grad_(False), tokenizer


def _held(precision: str, device: torch.device) -> dict[str, Any]:
    """What transformers is told of how to hold the weights.

    Raises:
        ValueError: where it cannot hold them in 8 bits.
    """
    # transformers 5 has renamed the argument
    dtype = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    if precision != "int8":
        return {dtype: PRECISIONS[precision] or torch.float32}
    if device.type == "cpu":
        raise ValueError(
            "language_model_precision is 'int8'; allowed on a CPU: " + ", ".join(PRECISIONS)
        )
    if not find_spec("bitsandbytes"):
        raise ValueError(
            "language_model_precision is 'int8', which needs bitsandbytes: pip install bitsandbytes"
        )
    eight_bits = transformers.BitsAndBytesConfig(load_in_8bit=True)
    return {
        dtype: torch.bfloat16,
        "quantization_config": eight_bits,
        "device_map": {"": str(device)},
    }


def add_lora(
    model: nn.Module, rank: int, alpha: int, dropout: float, target_modules: list[str] | str
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


def hold_little(language_model: Any) -> None:
    """Compute each layer again in the backward pass, instead of holding all that it said.

    Args:
        language_model: wrapped by peft.
    """
    language_model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})


def finetuned_language_model(
    source: str, settings: LanguageModelSettings, device: torch.device
) -> tuple[Any, Any]:
    """The model wrapped by peft, and its tokenizer.

    Args:
        source: folder or hub name.
        settings: of the low-rank weights and of what is held.
        device: of the run, which decides what is left open.

    Raises:
        ValueError: as ``load_language_model`` and ``add_lora``.
    """
    on_gpu = device.type != "cpu"
    precision = settings.language_model_precision or ("bf16" if on_gpu else "fp32")
    model, tokenizer = load_language_model(source, precision, device)
    model = add_lora(
        model,
        rank=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
    )
    checkpoints = settings.gradient_checkpointing
    if on_gpu if checkpoints is None else checkpoints:
        hold_little(model)
    return model, tokenizer


@dataclass(frozen=True)
class PaddedPrompts:
    """Prompts padded on the right, where no token of a causal model ever looks.

    Attributes:
        input_ids: ``[B, L]``.
        mask: 1 at a prompt's own tokens, ``[B, L]``; a GPU is given none, of which transformers
            would read whether it masks anything.
        row: ``[B, 1]``.
        at_end: place of the tokens wanted in their row, ``[B, count]``.
    """

    input_ids: Tensor
    mask: Tensor | None
    row: Tensor
    at_end: Tensor


class Verbaliser(nn.Module):
    """A language model that answers each prompt with one of some letters (LlamaRec, section 3.3).

    The letters' logits are computed in float32 from the hidden state of the last token, whatever
    the model computes in: bfloat16 logits would tie. A final soft cap, where a model has one, is
    left out; it would not change their order.

    Args:
        language_model: a causal one of transformers, wrapped by peft.
        letters: vocabulary ids of the letters, ``C``.

    Raises:
        ValueError: if the output layer is not a plain linear one.
    """

    letters: Tensor

    def __init__(self, language_model: Any, letters: Sequence[int]) -> None:
        super().__init__()
        self.language_model = language_model
        self._letters = [*letters]
        self.register_buffer("letters", torch.tensor(letters), persistent=False)
        self.tokens_seen = 0
        if not isinstance(self._causal.get_output_embeddings(), nn.Linear):
            raise ValueError("lora_target_modules must leave out the language model's output layer")

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.letters.device

    @property
    def _causal(self) -> Any:
        """The model of transformers, its layers with the low-rank weights inside."""
        return self.language_model.get_base_model()

    def forward(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the letters after each prompt, float32 ``[B, C]``."""
        return self._of_letters(sent(self._padded(prompts, 1), self.device))

    def _of_letters(self, prompts: PaddedPrompts) -> Tensor:
        last = self._hidden_at_end(prompts)[:, 0]
        head = self._causal.get_output_embeddings()
        bias = None if head.bias is None else head.bias[self.letters].float()
        with torch.autocast(self.letters.device.type, enabled=False):
            return F.linear(last.float(), head.weight[self.letters].float(), bias)

    def answer_loss(self, prompts: Sequence[Sequence[int]], place: Tensor, end: int) -> Tensor:
        """Next-token loss over the vocabulary on the right letter and the end token behind it.

        Args:
            prompts: at least one, ``B``.
            place: of the right letter among ``letters``, on the CPU, ``[B]``.
            end: the token after an answer.

        Returns:
            Mean over both tokens of all prompts.
        """
        answers = [self._letters[one] for one in place.tolist()]
        rows = [[*prompt, letter] for prompt, letter in zip(prompts, answers, strict=True)]
        head = self._causal.get_output_embeddings()
        labels = torch.tensor([[letter, end] for letter in answers])
        padded, labels = sent((self._padded(rows, 2), labels), self.device)
        logits = head(self._hidden_at_end(padded).to(head.weight.dtype)).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def _padded(self, prompts: Sequence[Sequence[int]], count: int) -> PaddedPrompts:
        """Prompts padded on the right, on the CPU; the last ``count`` tokens of each are wanted."""
        rows = [torch.tensor(prompt) for prompt in prompts]
        lengths = torch.tensor([len(row) for row in rows])
        self.tokens_seen += sum(map(len, prompts))
        input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        row = torch.arange(len(rows))[:, None]
        at_end = lengths[:, None] - count + torch.arange(count)
        return PaddedPrompts(input_ids, mask if self.needs_mask else None, row, at_end)

    def _hidden_at_end(self, prompts: PaddedPrompts) -> Tensor:
        """Hidden states of the tokens wanted of each prompt, ``[B, count, D]``."""
        hidden = self._causal.base_model(
            input_ids=prompts.input_ids, attention_mask=prompts.mask, use_cache=False
        ).last_hidden_state
        return hidden[prompts.row, prompts.at_end]

    @property
    def needs_mask(self) -> bool:
        """Whether padding is masked: on a CPU, where results stay those of earlier versions."""
        return self.device.type == "cpu"

    @torch.no_grad()
    def in_batches(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Tensor:
        """As :meth:`forward`, prompts of like length together, ``max_tokens`` at once."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        order = lengths.argsort(stable=True)
        sizes = fill_batches(lengths[order], max_tokens, max(1, len(prompts)))
        places = order.split(sizes)
        parts = [self._padded([prompts[row] for row in place.tolist()], 1) for place in places]
        parts, places = sent((parts, places), self.device)
        logits = torch.empty(len(prompts), len(self.letters), device=self.device)
        for place, part in zip(places, parts, strict=True):
            logits[place] = self._of_letters(part)
        return logits
