"""Lower layers that read each item by itself, and what the frozen ones among them say of it.

An item's sentence then reads the same wherever it stands, so that a batch has to read it once; and
where those layers stay as they are, it is read once and for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.tensor_cache import GrowingTensor, TensorCache, checksum, content_key
from recbole_jepa4rec.text.token_batch import TokenBatch, fill_batches, ragged_range

TOKENS_AT_ONCE = 8192
"""Tokens that frozen layers read at once, at most: about 100 MiB with MiniLM."""

FrozenLayers = Callable[[TokenBatch], Tensor]
"""Embeddings and frozen layers, of items one a sequence: ``[T, D]``, without gradient."""


def distinct_items(batch: TokenBatch) -> tuple[TokenBatch, Tensor]:
    """The items of a batch, each sentence once.

    Args:
        batch: of ``all_prefixes``.

    Returns:
        ``S_i [CLS]`` of each of them, and the place there of each token of the batch, ``[T]``.
    """
    assert batch.sentences is not None
    ends = batch.cls_index + 1
    sizes = ends.diff(prepend=ends.new_zeros(1))
    every = torch.arange(len(ends), device=ends.device)
    known = batch.sentences >= 0
    _, which = torch.unique(torch.where(known, batch.sentences, -1 - every), return_inverse=True)
    one_of_each = which.new_empty(int(which.max()) + 1)
    one_of_each[which] = every
    items = _items_at(batch, one_of_each, ends - sizes, sizes)
    return items, ragged_range(items.offsets[which], sizes, batch.num_tokens)


def with_mean_at_cls(hidden: Tensor, items: TokenBatch) -> Tensor:
    """Hidden states ``[T, D]`` of items one a sequence, the mean of each in place of its [CLS]."""
    total = hidden.new_zeros(items.sequences, hidden.shape[1])
    total = total.index_add(0, items.sequence_of_token, hidden)
    mean = total / items.lengths[:, None]
    return hidden.index_copy(0, items.cls_index, mean.to(hidden.dtype))


@dataclass(frozen=True)
class Stored:
    """What frozen layers are known to say of some items, and the items that they must read.

    Attributes:
        states: of the known ones' tokens, half precision ``[K, D]``.
        others: the items that are not stored; ``None``: all are.
        place: of each token when the others' follow the known ones', ``[T]``.
    """

    states: Tensor
    others: TokenBatch | None = None
    place: Tensor | None = None


class FrozenOutputs:
    """What frozen layers say of a catalogue's sentences, made once and mapped from the disk.

    Half precision, ``[T, D]`` for the tokens of all sentences, each with its [CLS]. Sentences that
    came later, and those with other tokens than stored, are read by the layers each time. Encoders
    with the same frozen weights share one, as a context encoder and its average do.

    Args:
        sentences: the catalogue's token store.
        max_tokens: of a sentence, [CLS] counted; past that the last are cut.
        folder: of the cache.
    """

    def __init__(self, sentences: ItemSentences, max_tokens: int, folder: Path) -> None:
        self._sentences, self._max_tokens, self._folder = sentences, max_tokens, folder
        self._known = sentences.num_sentences
        self._states: Tensor | None = None
        self._begins = torch.empty(0, dtype=torch.int64)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenOutputs:
        return self

    def forget(self) -> None:
        """The weights may be others."""
        self._states = None

    def truncate(self) -> None:
        """Forget the sentences that are there no more."""
        self._known = min(self._known, self._sentences.num_sentences)

    def of(
        self, items: TokenBatch, layers: FrozenLayers, shape: str, weights: Mapping[str, Tensor]
    ) -> Stored:
        """What is known of items one a sequence, on the CPU.

        Args:
            items: some of them stored.
            layers: what makes the store.
            shape: of the layers, as far as their weights do not say it.
            weights: of the layers, by name.
        """
        assert items.sentences is not None
        if self._states is None:
            self._states = self._stored(layers, shape, weights)
            sizes = self._sizes
            self._begins = sizes.cumsum(0) - sizes
        is_stored = (items.sentences >= 0) & (items.sentences < self._known)
        rows = ragged_range(self._begins[items.sentences[is_stored]], items.lengths[is_stored])
        found = self._states[rows]
        if is_stored.all():
            return Stored(found)
        starts, sizes = items.offsets[:-1], items.lengths
        others = (~is_stored).nonzero()[:, 0]
        stored = is_stored.nonzero()[:, 0]
        places = [ragged_range(starts[which], sizes[which]) for which in (stored, others)]
        place = torch.cat(places).argsort()
        return Stored(found, _items_at(items, others, starts, sizes), place)

    @property
    def _sizes(self) -> Tensor:
        """Tokens of each sentence with its [CLS], ``[S]``."""
        return self._sentences.sentence_lengths.clamp(max=self._max_tokens - 1) + 1

    def _stored(self, layers: FrozenLayers, shape: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Outputs for all sentences, from the cache or for it, ``[T, D]``."""
        store = self._sentences
        tokens = {"ids": store.input_ids, "types": store.token_types, "offsets": store.offsets}
        sizes = str(self._max_tokens), str(self._known)
        made_of = [shape, checksum({**weights, **tokens}), *sizes]
        cache = TensorCache(self._folder, "states", content_key(made_of))
        stored = cache.read()
        if stored is None:
            states, is_mapped = self._encode(layers)
            stored = {"states": states}
            if cache.write(stored) and is_mapped:
                stored = cache.read() or stored  # and the file that they grew in is gone
        return stored["states"]

    @torch.autocast("cpu", enabled=False)  # in which bf16 refuses to lay half precision end to end
    def _encode(self, layers: FrozenLayers) -> tuple[Tensor, bool]:
        """Outputs for all sentences, and whether they lie in a file."""
        logging.getLogger().info(f"frozen layers read {self._known} sentences")
        sizes = self._sizes[: self._known]
        ids = torch.arange(self._known)
        parts = ids.split(fill_batches(sizes, TOKENS_AT_ONCE, self._known))
        states, width = None, 0
        for part in parts:
            items = self._sentences.single(part, self._max_tokens, "all_prefixes")
            read = layers(items).half().cpu()
            width = read.shape[1]
            if states is None:
                states = GrowingTensor(read.new_empty(0), self._folder)
            states.append(read.flatten().numpy())
        assert states is not None
        return states.tensor().view(-1, width), states.is_mapped


def _items_at(batch: TokenBatch, which: Tensor, starts: Tensor, sizes: Tensor) -> TokenBatch:
    """Some of the items that begin at these places of a batch, one a sequence."""
    assert batch.sentences is not None
    lengths = sizes[which]
    tokens = ragged_range(starts[which], lengths)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return TokenBatch(
        input_ids=batch.input_ids[tokens],
        token_types=batch.token_types[tokens],
        token_positions=batch.token_positions[tokens],
        item_positions=torch.ones_like(tokens),
        offsets=offsets,
        cls_index=offsets[1:] - 1,
        training_targets=batch.training_targets,
        sentences=batch.sentences[which],
    )
