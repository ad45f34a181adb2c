"""STAR and other scores of neighbours, without training (Lee et al. 2024, arXiv 2410.16458)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import Any, NamedTuple

import pandas as pd
import torch
from scipy import sparse
from torch import Tensor, nn

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.config.vector_settings import STARSettings
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.base import Model
from recbole_jepa4rec.model.neighbours import Neighbours, recency_weights
from recbole_jepa4rec.text.text_similarity import TextSimilarity, text_similarity


class Mixture(NamedTuple):
    """How the terms are added up; the fields are keys of ``STARSettings``."""

    text_weight: float
    cooccurrence_weight: float
    transition_weight: float
    recency_decay: float
    history_items: int


GRID = [
    Mixture(*weights, decay, 5)
    for decay in (0.7, 0.5, 0.3)
    for weights in [*product((0.5, 0.25, 0.1, 1, 0), (1,), (0.5, 0, 1, 2)), (1, 0, 0)]
]
"""What validation picks from; of equally good ones the first."""


def mixtures(settings: STARSettings) -> list[Mixture]:
    """The mixtures that the settings leave open, or the one that they give."""
    given = {key: getattr(settings, key) for key in Mixture._fields}
    given = {key: value for key, value in given.items() if value is not None}
    grid = GRID[:1] if settings.weights == "given" else GRID
    found = dict.fromkeys(mixture._replace(**given) for mixture in grid)
    return [mixture for mixture in found if any(mixture[:3])]


class STAR(Model):
    """Scores an item by how close it is to the newest items of the history.

    The score is ``text_weight`` * text similarity + ``cooccurrence_weight`` * co-occurrence +
    ``transition_weight`` * transitions, the terms of :class:`TextSimilarity` and
    :class:`Neighbours`. Weights .5, .5, 0, decay .7 and 3 items are the paper's retrieval stage, on
    tf-idf instead of a large language model's vectors unless ``text_encoder`` names some. Nothing
    is trained; what the settings leave open validation picks from ``GRID``.

    New items are ranked by their text. Where ``text_weight`` is 0 no text is read.

    Args:
        config: holds a ``STARSettings``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.

    Raises:
        ValueError: for a setting that cannot be used, or a data set that lacks the text.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self._mixtures = mixtures(STARSettings.of(config))
        self.neighbours = Neighbours.of(dataset.histories, self.n_items)
        self.text: TextSimilarity | None = None
        if any(mixture.text_weight for mixture in self._mixtures):
            self.text = text_similarity(config, dataset)
        zeros = torch.zeros(len(Mixture._fields), dtype=torch.float64)
        self.mixture = nn.Parameter(zeros, requires_grad=False)
        self.choose(0)

    @property
    def label(self) -> str:
        """What tables call the model: its terms and their weights."""
        names = self.text.source if self.text else "text", "co-occurrence", "transitions"
        weighed = zip(names, self._chosen[:3], strict=True)
        return f"STAR ({', '.join(f'{name} {weight:g}' for name, weight in weighed if weight)})"

    @property
    def fits_any_catalogue(self) -> bool:
        """Whether text is read, by which new items are ranked."""
        return self.text is not None

    @property
    def choices(self) -> Sequence[Mixture]:
        """What validation picks from."""
        return self._mixtures

    def choose(self, number: int) -> None:
        """Take the mixture of that number among the choices."""
        self.mixture.data = self.mixture.data.new_tensor(self._mixtures[number])

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Nothing to learn: a zero without gradient for any parameter."""
        return self.mixture.new_zeros((), requires_grad=True)

    def scores(self, histories: PackedHistories) -> Tensor:
        """Scores of all items, ``[B, N]``; 0 for an empty history."""
        mixture = self._chosen
        weights = recency_weights(histories, *mixture[3:], self.n_items)
        scores = torch.zeros(weights.shape, device=self.mixture.device)
        terms = self._terms([n for n in range(3) if mixture[n]], weights)
        for number, term in terms.items():
            scores.add_(term, alpha=mixture[number])
        return scores

    def scores_of_choices(self, histories: PackedHistories) -> Iterator[Tensor]:
        """As ``scores``, under each of the choices, in their order."""
        used = [n for n in range(3) if any(mixture[n] for mixture in self._mixtures)]
        for (decay, items), group in groupby(self._mixtures, key=lambda mixture: mixture[3:]):
            weights = recency_weights(histories, decay, items, self.n_items)
            terms = self._terms(used, weights)
            for mixture in group:
                yield torch.stack([mixture[n] * term for n, term in terms.items()]).sum(0)

    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items, one row of attributes each; returns their internal ids."""
        if self.text is None:
            return super().add_items(item_text)
        item_ids = self.text.catalogue.append(item_text)
        self.n_items = self.text.catalogue.num_items
        return item_ids

    def replace_items(self, item_ids: Tensor, item_text: pd.DataFrame) -> None:
        """Give items other texts; what co-occurred with them and followed them stays."""
        if self.text is None:
            return super().replace_items(item_ids, item_text)
        self.text.catalogue.reassign(item_ids, self.text.catalogue.append(item_text))
        self.n_items = self.text.catalogue.num_items

    def drop_items(self, first: int) -> None:
        """Forget the items from internal id ``first`` on, which were the last to be added."""
        if self.text is None:
            return super().drop_items(first)
        self.text.catalogue.truncate(first)
        self.n_items = first

    @property
    def _chosen(self) -> Mixture:
        text, cooccurrence, transition, decay, items = self.mixture.tolist()
        return Mixture(text, cooccurrence, transition, decay, int(items))

    def _terms(self, numbers: Sequence[int], weights: sparse.csr_matrix) -> dict[int, Tensor]:
        """Of text similarity, co-occurrence and transitions those numbered, ``[B, N]`` float32."""
        device, counted, terms = self.mixture.device, weights[:, : self.neighbours.num_items], {}
        if self.text is not None and 0 in numbers:
            terms[0] = self.text.of(weights).to(device)
        counts = {1: self.neighbours.cooccurrence, 2: self.neighbours.transitions}
        found = {}
        for number, count in counts.items():
            if number in numbers:
                matrix = count(counted).astype("float32")
                matrix.resize(weights.shape)  # items that were added later have no counts
                found[number] = torch.from_numpy(matrix.toarray())
        return terms | sent(found, device)
