"""The sentence encoder: packed batches through a bidirectional Transformer (JEPA4Rec, 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.model.attention_layout import (
    MIN_FILL,
    MIN_FILL_FOR_CLS,
    AttentionLayout,
    FewQueries,
)
from recbole_jepa4rec.model.items_alone import (
    FrozenOutputs,
    Stored,
    distinct_items,
    with_mean_at_cls,
)
from recbole_jepa4rec.model.packed_attention import PackedMask
from recbole_jepa4rec.model.transformer import (
    EncoderConfig,
    EncoderLayer,
    Layout,
    SentenceEmbedding,
    identity,
    initialise,
    with_rows,
)
from recbole_jepa4rec.text.token_batch import TokenBatch

BESIDE_WEIGHTS = {"num_heads", "layer_norm_eps", "activation"}
"""What else the outputs of layers depend on."""

WHITENING_FLOOR = 0.01
"""Share of the mean variance that is added to that of each direction before it is made 1."""


@dataclass(frozen=True)
class Passage:
    """What an encoder reads in one pass: a packed batch, and how it is laid out for attention.

    Attributes:
        batch: packed sequences.
        layout: of them, or who sees whom; ``None`` where no layer mixes them.
        tokens: the tokens wanted, ``[M]``, or padded; ``None``: all.
        queries: where these alone attend in the last layer, ``M`` of them.
        last: who of these sees whom there, where that is not the layout's matter.
        items: the batch's distinct items, where these are read by themselves.
        place: of each token among theirs, ``[T]``.
        stored: what the frozen layers are known to say of these items.
        unknown: those of them of which nothing is known.
        latent_places: where latents stand for tokens, ``[P]``.
    """

    batch: TokenBatch
    layout: Layout | None
    tokens: Tensor | None = None
    queries: FewQueries | None = None
    last: PackedMask | None = None
    items: Passage | None = None
    place: Tensor | None = None
    stored: Stored | None = None
    unknown: Passage | None = None
    latent_places: Tensor | None = None


class SentenceEncoder(nn.Module):
    """Contextual vectors of the tokens of item sentences; the one at [CLS] stands for them all.

    The lowest ``item_local_layers`` read each item by itself; where they end, item positions are
    added, and with ``pooling: mean`` the mean of an item's tokens takes the place of its [CLS]. The
    lowest ``frozen_layers`` of these have no gradient and no dropout. Masked items pass through
    them like any other, but are not kept.

    Batches lie on the CPU, wherever the weights do: there they are laid out, and then sent.

    Args:
        config: the encoder's shape.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = SentenceEmbedding(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.apply(initialise)
        self.map = identity(config.hidden_size) if config.whitening else None
        self.frozen_outputs: FrozenOutputs | None = None
        for weight in self.frozen_weights.values():
            weight.requires_grad_(False)
        self.register_load_state_dict_post_hook(_forget_outputs)

    @property
    def frozen_weights(self) -> dict[str, Tensor]:
        """Weights that stay as they are, by name: all below the last frozen layer."""
        lowest = self.config.frozen_layers
        below = [f"layers.{number}." for number in range(lowest)]
        below += ["embedding."] if lowest else []
        return {
            name: weight
            for name, weight in self.named_parameters()
            if name.startswith(tuple(below)) and name != "embedding.item_positions.weight"
        }

    def keep_frozen_outputs(self, outputs: FrozenOutputs) -> None:
        """Read from now on what the frozen layers say of stored sentences there."""
        self.frozen_outputs = outputs

    def forget_sentences(self) -> None:
        """Forget what was kept of sentences that are there no more."""
        if self.frozen_outputs is not None:
            self.frozen_outputs.truncate()

    def train(self, mode: bool = True) -> SentenceEncoder:
        """Train, but for the frozen layers, which stay in eval mode."""
        super().train(mode)
        if lowest := self.config.frozen_layers:
            for module in (self.embedding, *self.layers[:lowest]):
                module.eval()
        return self

    @torch.no_grad()
    def whiten(self, vectors: Tensor) -> None:
        """Let the map start as the whitening of item vectors ``[S, D]``, which passed none yet.

        Of the maps that give them mean 0 and covariance 1 it is the one that turns nothing; scaled
        as a map from nothing is. Directions that hardly vary are not blown up.
        """
        assert self.map is not None
        mean = vectors.double().mean(dim=0)
        values, directions = torch.linalg.eigh(torch.cov((vectors.double() - mean).T))
        scale = (values.clamp(min=0) + WHITENING_FLOOR * values.mean()).rsqrt()
        weight = directions * scale @ directions.T
        weight /= weight.square().sum(dim=1).mean().sqrt()
        self.map.weight.copy_(weight)
        self.map.bias.copy_(-weight @ mean)

    def forward(self, batch: TokenBatch, tokens: Tensor | None = None) -> Tensor:
        """Encode every token.

        Args:
            batch: ``B`` packed sequences, ``T`` tokens in all.
            tokens: indices of the tokens wanted, ``[M]``, which saves most of the last layer for
                the others; None: all.

        Returns:
            Hidden states ``[T, D]`` in the order of the batch, or ``[M, D]`` in that of ``tokens``.

        Raises:
            ValueError: if a position lies beyond its table, or the sequences are in the other
                order.
        """
        return self._encode(batch, tokens)

    def cls(self, batch: TokenBatch) -> Tensor:
        """Vectors at every [CLS], ``[Q, D]``; the last layer is computed there alone."""
        return self.vectors(self._encode(batch, batch.cls_index, only_cls=True))

    def whole(self, batch: TokenBatch, latents: Tensor | None = None) -> Tensor:
        """Vectors at the [CLS] that have seen their whole sequence, ``[B, D]``.

        Args:
            batch: ``B`` sequences.
            latents: in place of the embeddings of the tokens at ``latent_places``, ``[B, s, D]``.
        """
        return self.vectors(self._encode(batch, batch.whole_cls_index, True, latents))

    def vectors(self, hidden: Tensor) -> Tensor:
        """What is compared, of hidden states at [CLS]: these, or mapped, ``[Q, D]``."""
        return hidden if self.map is None else self.map(hidden)

    def _encode(
        self,
        batch: TokenBatch,
        tokens: Tensor | None,
        only_cls: bool = False,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states at ``tokens``; ``only_cls`` says that these are [CLS] alone."""
        if batch.training_targets != self.config.training_targets:
            raise ValueError(
                f"sequences for training_targets={batch.training_targets!r} in an encoder with "
                f"training_targets={self.config.training_targets!r}"
            )
        first = self.config.item_local_layers
        passage = self._laid_out(batch, tokens, only_cls)
        if latents is not None:
            places = batch.latent_places(latents.shape[1]).flatten()
            passage, latents = replace(passage, latent_places=places), latents.flatten(0, 1)
        passage = sent(passage, self.device)
        hidden = self._embedded(passage, latents)
        if batch.sequences == 0:
            return hidden
        if (layout := passage.layout) is None:
            return hidden if passage.tokens is None else hidden.index_select(0, passage.tokens)
        if isinstance(layout, PackedMask):
            hidden = layout.padded(hidden)
        layers = [*self.layers][first:]
        for layer in layers[:-1]:
            hidden = self._run(layer, hidden, layout)
        last = passage.last or layout
        hidden = self._run(layers[-1], hidden, last, passage.tokens, passage.queries)
        wanted = batch.num_tokens if tokens is None else len(tokens)
        return hidden[:wanted] if len(hidden) > wanted else hidden

    def _laid_out(self, batch: TokenBatch, tokens: Tensor | None, only_cls: bool) -> Passage:
        """What the layers that mix items need to know of a batch, on the CPU.

        Raises:
            ValueError: if a position lies beyond its table.
        """
        _check_positions("token", batch.token_positions, self.embedding.token_positions)
        _check_positions("item", batch.item_positions, self.embedding.item_positions)
        layers = self.config.num_layers - self.config.item_local_layers
        passage = self._with_items(Passage(batch, None, tokens))
        if not layers or not batch.sequences:
            return passage
        window = self.config.attention_window
        items = batch.item_positions if batch.all_prefixes else None
        if self.config.attends_at_once(self.device):
            every = PackedMask.of(batch.lengths, window, items)
            if tokens is None:
                return replace(passage, layout=every)
            last = PackedMask.of(batch.lengths, window, items, tokens, only_cls)
            return replace(passage, layout=every, tokens=last.tokens, last=last)
        fill = MIN_FILL_FOR_CLS if only_cls and layers == 1 else MIN_FILL
        layout = AttentionLayout.of(batch.lengths, window, items, fill)
        few = layout.queries_at(tokens) if only_cls and tokens is not None else None
        return replace(passage, layout=layout, queries=few)

    def _with_items(self, passage: Passage) -> Passage:
        """The same, with what the layers that read each item by itself need to know."""
        frozen, local = self.config.frozen_layers, self.config.item_local_layers
        if not local or not passage.batch.sequences:
            return passage
        items, place = distinct_items(passage.batch)
        stored = unknown = None
        if frozen and self.frozen_outputs is not None:
            shape = self.config.model_dump_json(include=BESIDE_WEIGHTS)
            stored = self.frozen_outputs.of(items, self._frozen, shape, self.frozen_weights)
            unknown = None if stored.others is None else self._alone(stored.others)
        is_read = stored is None or local > frozen
        alone = self._alone(items) if is_read else Passage(items, None)
        return replace(passage, items=alone, place=place, stored=stored, unknown=unknown)

    def _alone(self, items: TokenBatch) -> Passage:
        """Items one a sequence, laid out by themselves."""
        if self.config.attends_at_once(self.device):
            return Passage(items, PackedMask.of(items.lengths, None))
        return Passage(items, AttentionLayout.of(items.lengths, None))

    def _embedded(self, passage: Passage, latents: Tensor | None) -> Tensor:
        """What the layers that mix items read, ``[T, D]``: latents ``[P, D]`` in their places."""
        if passage.items is None:
            return self.embedding(passage.batch, passage.latent_places, latents)
        hidden = with_rows(self._items(passage), passage.latent_places, latents)
        return hidden + self.embedding.positions_of_items(passage.batch)

    def _items(self, passage: Passage) -> Tensor:
        """Each item by itself through the lower layers, then in its places, ``[T, D]``."""
        assert passage.items is not None
        assert passage.place is not None
        frozen, items, hidden = self.config.frozen_layers, passage.items, None
        if (stored := passage.stored) is not None:
            hidden = stored.states.float()
            if passage.unknown is not None and stored.place is not None:
                read = self._read_frozen(passage.unknown).float()
                hidden = torch.cat([hidden, read]).index_select(0, stored.place)
        elif frozen:
            hidden = self._read_frozen(items)
        hidden = self._through(items, hidden, frozen, self.config.item_local_layers)
        if self.config.pooling == "mean":
            hidden = with_mean_at_cls(hidden, items.batch)
        return hidden.index_select(0, passage.place)

    def _frozen(self, items: TokenBatch) -> Tensor:
        """Items one a sequence, of the CPU, through the frozen layers, ``[T, D]``."""
        return self._read_frozen(sent(self._alone(items), self.device))

    @torch.no_grad()
    def _read_frozen(self, items: Passage) -> Tensor:
        """Items one a sequence through the frozen layers, ``[T, D]``, in full precision."""
        with torch.autocast(self.device.type, enabled=False):
            return self._through(items, None, 0, self.config.frozen_layers)

    def _through(self, items: Passage, hidden: Tensor | None, first: int, end: int) -> Tensor:
        """Items one a sequence, ``[T, D]``, through some layers; ``None``: from tokens on."""
        if hidden is None:
            hidden = self.embedding(items.batch)
        tokens, layout = len(hidden), items.layout
        if isinstance(layout, PackedMask) and first < end:
            hidden = layout.padded(hidden)
        for layer in [*self.layers][first:end]:
            hidden = self._run(layer, hidden, layout)
        return hidden[:tokens] if len(hidden) > tokens else hidden

    def _run(self, layer: nn.Module, hidden: Tensor, layout: Layout | None, *at: Any) -> Tensor:
        """A layer's outputs, compiled where that is asked for."""
        if not self.config.compile_layers or not isinstance(layout, PackedMask):
            return layer(hidden, layout, *at)
        assert layout.block_mask is not None  # made before the compiler sees it
        return _compiled_layer()(layer, hidden, layout, *at)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.tokens.weight.device


@cache
def _compiled_layer() -> Any:
    """A layer's pass, compiled once for all layers of a shape, for every number of tokens."""
    return torch.compile(EncoderLayer.forward, dynamic=True)


def depth_below(name: str, layers: int) -> int:
    """How many layers down one of an encoder's weights stands: 1 for the uppermost of ``layers``.

    The embeddings lie below all. Item positions and what is no part of the layers have 0.
    """
    part, _, rest = name.partition(".")
    if part == "layers":
        return layers - int(rest.partition(".")[0])
    return layers + 1 if part == "embedding" and not rest.startswith("item_positions") else 0


def _forget_outputs(encoder: SentenceEncoder, _: object) -> None:
    """Other weights were loaded, maybe of the frozen layers too."""
    if encoder.frozen_outputs is not None:
        encoder.frozen_outputs.forget()


def _check_positions(kind: str, positions: Tensor, table: nn.Embedding) -> None:
    """Refuse positions that ``table`` does not hold."""
    largest = int(positions.max()) if len(positions) else 0
    if largest >= table.num_embeddings:
        raise ValueError(
            f"{kind} position {largest} is beyond the encoder's {table.num_embeddings} positions"
        )
