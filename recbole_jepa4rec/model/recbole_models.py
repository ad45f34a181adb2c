"""RecBole's sequential models, untouched, made to do less for the same loss.

Each class here stands before a model of RecBole's among the bases of a class made by
:func:`sparing`. It changes what the model's own ``calculate_loss`` meets on its way, never what it
computes: which columns are read, how many rows at once, when the scores of all items are made.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.model.loss import softmax_loss

WIDEST = 2.0
"""Longest row of a group over its shortest on a CPU, at most: what padding may cost."""


def of_like_length(lengths: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Rows in groups of about the same length; for a GPU, to which a pass costs more, in one.

    Args:
        lengths: of the rows, each at least 1, ``[B]``.
        device: that reads them.

    Yields:
        Rows of a group by length, the longest last, ``[G]``.
    """
    ascending, rows = lengths.sort(stable=True)
    widest = WIDEST if device.type == "cpu" else torch.inf
    begin = 0
    while begin < len(rows):
        longest = ascending[begin] * widest
        end = int(torch.searchsorted(ascending, longest, right=True))
        yield rows[begin:end]
        begin = end


class BoundedSoftmax(SequentialRecommender):
    """A model whose scores of all items are made where its loss reads them, some rows at a time."""

    _trains = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the model's; in training the product with all items waits for the loss."""
        found = super().forward(*args, **kwargs)
        return found.as_subclass(Sequences) if self._trains else found

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The model's own."""
        self._trains = True
        try:
            loss = super().calculate_loss(interaction)
        finally:
            self._trains = False
        return loss.as_subclass(Tensor)


class Sequences(Tensor):
    """What a model says of histories; its product with the vectors of all items waits."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.matmul, Tensor.matmul, Tensor.__matmul__):
            return Scores(args[0].as_subclass(Tensor), args[1].as_subclass(Tensor))
        return super().__torch_function__(func, types, args, kwargs or {})


class Scores:
    """Scores of all items, not made yet: ``cross_entropy`` makes them, some rows at a time.

    Args:
        sequences: ``[..., D]``.
        items: ``[D, N]``.
    """

    def __init__(self, sequences: Tensor, items: Tensor) -> None:
        self.sequences, self.items = sequences, items

    def __truediv__(self, temperature: float) -> Scores:
        return Scores(self.sequences / temperature, self.items)

    def __add__(self, bias: Tensor) -> Scores:
        ones = torch.ones_like(self.sequences[..., :1])
        items = torch.cat([self.items, bias[None]])
        return Scores(torch.cat([self.sequences, ones], dim=-1), items)

    def view(self, *shape: int) -> Scores:
        """Other rows of the same scores, ``[..., N]``."""
        return Scores(self.sequences.reshape(*shape[:-1], len(self.items)), self.items)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is F.cross_entropy:
            scores, targets = args[:2]
            if options["reduction"] == "mean":
                return softmax_loss(scores.sequences, scores.items.T, targets)
            counted = targets > 0  # of BERT4Rec, which leaves the others out afterwards
            mean = softmax_loss(scores.sequences[counted], scores.items.T, targets[counted])
            return mean.expand(len(targets))
        made = [arg.sequences @ arg.items if isinstance(arg, cls) else arg for arg in args]
        return func(*made, **options)


@dataclass(frozen=True, eq=False)
class PrefixGroup:
    """Windows of about the same length, and what follows their prefixes.

    Attributes:
        columns: by RecBole's names the windows, oldest item first and padding behind, ``[B, L]``,
            and their lengths, ``[B]``; the targets' items and, where the loss reads them, as many
            negatives, ``[T]``.
        places: of the item before each target among the ``B * L`` of the windows, ``[T]``.
    """

    columns: Mapping[str, Tensor]
    places: Tensor


@dataclass(frozen=True)
class PrefixBatch:
    """What a step trains: every target once."""

    groups: Sequence[PrefixGroup]

    def __len__(self) -> int:
        return sum(len(group.places) for group in self.groups)

    def to(self, device: torch.device | str) -> PrefixBatch:
        """The same on another device."""
        return sent(self, device)


class SharedPass(SequentialRecommender):
    """A causal model, which reads a window once for all of its prefixes.

    What it says of the first k items is its output at the k-th. ``gather_indexes``, by which it
    takes the last output of a row, takes all those that a target follows.
    """

    _places: Tensor | None = None

    def loss_of_prefixes(self, batch: PrefixBatch) -> Tensor:
        """The model's own loss, which is a mean over targets."""
        losses = []
        for group in batch.groups:
            self._places = group.places
            try:
                losses.append(len(group.places) / len(batch) * self.calculate_loss(group.columns))
            finally:
                self._places = None
        return torch.stack(losses).sum()

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """Outputs that targets follow, ``[B, L, D]`` to ``[T, D]``; of rows, the last of each."""
        if self._places is None:
            return super().gather_indexes(output, gather_index)
        return output.flatten(0, 1)[self._places]


class RowsByLength(SequentialRecommender):
    """A model to which padding says nothing, and whose loss is a mean over rows.

    It reads rows of about the same length together, without the columns behind the longest.
    """

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The model's own, of a group at a time."""
        losses, terms = [], self.terms_of(interaction)
        for rows in of_like_length(interaction[self.ITEM_SEQ_LEN].cpu(), self.device):
            group = interaction[rows]
            if share := self.terms_of(group) / terms:
                width = int(group[self.ITEM_SEQ_LEN].max())
                losses.append(share * super().calculate_loss(self.narrowed(group, width)))
        return torch.stack(losses).sum()

    def terms_of(self, interaction: Any) -> int:
        """How many terms the mean over these rows has."""
        return len(interaction)

    def narrowed(self, interaction: Any, width: int) -> Any:
        """The rows with so many columns."""
        columns = {self.ITEM_SEQ: interaction[self.ITEM_SEQ][:, :width]}
        return Interaction({**interaction.interaction, **columns})


