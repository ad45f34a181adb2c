"""What recommenders on frozen item vectors share: a causal encoder, a catalogue, two losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from recbole.model.layers import TransformerEncoder
from torch import Tensor, nn

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import Mirror, sent
from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.vector_settings import ItemVectorSettings
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import PRETRAIN
from recbole_jepa4rec.model.loss import contrastive_loss, cosine_similarity, cosine_to
from recbole_jepa4rec.model.ranking_head import Entries, Queries, RankingHead, ranking_head
from recbole_jepa4rec.model.similarity_model import SimilarityModel
from recbole_jepa4rec.text.item_vectors import ItemVectors

LAYERS = {
    "hidden_size",
    "n_layers",
    "n_heads",
    "inner_size",
    "hidden_dropout_prob",
    "attn_dropout_prob",
    "hidden_act",
    "layer_norm_eps",
}
"""Keys of the Transformer's layers, RecBole's names."""

MASKED = -10000.0
"""Added to attention scores of what must not be seen: its softmax is exactly 0 in float32."""


class ItemSequenceEncoder(nn.Module):
    """SASRec's encoder over item vectors instead of item ids (Kang and McAuley 2018).

    It is RecBole's Transformer under a causal mask. Parts are named as in RecBole's SASRec, so that
    its weights, and those of models built on it, fit.

    Args:
        max_length: positions.
        initializer_range: standard deviation of the first weights.
        **layers: what ``LAYERS`` names; ``hidden_size`` are the dimensions ``D`` of item vectors
            and output.
    """

    def __init__(self, max_length: int, initializer_range: float, **layers: Any) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(max_length, layers["hidden_size"])
        self.trm_encoder = TransformerEncoder(**layers)
        self.LayerNorm = nn.LayerNorm(layers["hidden_size"], eps=layers["layer_norm_eps"])
        self.dropout = nn.Dropout(layers["hidden_dropout_prob"])
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, items: Tensor) -> Tensor:
        """What each prefix says: output ``n`` sees the items up to the ``n``-th.

        Padding stands behind the items, where no output of theirs sees it.

        Args:
            items: item vectors, oldest first, ``[B, L, D]``, at most ``max_length`` of them.

        Returns:
            Sequence vectors, ``[B, L, D]``.
        """
        length = items.shape[1]
        hidden = self.dropout(self.LayerNorm(items + self.position_embedding.weight[:length]))
        future = torch.full((length, length), MASKED, device=items.device).triu(1)
        layers = self.trm_encoder(hidden, future[None, None], output_all_encoded_layers=False)
        return layers[-1]


@dataclass(frozen=True)
class Windows:
    """Histories to train on side by side, each with an item at least.

    Attributes:
        items: oldest item first, padding behind, ``[B, L]``.
        lengths: items of each window, ``[B]``.
        next_items: the item after each position, ``[B, L]``.
        inside: which positions hold items, bool ``[B, L]``.
    """

    items: Tensor
    lengths: Tensor
    next_items: Tensor
    inside: Tensor

    @classmethod
    def of(cls, histories: PackedHistories) -> Windows:
        """The windows of packed histories whose targets are known."""
        items, lengths = histories.padded(), histories.lengths
        after = torch.cat([items[:, 1:], torch.zeros_like(items[:, :1])], dim=1)
        next_items = after.scatter(1, lengths[:, None] - 1, histories.targets[:, None])
        inside = torch.arange(items.shape[1]) < lengths[:, None]
        return cls(items, lengths, next_items, inside)

    @property
    def places(self) -> Tensor:
        """Places that hold items among all ``B * L``, ``[Q]``."""
        return self.inside.flatten().nonzero()[:, 0]


@dataclass(frozen=True)
class InBatch:
    """What a step of pre-training compares, where the weights are.

    Attributes:
        items: vectors of the windows' items, ``[B, L, D]``.
        places: those that hold items among the ``B * L`` of the windows, ``[Q]``.
        candidates: vectors of the distinct next items of all processes, ``[C, D]``.
        positive: which of them follows each of the ``places``, ``[Q]``.
        lengths: items of each window, ``[B]``.
        last: row of the item after each window, on the CPU, ``[B]``.
    """

    items: Tensor
    places: Tensor
    candidates: Tensor
    positive: Tensor
    lengths: Tensor
    last: Tensor


class ItemVectorModel(SimilarityModel):
    """RecBole's shell around an :class:`ItemSequenceEncoder`; subclasses say what an item is.

    A subclass gives :attr:`row_of_item`, :meth:`encode_rows`, :meth:`pretrain_losses` and
    ``pretrain_weights``. Rows are what items share: items of one row have one vector, bit for bit,
    and are one candidate in a softmax. Training on the item after each item of a window costs one
    pass, since the encoder is causal. With a head items are candidates, since those of one row have
    neighbours of their own.

    Where a run has several processes each is given its own windows, maybe none. The losses are its
    part of those of all (``processes.shard_of_mean``); each row's vector is computed by one of
    them. Windows and the rows of items lie on the CPU.

    Args:
        config: a RecBole config with the keys of the model's yaml file.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
        settings: the config's.
    """

    training_targets = "all_prefixes"
    pretrain_weights: dict[str, float]
    _table: tuple[Tensor, Tensor] | None
    _rows: tuple[Tensor, Tensor] | None

    def __init__(self, config: Any, dataset: Any, settings: ItemVectorSettings) -> None:
        super().__init__(config, dataset)
        self.seed, self.temperature = settings.seed, settings.temperature
        self.fixes_encoder = settings.fix_encoder
        self.text = ItemVectors.of(config, dataset)
        self.encoder = ItemSequenceEncoder(
            self.max_seq_length, settings.initializer_range, **settings.model_dump(include=LAYERS)
        )
        width = settings.hidden_size
        self.ranking_head = ranking_head(settings, self.max_seq_length, dataset, width)
        self._mirror = Mirror()
        self.forget_table()
        self.register_load_state_dict_post_hook(_forget_table)

    @property
    def head(self) -> RankingHead | None:
        """What is added to the similarity."""
        return self.ranking_head

    @property
    def row_of_item(self) -> Tensor:
        """Row of every item, padding included, ``[N]`` on the CPU."""
        raise NotImplementedError

    def encode_rows(self, rows: Tensor) -> Tensor:
        """Item vectors v of rows, ``[R]`` to ``[R, D]``, with gradient."""
        raise NotImplementedError

    def pretrain_losses(self, windows: Windows, keys: Tensor) -> tuple[Tensor, ...]:
        """Unweighted terms, in the order of ``pretrain_weights``; this process's part of each.

        Args:
            windows: of this process.
            keys: one random key for each window, ``[B]``.
        """
        raise NotImplementedError

    @property
    def loss_weights(self) -> dict[str, float]:
        """The loss terms of the current phase, in the order of :meth:`losses`."""
        return self.pretrain_weights if self.phase == PRETRAIN else {"finetune": 1.0}

    def begin_phase(self, phase: str, steps: int) -> None:
        """Enter the phase of that name; a fixed encoder is trained in pre-training alone."""
        super().begin_phase(phase, steps)
        is_free = phase == PRETRAIN or not self.fixes_encoder
        self.encoder.trm_encoder.requires_grad_(is_free)
        self.encoder.position_embedding.requires_grad_(is_free)
        self.forget_table()

    def weights_moved(self) -> None:
        """The optimizer made a step."""
        super().weights_moved()
        self._table = None

    def forget_table(self) -> None:
        """Item vectors and their rows are to be computed anew: weights or catalogue changed."""
        self._table = self._rows = None

    @property
    def candidates(self) -> Tensor:
        """Rows that items have, ascending, ``[C]``; a softmax runs over these."""
        return self._places()[0]

    @property
    def candidate_of_item(self) -> Tensor:
        """Place of every item's row among the candidates, ``[N]``; nothing reads padding's."""
        return self._places()[1]

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """Vectors of the candidates, ``[C, D]``, kept until the weights move."""
        return self._vectors_and_directions()[0]

    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items, one row of attributes each; returns their internal ids.

        Raises:
            ValueError: for an unknown attribute, or where nothing makes vectors of new text.
        """
        item_ids = self.text.append(item_text)
        self._catalogue_changed()
        return item_ids

    def replace_items(self, item_ids: Tensor, item_text: pd.DataFrame) -> None:
        """Give items other texts, one row of attributes each."""
        self.text.reassign(item_ids, self.add_items(item_text))
        self._catalogue_changed()

    def drop_items(self, first: int) -> None:
        """Forget the items from internal id ``first`` on, which were the last to be added."""
        self.text.truncate(first)
        self._catalogue_changed()

    def losses(self, histories: PackedHistories) -> tuple[Tensor, ...]:
        """Weighted terms of the phase's loss, named by :attr:`loss_weights`."""
        windows = Windows.of(histories)
        if self.phase != PRETRAIN:
            return (self.finetune_loss(histories, windows),)
        keys = derive(self.seed, self.epoch, histories.users, histories.targets)
        losses = self.pretrain_losses(windows, keys)
        weights = self.pretrain_weights.values()
        return tuple(weight * loss for weight, loss in zip(weights, losses, strict=True))

    def finetune_loss(self, histories: PackedHistories, windows: Windows) -> Tensor:
        """Softmax of cosine / tau over all items, at every position of the windows."""
        rows, place = self.there("candidates", self.candidates), self.candidate_of_item
        vectors = processes.all_gather(self.encode_rows(processes.shard(rows)))
        positive = windows.next_items[windows.inside]
        positive = place[positive] if self.head is None else positive - 1
        read, inside, positive = self._sent((place[windows.items], windows.places, positive))
        hidden = self.encoder(F.embedding(read, vectors)).flatten(0, 1)[inside]
        added = list[Entries]()
        if self.head is not None:
            items = torch.arange(1, self.n_items)
            of_history, of_neighbours = self.head.entries(Queries.prefixes(histories), items)
            texts = F.embedding(self.there("place", place)[1:], vectors)
            numbers = torch.arange(1, self.n_items, device=vectors.device)
            vectors = self.head.candidate_vectors(texts, numbers)
            added = of_history + of_neighbours
        loss = contrastive_loss(hidden, vectors, positive, self.temperature, added=added)
        return processes.shard_of_mean(loss, len(positive))

    def in_batch(self, windows: Windows) -> InBatch:
        """What windows hold and what follows, of all processes; each row is encoded once."""
        own = self.row_of_item[torch.stack([windows.items, windows.next_items])]
        rows = torch.unique(processes.all_gather(own.flatten()))
        place, following = torch.searchsorted(rows, own)
        wanted = following[windows.inside]
        distinct = torch.unique(processes.all_gather(wanted))
        last = following.gather(1, windows.lengths[:, None] - 1)[:, 0]
        positive = torch.searchsorted(distinct, wanted)
        rows, place, inside, distinct, positive, lengths = self._sent(
            (processes.shard(rows), place, windows.places, distinct, positive, windows.lengths)
        )
        vectors = processes.all_gather(self.encode_rows(rows))
        items = F.embedding(place, vectors)
        return InBatch(items, inside, vectors[distinct], positive, lengths, last)

    def forward(self, histories: PackedHistories) -> Tensor:
        """Sequence vectors s of whole histories, ``[B, D]``.

        An empty history's is zero, to which all items are alike.
        """
        table = self.item_vectors()
        read, lengths = self._sent((self.candidate_of_item[histories.padded()], histories.lengths))
        return last_output(self.encoder(table[read]), lengths)

    def cosines(self, histories: PackedHistories) -> Tensor:
        """Cosine with every item, padding item included, ``[B, N]``; items of one row tie."""
        sequences, (vectors, directions) = self.forward(histories), self._vectors_and_directions()
        place = self.there("place", self.candidate_of_item)
        if self.head is None or self.head.item_ids is None:
            return cosine_to(sequences, directions)[:, place]
        items = torch.arange(self.n_items, device=vectors.device)
        return cosine_similarity(sequences, self.head.candidate_vectors(vectors[place], items))

    def _places(self) -> tuple[Tensor, Tensor]:
        """``candidates`` and ``candidate_of_item``."""
        if self._rows is None:
            rows = torch.unique(self.row_of_item[1:])
            place = torch.searchsorted(rows, self.row_of_item)
            self._rows = rows, place.clamp(max=len(rows) - 1)
        return self._rows

    def _vectors_and_directions(self) -> tuple[Tensor, Tensor]:
        """Vectors of the candidates, and the same at length 1; made anew when weights moved."""
        device = self.text.table.device
        if self._table is None or self._table[0].device != device:
            was_training = self.training
            self.eval()
            chunks = self.there("candidates", self.candidates).split(16384)
            vectors = torch.cat([self.encode_rows(rows).float() for rows in chunks])
            self.train(was_training)
            self._table = vectors, F.normalize(vectors, dim=1)
            self.there("place", self.candidate_of_item)  # before a batch needs it
        return self._table

    def _sent(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors where the weights are, in one copy."""
        return sent(tensors, self.text.table.device)

    def there(self, name: str, of_catalogue: Tensor) -> Tensor:
        """What is known of the catalogue on the CPU, where the weights are; sent once."""
        return self._mirror.of(name, of_catalogue, self.text.table.device)

    def _catalogue_changed(self) -> None:
        self.n_items = self.text.num_items
        self.forget_table()


def last_output(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Output at the last item of each window, ``[B, L, D]`` to ``[B, D]``; zero without items."""
    last = (lengths - 1).clamp(min=0)
    return hidden[torch.arange(len(hidden), device=hidden.device), last] * (lengths > 0)[:, None]


def _forget_table(model: ItemVectorModel, _: object) -> None:
    """Other weights were loaded: what they say of the items is not known yet."""
    model.forget_table()
