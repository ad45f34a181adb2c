"""The sentence encoder: four embeddings and a bidirectional Transformer (JEPA4Rec, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.config.model_settings import EncoderSettings, TrainingTargets, Window
from recbole_jepa4rec.config.settings import Count, Positive, ShareBelowOne
from recbole_jepa4rec.model.attention import SelfAttention
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
from recbole_jepa4rec.model.packed_attention import NARROWEST_HEAD, PackedMask
from recbole_jepa4rec.text.token_batch import RANDOM, TokenBatch

TOKEN_TYPES = 3
"""[CLS], attribute name, attribute value."""

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda hidden: F.gelu(hidden, approximate="tanh"),
    "relu": F.relu,
}
Activation = Literal["gelu", "gelu_new", "relu"]

BESIDE_WEIGHTS = {"num_heads", "layer_norm_eps", "activation"}
"""What else the outputs of layers depend on."""

WHITENING_FLOOR = 0.01
"""Share of the mean variance that is added to that of each direction before it is made 1."""


class EncoderConfig(EncoderSettings):
    """Shape of a sentence encoder: what settings decide, and what follows from vocabulary and data.

    How a history is read depends on ``training_targets``. ``random``: the paper's way, newest item
    first, every token sees every other, one [CLS] in front, which predicts the one next item.
    ``all_prefixes``: oldest item first, tokens see their own item and earlier ones, a [CLS] behind
    each item, which predicts the item after it; attention is dense.
    """

    vocab_size: Count
    """Tokens, V."""
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    """Attention heads; they divide hidden_size."""
    intermediate_size: Count
    max_token_positions: Count = 1024
    """Longest sequence, in tokens."""
    max_item_positions: Count = 51
    """Items of a history plus one for [CLS]."""
    attention_window: Window | None = 64
    dropout: ShareBelowOne = 0.1
    layer_norm_eps: Positive = 1e-12
    """Of every LayerNorm."""
    activation: Activation = "gelu"
    """Of the feed-forward networks."""
    training_targets: TrainingTargets = RANDOM

    @model_validator(mode="after")
    def _has_the_layers(self) -> EncoderConfig:
        if self.item_local_layers > self.num_layers:
            raise ValueError(
                f"item_local_layers is {self.item_local_layers}; allowed in an encoder of "
                f"{self.num_layers} layers: 0 to {self.num_layers}"
            )
        if self.attention == "flex" and self.hidden_size < NARROWEST_HEAD * self.num_heads:
            raise ValueError(
                f"attention is 'flex'; allowed with hidden_size={self.hidden_size} and num_heads="
                f"{self.num_heads}, heads of less than {NARROWEST_HEAD} dimensions: buckets"
            )
        return self

    def attends_at_once(self, device: torch.device) -> bool:
        """Whether attention is one call a layer there; see the key ``attention``."""
        if self.attention is not None:
            return self.attention == "flex"
        is_wide = self.hidden_size >= NARROWEST_HEAD * self.num_heads
        return device.type == "cuda" and is_wide and not self.attention_dropout


Layout = AttentionLayout | PackedMask
"""Who sees whom in a packed batch, for a call a bucket or for one call."""


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
        hidden = _with_rows(self._items(passage), passage.latent_places, latents)
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


class SentenceEmbedding(nn.Module):
    """LayerNorm(token + token position + token type + item position).

    Where items are read by themselves, item positions are added later, where items meet.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.reads_items_alone = config.item_local_layers > 0
        self.tokens = nn.Embedding(config.vocab_size, size)
        self.token_positions = nn.Embedding(config.max_token_positions, size)
        self.token_types = nn.Embedding(TOKEN_TYPES, size) if config.use_token_type else None
        self.item_positions = nn.Embedding(config.max_item_positions, size)
        self.norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, batch: TokenBatch, places: Tensor | None = None, latents: Tensor | None = None
    ) -> Tensor:
        """Embed a packed batch, ``[T, D]``; latents ``[P, D]`` stand for the tokens at places."""
        total = _with_rows(self.tokens(batch.input_ids), places, latents)
        total = total + self.token_positions(batch.token_positions)
        if not self.reads_items_alone:
            total = total + self.positions_of_items(batch)
        if self.token_types is not None:
            total = total + self.token_types(batch.token_types)
        return self.dropout(self.norm(total))

    def positions_of_items(self, batch: TokenBatch) -> Tensor:
        """D_n of each token's item, ``[T, D]``."""
        return self.item_positions(batch.item_positions)


