"""What text models share: a ranking by cosine, which a head may complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import PhasedModel
from recbole_jepa4rec.model.ranking_head import SCALES, Queries, RankingHead

PARTS = {
    "history_bias": "history_bias",
    "neighbour_weights": "neighbour_prior",
    "item_ids.vectors": "item_id_residual",
}
"""Weights of a head, and the key that asks for each."""


class SimilarityModel(PhasedModel):
    """Ranks by cosine; with a head by cosine / tau and what the head adds to each item.

    A subclass gives ``cosines``, ``temperature`` and ``head``.

    Attributes:
        temperature: tau of the softmax that trains the ranking.
    """

    has_item_vectors = True
    temperature: float

    @property
    def head(self) -> RankingHead | None:
        """What is added; ``None`` for nothing."""
        raise NotImplementedError

    @property
    def fits_any_catalogue(self) -> bool:
        """Items are known by their text alone, unless a subclass says otherwise."""
        return True

    @property
    def reads_whole_history(self) -> bool:
        """A head looks for items that the window has cut off as well."""
        return self.head is not None

    @property
    def head_label(self) -> str:
        """What a label says of the head."""
        return f", {self.head.label}" if self.head else ""

    @property
    def knows_items(self) -> bool:
        """Whether items have vectors of their own."""
        return super().knows_items or (self.head is not None and self.head.item_ids is not None)

    def kept_from_start(self, weights: Mapping[str, Tensor], same_items: bool) -> tuple[str, ...]:
        """Parts of a head that the checkpoint lacks; items' own vectors, if its items are others.

        Raises:
            ValueError: for a part that the checkpoint has and this model has not.
        """
        ours = self.head.state_dict() if self.head else {}
        theirs = {part for part in PARTS for name in weights if name.endswith(f"head.{part}")}
        for part in theirs - ours.keys():
            key = PARTS[part]
            raise ValueError(f"{key} is False; allowed with this checkpoint, which has it: True")
        if not same_items:
            theirs.discard("item_ids.vectors")
        kept = [part for part in PARTS if part in ours and part not in theirs]
        scale = ["neighbour_scale"] if self.head and not theirs else []
        return tuple(f"*head.{part}" for part in kept + scale)

    def weights_moved(self) -> None:
        """The optimizer has made a step."""
        if self.head is not None:
            self.head.weights_moved()

    @property
    def choices(self) -> Sequence[float]:
        """By what validation may multiply the neighbours' weights."""
        return SCALES if self.head and self.head.neighbour_weights is not None else ()

    def choose(self, number: int) -> None:
        """Multiply the neighbours' weights by the choice of that number, in ranking."""
        assert self.head is not None
        self.head.neighbour_scale.fill_(SCALES[number])

    def scores(self, histories: PackedHistories) -> Tensor:
        """``cosines``, or the logits that a head makes of them, ``[B, N]``."""
        return self.with_head(self.cosines(histories), histories)

    def with_head(self, cosines: Tensor, histories: PackedHistories) -> Tensor:
        """Cosines ``[B, N]``, or the logits that a head makes of them for these histories."""
        if self.head is None:
            return cosines
        return next(self._logits(cosines, histories, [float(self.head.neighbour_scale)]))

    def scores_of_choices(self, histories: PackedHistories) -> Iterator[Tensor]:
        """As ``scores``, under each of the choices, in their order."""
        return self._logits(self.cosines(histories), histories, self.choices)

    def _logits(
        self, cosines: Tensor, histories: PackedHistories, scales: Sequence[float]
    ) -> Iterator[Tensor]:
        """The head's logits, with the neighbours' weights multiplied by each of the scales."""
        assert self.head is not None
        logits = cosines / self.temperature
        items = torch.arange(logits.shape[1])
        bias, neighbours = self.head.entries(Queries.whole(histories), items)
        logits = self.head.add_to(logits, bias)
        for number, scale in enumerate(scales):
            is_last = number + 1 == len(scales)
            yield self.head.add_to(logits if is_last else logits.clone(), neighbours, scale)