class MaskedSlots(RowsByLength):
    """BERT4Rec: scores at masked slots alone, and rows to be ranked made without a loop."""

    def terms_of(self, interaction: Any) -> int:
        """Masked slots that count: RecBole leaves out the first of a row."""
        return int((interaction[self.MASK_INDEX] > 0).sum())

    def narrowed(self, interaction: Any, width: int) -> Any:
        """The rows with so many columns; a slot that does not count has no item."""
        counts = interaction[self.MASK_INDEX] > 0
        columns = {
            self.MASK_ITEM_SEQ: interaction[self.MASK_ITEM_SEQ][:, :width],
            self.POS_ITEMS: interaction[self.POS_ITEMS] * counts,
        }
        return Interaction({**super().narrowed(interaction, width).interaction, **columns})

    def reconstruct_test_data(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Rows with a mask behind the last item, without their first column, ``[B, L]``."""
        mask = torch.full_like(item_seq_len, self.mask_token)[:, None]
        return F.pad(item_seq, (0, 1)).scatter(1, item_seq_len[:, None], mask)[:, 1:]


class Positions(nn.Embedding):
    """Vectors of positions; of windows that lost padding on their left, those of what is left."""

    right_aligned = False

    def forward(self, positions: Tensor) -> Tensor:
        """``[B, W]`` to ``[B, W, D]``."""
        lost = self.num_embeddings - positions.shape[1] if self.right_aligned else 0
        return super().forward(positions + lost)


class AttributesByLength(SequentialRecommender):
    """S3Rec's pre-training, whose loss is a sum over rows that are padded on the left.

    It reads rows of about the same length together, without the columns before the longest, and
    the items' attributes are looked up instead of spelled out in lists.
    """

    position_embedding: Positions

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        weight = self.position_embedding.weight
        self.position_embedding = Positions(len(weight), weight.shape[1], _weight=weight)

    def reconstruct_pretrain_data(
        self, item_seq: Tensor, item_seq_len: Tensor
    ) -> tuple[Tensor, ...]:
        """The model's own draws, in windows as wide as the longest row."""
        attributes = self.item_feat[self.FEATURE_FIELD]
        narrow = copy.copy(self)
        narrow.max_seq_length = int(item_seq_len.max())
        narrow.n_features = 1
        narrow.item_feat = {self.FEATURE_FIELD: torch.zeros(len(attributes), dtype=torch.int64)}
        draw = super(AttributesByLength, narrow).reconstruct_pretrain_data
        _, *sequences = draw(item_seq, item_seq_len)
        items = sequences[1]  # as they were before any was masked
        named = attributes[items.cpu()].reshape(*items.shape, -1) - 1
        there = torch.zeros(*items.shape, self.n_features, dtype=torch.bool)
        has = named >= 0 if attributes.dim() > 1 else items[..., None].cpu() > 0
        row, place, which = has.nonzero(as_tuple=True)
        there[row, place, named[row, place, which]] = True  # -1, of one without, is the last
        return there.to(item_seq.device), *sequences

    def pretrain(self, features: Tensor, *sequences: Tensor) -> Tensor:
        """The model's own loss, of a group of rows at a time."""
        lengths = (sequences[1] > 0).sum(dim=1).cpu()
        losses = []
        self.position_embedding.right_aligned = True
        try:
            for rows in of_like_length(lengths, self.device):
                width = int(lengths[rows].max())
                group = [each[rows, -width:].contiguous() for each in (features, *sequences)]
                losses.append(super().pretrain(*group))
        finally:
            self.position_embedding.right_aligned = False
        return torch.stack(losses).sum()


BOUNDED = (
    *("SASRec", "SASRecF", "GRU4Rec", "GRU4RecF", "FDSA", "S3Rec", "BERT4Rec", "NARM", "CORE"),
    *("GCSAN", "SRGNN", "STAMP", "Caser", "NextItNet", "LightSANs", "HGN", "FOSSIL", "HRM", "NPE"),
    *("SHAN", "SINE"),
)
"""Models whose cross-entropy is over the product of what they say with the items' vectors."""

BY_LENGTH = {
    "NARM": RowsByLength,
    "CORE": RowsByLength,
    "GCSAN": RowsByLength,
    "SRGNN": RowsByLength,
    "BERT4Rec": MaskedSlots,
}
"""Models whose rows may lose their padding."""


@functools.cache
def sparing(model_class: type, targets: str, loss: str | None, stage: str | None) -> type:
    """A subclass of a model of RecBole's that does less for the same loss; else the class itself.

    Args:
        model_class: RecBole's, or a user's.
        targets: ``all_prefixes`` or ``rows``.
        loss: ``loss_type``, of a model that has one.
        stage: ``train_stage``, of a model that has some.
    """
    name = model_class.__name__
    if not model_class.__module__.startswith("recbole."):
        return model_class  # ours or a user's
    bases: list[type] = []
    if name == "S3Rec" and stage == "pretrain":
        bases.append(AttributesByLength)
    elif targets == "all_prefixes":
        bases.append(SharedPass)
    elif name in BY_LENGTH:
        bases.append(BY_LENGTH[name])
    if name in BOUNDED and loss == "CE" and stage != "pretrain":
        bases.append(BoundedSoftmax)
    return type(name, (*bases, model_class), {"__module__": __name__}) if bases else model_class
