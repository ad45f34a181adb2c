"""What recommenders on frozen item vectors share: a causal encoder, a catalogue, two losses."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.model.item_sequence_encoder import ItemSequenceEncoder
from recbole_jepa4rec.model.loss import contrastive_loss, cosine_similarity
from recbole_jepa4rec.text.item_vectors import ItemVectors
from recbole_jepa4rec.training.phase import FINETUNE, PRETRAIN


class ItemVectorModel(SequentialRecommender):
    """RecBole's shell around an :class:`ItemSequenceEncoder`; subclasses say what an item is.

    A subclass gives :attr:`row_of_item`, :meth:`encode_rows`, :meth:`pretrain_losses` and
    ``pretrain_weights``. Rows are what items share: items of one row have one vector, bit for bit,
    and are one candidate in a softmax. Training on the item after each item of a window costs one
    pass, since the encoder is causal.

    Where a run has several processes each is given its own windows, maybe none. The losses are its
    part of those of all (``processes.shard_of_mean``); each row's vector is computed by one of
    them.

    Args:
        config: a RecBole config with the keys of the model's yaml file.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    input_type = InputType.POINTWISE
    trains_all_prefixes = True
    item_tokens, tokens_seen = None, 0  # text is read before training
    pretrain_weights: dict[str, float]
    _table: Tensor | None
    _rows: Tensor | None

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.seed, self.temperature = config["seed"], config["temperature"]
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}; allowed: > 0")
        if config["hidden_size"] % config["n_heads"]:
            raise ValueError(
                f"hidden_size={config['hidden_size']} is no multiple of n_heads={config['n_heads']}"
            )
        stage = config["train_stage"]
        goes_on = stage == "both" and config["checkpoint"]
        self.pretrains = stage != "finetune" and config["pretrain_epochs"] > 0 and not goes_on
        self.phase, self.epoch = FINETUNE, 0
        self.text = ItemVectors.of(config, dataset)
        self.encoder = ItemSequenceEncoder(
            max_length=self.max_seq_length,
            hidden_size=config["hidden_size"],
            n_layers=config["n_layers"],
            n_heads=config["n_heads"],
            inner_size=config["inner_size"],
            hidden_dropout_prob=config["hidden_dropout_prob"],
            attn_dropout_prob=config["attn_dropout_prob"],
            hidden_act=config["hidden_act"],
            layer_norm_eps=config["layer_norm_eps"],
            initializer_range=config["initializer_range"],
        )
        self.forget_table()
        self.register_load_state_dict_post_hook(_forget_table)

    @property
    def row_of_item(self) -> Tensor:
        """Row of every item, padding included, ``[N]``."""
        raise NotImplementedError

    def encode_rows(self, rows: Tensor) -> Tensor:
        """Item vectors v of rows, ``[R]`` to ``[R, D]``, with gradient."""
        raise NotImplementedError

    def pretrain_losses(
        self, item_seq: Tensor, lengths: Tensor, next_items: Tensor, keys: Tensor
    ) -> tuple[Tensor, ...]:
        """Unweighted terms, in the order of ``pretrain_weights``; this process's part of each.

        Args:
            item_seq: windows, oldest item first, padding behind, ``[B, L]``.
            lengths: items of each window, at least 1, ``[B]``.
            next_items: the item after each position, ``[B, L]``.
            keys: one random key for each window, ``[B]``.
        """
        raise NotImplementedError

    @property
    def loss_weights(self) -> dict[str, float]:
        """The loss terms of the current phase, in the order of :meth:`calculate_loss`."""
        return self.pretrain_weights if self.phase == PRETRAIN else {"finetune": 1.0}

    def begin_phase(self, phase: str, steps: int) -> None:
        """Enter the phase of that name (``phase.py``), of so many steps."""
        self.phase = phase
        self.forget_table()

    def begin_epoch(self, epoch: int) -> None:
        """Number the epoch, which keys its random draws."""
        self.epoch = epoch

    def begin_step(self, step: int) -> None:
        """Nothing is drawn for a step."""

    def weights_moved(self) -> None:
        """The optimizer made a step."""
        self._table = None

    def forget_table(self) -> None:
        """Item vectors and their rows are to be computed anew: weights or catalogue changed."""
        self._table = self._rows = None

    @property
    def candidates(self) -> Tensor:
        """Rows that items have, ascending, ``[C]``; a softmax runs over these."""
        if self._rows is None or self._rows.device != self.row_of_item.device:
            self._rows = torch.unique(self.row_of_item[1:])
        return self._rows

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """Vectors of the candidates, ``[C, D]``, kept until the weights move."""
        if self._table is None or self._table.device != self.row_of_item.device:
            was_training = self.training
            self.eval()
            chunks = self.candidates.split(16384)
            self._table = torch.cat([self.encode_rows(rows).float() for rows in chunks])
            self.train(was_training)
        return self._table

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

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """Weighted terms of the phase's loss, named by :attr:`loss_weights`."""
        item_seq, lengths = self._window(interaction)
        last = interaction[self.POS_ITEM_ID]
        after = torch.cat([item_seq[:, 1:], torch.zeros_like(item_seq[:, :1])], dim=1)
        next_items = after.scatter(1, lengths[:, None] - 1, last[:, None])
        if self.phase != PRETRAIN:
            return (self.finetune_loss(item_seq, lengths, next_items),)
        keys = derive(self.seed, self.epoch, interaction[self.USER_ID], last)
        losses = self.pretrain_losses(item_seq, lengths, next_items, keys)
        weights = self.pretrain_weights.values()
        return tuple(weight * loss for weight, loss in zip(weights, losses, strict=True))

    def finetune_loss(self, item_seq: Tensor, lengths: Tensor, next_items: Tensor) -> Tensor:
        """Softmax of cosine / tau over all items, at every position of the windows."""
        rows = self.row_of_item
        vectors = processes.all_gather(self.encode_rows(processes.shard(self.candidates)))
        place = torch.searchsorted(self.candidates, rows)  # of an item's row among the candidates
        place = place.clamp(max=len(vectors) - 1)  # padding, which nothing reads
        hidden = self.encoder(F.embedding(place[item_seq], vectors))
        inside = inside_window(item_seq, lengths)
        positive = place[next_items[inside]]
        loss = contrastive_loss(hidden[inside], vectors, positive, self.temperature)
        return processes.shard_of_mean(loss, len(positive))

    def in_batch(self, item_seq: Tensor, next_items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of all processes' rows, ``[R, D]``, and where windows and targets find them.

        Each row is encoded once.
        """
        own_rows = self.row_of_item[torch.stack([item_seq, next_items])]
        rows = torch.unique(processes.all_gather(own_rows.flatten()))
        vectors = processes.all_gather(self.encode_rows(processes.shard(rows)))
        place = torch.searchsorted(rows, own_rows)
        return vectors, place[0], place[1]

    def in_batch_targets(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct next items of all processes.

        Args:
            places: of this process's next items among the rows of ``in_batch``, ``[Q]``.

        Returns:
            Places of the distinct ones, ascending, ``[C]``; and which each of the ``places`` is,
            ``[Q]``.
        """
        distinct = torch.unique(processes.all_gather(places))
        return distinct, torch.searchsorted(distinct, places)

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Sequence vectors s of whole windows, ``[B, L]`` and ``[B]`` to ``[B, D]``.

        An empty history's is zero, to which all items are alike.
        """
        place = torch.searchsorted(self.candidates, self.row_of_item)
        vectors = self.item_vectors()
        items = vectors[place.clamp(max=len(vectors) - 1)[item_seq]]
        return last_output(self.encoder(items), lengths)

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item, ``[B]``."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    @torch.no_grad()
    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Cosine with every item, padding item included, ``[B, N]``; items of one row tie."""
        similarity = cosine_similarity(
            self.forward(*self._window(interaction)), self.item_vectors()
        )
        place = torch.searchsorted(self.candidates, self.row_of_item)
        return similarity[:, place.clamp(max=similarity.shape[1] - 1)]

    def _catalogue_changed(self) -> None:
        self.n_items = self.text.num_items
        self.forget_table()

    def _window(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Windows without the columns that only hold padding, and their lengths."""
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        longest = int(lengths.max()) if len(lengths) else 0
        return item_seq[:, : max(1, longest)], lengths


def last_output(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Output at the last item of each window, ``[B, L, D]`` to ``[B, D]``; zero without items."""
    last = (lengths - 1).clamp(min=0)
    return hidden[torch.arange(len(hidden), device=hidden.device), last] * (lengths > 0)[:, None]


def inside_window(item_seq: Tensor, lengths: Tensor) -> Tensor:
    """Which positions hold items, bool ``[B, L]``."""
    return torch.arange(item_seq.shape[1], device=lengths.device) < lengths[:, None]


def _forget_table(model: ItemVectorModel, _: object) -> None:
    """Other weights were loaded: what they say of the items is not known yet."""
    model.forget_table()
