"""Steps of one causal pass a user, for RecBole's loop: every target once an epoch, none unrolled.

RecBole unrolls a history of n items into n - 1 rows, one for each prefix. A causal model has said
all of that when it has read the longest: its output at the k-th item is what it says of the first
k. So a step reads windows, in which the prefixes of a user lie one in another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_jepa4rec.data.histories import Histories, HistoryRows
from recbole_jepa4rec.model.recbole_models import PrefixBatch, PrefixGroup, of_like_length


class PrefixBatches:
    """RecBole's loader, but that a batch's targets follow windows instead of rows.

    A batch has as many targets as RecBole's, and negatives are drawn for each as RecBole draws
    them. In an epoch each target comes once; those of a user that share a window stand together,
    so that a window is cut in two where a batch is full.

    Args:
        loader: RecBole's, of training rows; its other attributes shine through.
        device: of the model.
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._rows: HistoryRows = loader._dataset.inter_feat
        self._max_items: int = loader._dataset.max_item_list_len

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._loader.step)

    def __iter__(self) -> Iterator[PrefixBatch]:
        generator = self._loader.generator if self._loader.shuffle else None
        histories = self._rows.histories
        order = window_order(histories, self._rows.target, self._max_items, generator)
        for targets in order.split(self._loader.step):
            groups = windows(histories, targets, self._max_items, self._device)
            yield PrefixBatch([self._group(*group) for group in groups])

    def _group(
        self, items: Tensor, lengths: Tensor, places: Tensor, targets: Tensor
    ) -> PrefixGroup:
        """Windows with the targets' users, items and negatives, by RecBole's names."""
        loader, histories = self._loader, self._rows.histories
        named = {
            loader.uid_field: histories.users[targets],
            loader.iid_field: histories.items[targets],
        }
        drawn = loader._neg_sampling(Interaction(named)).interaction
        columns = {
            loader._dataset.item_id_list_field: items,
            loader._dataset.item_list_length_field: lengths,
            **drawn,
        }
        times = len(drawn[loader.iid_field]) // len(places)
        return PrefixGroup(columns, places.repeat(times))


def window_order(
    histories: Histories, targets: Tensor, max_items: int, generator: torch.Generator | None
) -> Tensor:
    """The targets of an epoch, those that share a window together, windows in random order.

    Args:
        histories: of all users.
        targets: positions in ``histories.items``, ``[R]``.
        max_items: of a window.
        generator: draws the order; ``None`` leaves the windows as they come.
    """
    targets = targets.sort().values
    if generator is None:
        return targets
    _, window = torch.unique_consecutive(
        _window_starts(histories, targets, max_items), return_inverse=True
    )
    place = torch.randperm(int(window[-1]) + 1, generator=generator)
    return targets[place[window].argsort(stable=True)]


def windows(
    histories: Histories, targets: Tensor, max_items: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Windows of the items before the targets, in groups of about the same length.

    Args:
        histories: of all users.
        targets: positions in ``histories.items``, in an order of ``window_order``, ``[T]``.
        max_items: of a window.
        device: of the model that reads them.

    Yields:
        For a group of ``B`` windows of at most ``L`` items: these, oldest first, padding behind,
        ``[B, L]``; how many each has, ``[B]``; for each target of the group the place of the item
        before it among all ``B * L``, and its position in ``histories.items``, ``[T']``.
    """
    starts = _window_starts(histories, targets, max_items)
    first, window, counts = torch.unique_consecutive(
        starts, return_inverse=True, return_counts=True
    )
    before = targets - starts  # items of the window that a target follows
    lengths = before[counts.cumsum(0) - 1]
    for rows in of_like_length(lengths, device):
        place = torch.arange(int(lengths[rows[-1]]))
        inside = place < lengths[rows][:, None]
        position = (first[rows][:, None] + place).masked_fill(~inside, 0)
        row = torch.full_like(first, -1)
        row[rows] = torch.arange(len(rows))
        row = row[window]
        here = row >= 0
        yield (
            histories.items[position] * inside,
            lengths[rows],
            row[here] * len(place) + before[here] - 1,
            targets[here],
        )


def _window_starts(histories: Histories, targets: Tensor, max_items: int) -> Tensor:
    """Where each target's window begins: with its user, or so that the newest items fit, ``[T]``.

    The prefixes of a user that fit share a window; a longer one has its own.
    """
    return torch.maximum(histories.offsets[histories.users[targets]], targets - max_items)
