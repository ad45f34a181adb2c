"""What a data set is like: counts, lengths, ties in time, cold targets, text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.convert.interactions import Interactions
from recbole_jepa4rec.text.tokenizer import encode_texts, train_wordpiece

SAMPLE = 10_000
"""Items of which tokens are counted."""

_TRAINING_CHARACTERS = 1000

_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def counts(rows: Interactions) -> dict[str, float]:
    """The same as ``SequentialTextDataset.statistics``."""
    numbers = rows.counts()
    users, items, interactions = numbers.values()
    return {
        **numbers,
        "average_length": interactions / users,
        "density": interactions / (users * items),
    }


def order_and_targets(rows: Interactions) -> dict[str, Any]:
    """Lengths, and what leaving the last two out will meet.

    Args:
        rows: sorted by user and time.

    Returns:
        ``length`` quantiles; ``evaluated_users``: those with three interactions or more;
        ``users_with_equal_times``: share of all users who did two different things at one time, so
        that the order of the file decides; ``targets_with_equal_times``: share of the evaluated
        users for whom that decides which item is tested or validated; ``cold_targets``: share of
        the evaluated users whose test item is in no training part.
    """
    lengths = np.bincount(rows.users)
    ends = lengths.cumsum()
    evaluated = lengths >= 3
    tied = (
        (np.diff(rows.users) == 0) & (np.diff(rows.times) == 0) & (np.diff(rows.items) != 0)
    )  # of an interaction and the next
    last = ends[evaluated] - 1
    tied_users = np.unique(rows.users[1:][tied])
    trains = np.ones(len(rows), dtype=bool)
    trains[last] = trains[last - 1] = False
    warm = np.zeros(len(rows.item_ids), dtype=bool)
    warm[rows.items[trains]] = True
    return {
        "length": quantiles(lengths),
        "evaluated_users": int(evaluated.sum()),
        "users_with_equal_times": len(tied_users) / len(lengths),
        "targets_with_equal_times": _share(tied[last - 1] | tied[last - 2]),
        "cold_targets": _share(~warm[rows.items[last]]),
    }


class TextStatistics:
    """Coverage of attributes and tokens of items, taken from rows as they are written.

    Args:
        attributes: names of the item text's columns.
        num_items: rows to come.
    """

    def __init__(self, attributes: Sequence[str], num_items: int) -> None:
        self._attributes = list(attributes)
        self._num_items = num_items
        self._filled = [0] * len(attributes)
        self._without = 0
        drawn = np.random.default_rng(0).permutation(num_items)[:SAMPLE]
        self._sampled = np.zeros(num_items, dtype=bool)
        self._sampled[drawn] = True
        self._sample: list[Sequence[str]] = []

    def add(self, number: int, values: Sequence[str]) -> None:
        """Take the values of one item, "" where it lacks an attribute."""
        for place, value in enumerate(values):
            self._filled[place] += value != ""
        self._without += not any(values)
        if self._sampled[number]:
            self._sample.append(values)

    def summary(self) -> dict[str, Any]:
        """Share of items that have each attribute, items without text, tokens per item.

        Tokens are those of the default model: a WordPiece vocabulary of its size, trained on the
        openings of the values counted, names of attributes and ``max_attribute_tokens`` aside.
        ``values_cut``: share of the attributes' values that are longer than that.
        """
        coverage = {
            name: count / self._num_items
            for name, count in zip(self._attributes, self._filled, strict=True)
        }
        return {
            "text_coverage": coverage,
            "items_without_text": self._without,
            "tokens_per_item": self._tokens(),
        }

    def _tokens(self) -> dict[str, float] | None:
        texts = [value for values in self._sample for value in values]
        if not any(texts):
            return None
        settings = read_yaml(find_properties() / "model" / "JEPA4Rec.yaml")
        openings = (text[:_TRAINING_CHARACTERS] for text in texts)  # endless words take minutes
        tokenizer = train_wordpiece(openings, settings["vocab_size"])
        sizes = np.array([len(tokens) for tokens in encode_texts(tokenizer, texts)])
        by_item = sizes.reshape(-1, len(self._attributes)).sum(1)
        return {
            "mean": float(by_item.mean()),
            **quantiles(by_item),
            "values_cut": float(
                (sizes > settings["max_attribute_tokens"]).sum() / (sizes > 0).sum()
            ),
            "items_counted": len(by_item),
        }


def quantiles(numbers: np.ndarray) -> dict[str, float]:
    """Least, quartiles, the 95 % point and the greatest."""
    found = np.quantile(numbers, list(_QUANTILES.values()), method="inverted_cdf")
    return {name: int(value) for name, value in zip(_QUANTILES, found, strict=True)}


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0