class EncoderLayer(nn.Module):
    """Attention and feed-forward network, each with dropout, residual and LayerNorm behind it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention = SelfAttention(
            size, config.num_heads, config.attention_window, config.attention_dropout
        )
        self.attention_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.expand = nn.Linear(size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, size)
        self.output_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(
        self,
        hidden: Tensor,
        layout: Layout,
        tokens: Tensor | None = None,
        queries: FewQueries | None = None,
    ) -> Tensor:
        """Packed tokens ``[T, D]`` to ``[T, D]``, or to ``[M, D]`` at ``tokens``.

        Where ``queries`` says where these stand, no other token attends.
        """
        if queries is not None and isinstance(layout, AttentionLayout):
            attended = self.attention.at_cls(hidden, layout, queries)
        else:
            attended = self.attention(hidden, layout, tokens)
        if tokens is not None:
            hidden = hidden.index_select(0, tokens)
        hidden = self.attention_norm(hidden + self.dropout(attended))
        expanded = self.activation(self.expand(hidden))
        return self.output_norm(hidden + self.dropout(self.contract(expanded)))


@cache
def _compiled_layer() -> Any:
    """A layer's pass, compiled once for all layers of a shape."""
    return torch.compile(EncoderLayer.forward)


class MLMHead(nn.Module):
    """Scores of every vocabulary entry; the token embeddings serve as output weights.

    Args:
        config: the encoder's shape.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(initialise)

    def asked(self, hidden: Tensor) -> Tensor:
        """What hidden states ask of the vocabulary's vectors, ``[M, D]`` to ``[M, D]``.

        The product of both and ``bias`` are the logits, which are too many to be held.
        """
        return self.norm(F.gelu(self.transform(hidden)))

    def forward(self, hidden: Tensor, token_weight: Tensor) -> Tensor:
        """Hidden states ``[M, D]`` and token embeddings ``[V, D]`` to logits ``[M, V]``."""
        return F.linear(self.asked(hidden), token_weight, self.bias)


def identity(size: int) -> nn.Linear:
    """A linear map that changes nothing yet."""
    unchanging = nn.Linear(size, size, device="meta")  # whose first weights nobody draws
    unchanging.weight = nn.Parameter(torch.eye(size))
    unchanging.bias = nn.Parameter(torch.zeros(size))
    return unchanging


def depth_below(name: str, layers: int) -> int:
    """How many layers down one of an encoder's weights stands: 1 for the uppermost of ``layers``.

    The embeddings lie below all. Item positions and what is no part of the layers have 0.
    """
    part, _, rest = name.partition(".")
    if part == "layers":
        return layers - int(rest.partition(".")[0])
    return layers + 1 if part == "embedding" and not rest.startswith("item_positions") else 0


def initialise(module: nn.Module) -> None:
    """Initial values of an encoder from nothing; item positions start at zero.

    Departs from BERT's N(0, 0.02²) for linear maps: their variance is 1 / inputs, so that narrow
    encoders pass on as much of a token as wide ones do. At 64 dimensions BERT's values leave the
    vectors of all items almost equal, and the contrastive losses learn nothing for epochs.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, SentenceEmbedding):
        nn.init.zeros_(module.item_positions.weight)


def _forget_outputs(encoder: SentenceEncoder, _: object) -> None:
    """Other weights were loaded, maybe of the frozen layers too."""
    if encoder.frozen_outputs is not None:
        encoder.frozen_outputs.forget()


def _with_rows(hidden: Tensor, places: Tensor | None, rows: Tensor | None) -> Tensor:
    """``[T, D]`` with other rows ``[P, D]`` in places ``[P]``."""
    if places is None or rows is None:
        return hidden
    return hidden.index_copy(0, places, rows.to(hidden.dtype))


def _check_positions(kind: str, positions: Tensor, table: nn.Embedding) -> None:
    """Refuse positions that ``table`` does not hold."""
    largest = int(positions.max()) if len(positions) else 0
    if largest >= table.num_embeddings:
        raise ValueError(
            f"{kind} position {largest} is beyond the encoder's {table.num_embeddings} positions"
        )
