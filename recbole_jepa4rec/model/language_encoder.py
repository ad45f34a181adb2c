"""A causal language model that reads item sentences and histories, one from nothing or a given one.

It encodes what a sentence encoder does, packed batches of ``all_prefixes``: each item is ended by a
token, whose hidden state stands for the item where it is read alone, and for the history up to it
where others stand before it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, normalizers
from torch import Tensor, nn

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.config.language_model_settings import LLMJEPASettings
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.language_model import finetuned_language_model
from recbole_jepa4rec.model.transformer import EncoderConfig
from recbole_jepa4rec.text.token_batch import ALL_PREFIXES, TokenBatch, fill_batches, ragged_range
from recbole_jepa4rec.text.tokenizer import SpecialIds

TOKENS_AT_ONCE = 8192
"""Tokens that pass the layers together, in rows of about the same length."""

BLANK = "Ġ"
"""With what a word begins in a byte-level vocabulary."""


class LanguageEncoder(SentenceEncoder):
    """The hidden states of a causal language model, at the tokens of packed batches.

    Rows are padded on the right, where no token of a causal model ever looks, so that it needs no
    mask. ``predictor_tokens`` tokens of its own, with the ids behind the vocabulary's, stand behind
    an item's end where the batch has them.

    Args:
        language_model: a causal one of transformers, its trained weights marked.
        config: its shape; ``hidden_size`` and ``training_targets`` are read of it.
        predictor_tokens: k.
    """

    def __init__(self, language_model: Any, config: EncoderConfig, predictor_tokens: int) -> None:
        nn.Module.__init__(self)  # the layers of a sentence encoder are not made
        self.config, self.map, self.frozen_outputs = config, None, None
        self.language_model = language_model
        first = self._words.num_embeddings
        self.predictor_ids = range(first, first + predictor_tokens)
        own = torch.randn(predictor_tokens, self._words.weight.shape[1])
        self.predictor = nn.Parameter(own * self._words.weight.detach().float().std())

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.predictor.device

    @property
    def _words(self) -> nn.Embedding:
        return self.language_model.get_input_embeddings()

    def factors(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Two factors whose product is the logits of the next token; see ``mlm_loss``.

        A final soft cap, where a model has one, is left out.
        """
        head = self.language_model.get_output_embeddings()
        asked, offered = hidden.float(), head.weight.float()
        if head.bias is None:
            return asked, offered
        asked = torch.cat([asked, asked.new_ones(len(asked), 1)], dim=1)
        return asked, torch.cat([offered, head.bias.float()[:, None]], dim=1)

    def _encode(
        self,
        batch: TokenBatch,
        tokens: Tensor | None,
        only_cls: bool = False,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states at ``tokens``, or all of them, ``[M, D]``; nothing re-enters."""
        assert latents is None
        if not batch.sequences:
            return self._token_vectors(sent(batch.input_ids, self.device))
        order = batch.lengths.argsort(stable=True)
        lengths = batch.lengths[order]
        sizes = fill_batches(lengths, TOKENS_AT_ONCE, len(lengths))
        rows, place, padded = [], torch.empty_like(batch.input_ids), 0
        for part, own in zip(order.split(sizes), lengths.split(sizes), strict=True):
            inside = torch.arange(int(own[-1])) < own[:, None]
            where = ragged_range(batch.offsets[part], own)
            ids = batch.input_ids.new_zeros(inside.shape)
            ids[inside] = batch.input_ids[where]
            place[where] = padded + inside.flatten().nonzero()[:, 0]
            padded += inside.numel()
            rows.append(ids)
        rows, place = sent((rows, place if tokens is None else place[tokens]), self.device)
        layers = self.language_model.base_model
        hidden = [
            layers(inputs_embeds=self._token_vectors(ids), use_cache=False).last_hidden_state
            for ids in rows
        ]
        flat = torch.cat([states.flatten(0, 1) for states in hidden])
        return flat.index_select(0, place)

    def _token_vectors(self, input_ids: Tensor) -> Tensor:
        """Vectors of tokens, the predictor's own among them, ``[...]`` to ``[..., D]``."""
        first = self.predictor_ids.start
        words = self._words(input_ids.clamp(max=first - 1))
        if not self.predictor_ids:
            return words
        own = F.embedding((input_ids - first).clamp(min=0), self.predictor)
        return torch.where((input_ids >= first)[..., None], own.to(words.dtype), words)


def encoder_from_nothing(shape: EncoderConfig, predictor_tokens: int) -> LanguageEncoder:
    """A Llama of that shape whose output weights are its word embeddings.

    Weights have a variance of 1 / ``hidden_size``; at 64 dimensions the usual 0.02² leaves the ends
    of all items almost equal, as in ``transformer.initialise``.
    """
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        max_position_embeddings=shape.max_token_positions,
        attention_dropout=shape.attention_dropout,
        initializer_range=shape.hidden_size**-0.5,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LanguageEncoder(transformers.LlamaForCausalLM(config), shape, predictor_tokens)


def encoder_of_language_model(
    source: str, settings: LLMJEPASettings, device: torch.device
) -> tuple[Tokenizer, SpecialIds, LanguageEncoder]:
    """A given language model that learns by low-rank weights, and how its text is written.

    Args:
        source: folder or hub name.
        settings: of the low-rank weights, of what is held and of what is read.
        device: where it will lie, which decides what is left open.

    Returns:
        The tokenizer; its special tokens, of which the one that ends a text ends an item; and the
        encoder.

    Raises:
        ValueError: if there is none, it is not causal, or it cannot read so much.
    """
    wrapped, fast = finetuned_language_model(source, settings, device)
    model = wrapped.get_base_model()
    shape = model.config.get_text_config()
    count, items = settings.predictor_tokens, settings.MAX_ITEM_LIST_LENGTH + 1
    tokens = settings.max_sequence_tokens + items * count
    most = getattr(shape, "max_position_embeddings", tokens)  # some have no bound
    if tokens > most:
        raise ValueError(
            f"max_sequence_tokens leads to sequences of {tokens} tokens, an item and the "
            f"predictor's tokens included; language_model {source!r} reads {most}"
        )
    if not fast.is_fast or fast.eos_token_id is None:
        raise ValueError(
            f"tokenizer of language_model {source!r} "
            + ("has no end token" if fast.is_fast else "is not a fast one (tokenizer.json)")
        )
    end = fast.eos_token_id
    special = SpecialIds(cls=end, mask=end, pad=end, unk=end, all=frozenset([end]))
    config = EncoderConfig.model_construct(  # no more is asked of it
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, training_targets=ALL_PREFIXES
    )
    tokenizer = _beginning_words(fast.backend_tokenizer)
    return tokenizer, special, LanguageEncoder(model, config, count)


def _beginning_words(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer for whom each text begins with a word, as one that stands behind another does."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    if any(token.startswith(BLANK) for token in tokenizer.get_vocab()):
        before = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Prepend(" ")])
    return tokenizer
