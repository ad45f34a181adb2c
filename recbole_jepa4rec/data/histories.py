"""Histories as offsets into one sorted array, cut into windows when rows are fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.config.protocol import PARTS
from recbole_jepa4rec.data.split_files import last_of_part


@dataclass(frozen=True, eq=False)
class Histories:
    """Every user's interactions in time order.

    Attributes:
        items: internal item ids, sorted by user, then time, ``[M]``.
        offsets: user ``u`` owns ``items[offsets[u] : offsets[u + 1]]``, ``[U + 1]`` for the ``U``
            internal user ids; user 0 is padding and owns nothing.
        part: where a split is given, number of the part of each interaction, ``[M]``: 0 trains, 1
            is validated, 2 tested. None where the last two of each user are.
        trains: which users' training parts are trained on, bool ``[U]``; None is all of them.
    """

    items: Tensor
    offsets: Tensor
    part: Tensor | None = None
    trains: Tensor | None = None

    @classmethod
    def of(
        cls, users: Tensor, items: Tensor, num_users: int, part: Tensor | None = None
    ) -> Histories:
        """Histories of interactions that are sorted by user already.

        Args:
            users: internal user ids, ``[M]``.
            items: internal item ids, ``[M]``.
            num_users: of all internal user ids, padding included.
            part: number of the part of each, ``[M]``, if a split is given.
        """
        lengths = torch.bincount(users, minlength=num_users)
        return cls(items, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), part)

    def where(self, kept: Tensor) -> Histories:
        """Those of the interactions that a mask names, bool ``[M]``."""
        part = None if self.part is None else self.part[kept]
        found = Histories.of(self.users[kept], self.items[kept], len(self.lengths), part)
        return replace(found, trains=self.trains)

    def trained_on(self, fraction: float, seed: int) -> Histories:
        """The same, of which a share of the users' training parts is trained on.

        Users are drawn by ``seed`` and user alone, so that of two shares the smaller one's users
        are among the larger one's. What is validated and tested stays as it is.

        Args:
            fraction: share of the users with a training part, above 0 to 1; at least one is left.
            seed: of the draw.
        """
        whole = replace(self, trains=None)
        if fraction == 1:
            return whole
        users = torch.unique(self.users[whole.in_training])
        order = torch.argsort(uniform(derive(seed, users, Draw.TRAIN_FRACTION)), stable=True)
        trains = torch.zeros(len(self.lengths), dtype=torch.bool)
        trains[users[order[: max(1, round(fraction * len(users)))]]] = True
        return replace(self, trains=trains)

    @cached_property
    def lengths(self) -> Tensor:
        """Interactions of each user, ``[U]``."""
        return self.offsets.diff()

    @cached_property
    def distinct_items(self) -> Tensor:
        """Items that occur, in ascending order, ``[I]``."""
        return torch.bincount(self.items).nonzero()[:, 0]

    @cached_property
    def users(self) -> Tensor:
        """Owner of each interaction, ``[M]``."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)

    @cached_property
    def train_end(self) -> Tensor:
        """Position after each user's training part, ``[U]``; its begin where none is trained on.

        The last two interactions validate and test; users with fewer than three only train. Of a
        given split the training rows have histories of their own, which train to the end.

        Raises:
            RuntimeError: for histories of a given split that hold more than training.
        """
        if self.part is not None:
            if self.part.any():
                raise RuntimeError("the training part of a given split need not be a prefix")
            end = self.offsets[1:]
        else:
            end = self.offsets[1:] - 2 * (self.lengths >= 3)
        return end if self.trains is None else torch.where(self.trains, end, self.offsets[:-1])

    @cached_property
    def in_training(self) -> Tensor:
        """Which interactions belong to a training part that is trained on, bool ``[M]``."""
        if self.part is None:
            return torch.arange(len(self.items)) < self.train_end[self.users]
        return (self.part == 0) & (self.trains is None or self.trains[self.users])

    @property
    def in_training_part(self) -> Tensor:
        """Which interactions belong to a training part, trained on or not, bool ``[M]``."""
        return replace(self, trains=None).in_training

    @cached_property
    def targets(self) -> Tensor:
        """Positions of all interactions that have a history, sorted by user, ``[R]``."""
        return torch.nonzero(torch.arange(len(self.items)) > self.offsets[self.users])[:, 0]

    def packed(self, targets: Tensor, max_items: int, whole: bool = False) -> PackedHistories:
        """The newest items before each target.

        Args:
            targets: positions in ``items``, ``[B]``.
            max_items: longest history; older items are cut.
            whole: whether what is cut is given too, as ``older``.
        """
        users = self.users[targets]
        begin = self.offsets[users]
        first = torch.maximum(begin, targets - max_items)
        items, lengths = self._between(first, targets)
        older, older_lengths = self._between(begin, first) if whole else (None, None)
        counted = bool(self.in_training[targets].any())
        targets = self.items[targets]
        return PackedHistories(items, lengths, users, targets, older, older_lengths, counted)

    def _between(self, first: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Items at ``first .. end - 1`` of each row, end to end, and how many these are."""
        lengths = end - first
        row = torch.arange(len(lengths)).repeat_interleave(lengths)
        place = torch.arange(len(row)) - (lengths.cumsum(0) - lengths)[row]
        return self.items[first[row] + place], lengths

    def leave_one_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """Target positions for training ``[R]``, validation and test ``[U']``, sorted by user."""
        train = self.targets[self.in_training[self.targets]]
        test = self.offsets[1:][self.lengths >= 3] - 1
        return train, test - 1, test


@dataclass(frozen=True, eq=False)
class PackedHistories:
    """Histories of a batch end to end, without padding, and the item that came after each.

    They stay on the CPU; a model sends to its device what it makes of them.

    Attributes:
        items: internal item ids, oldest first in each history, ``[M]``.
        lengths: items of each history, maybe none, ``[B]``.
        users: internal user ids, ``[B]``.
        targets: the item after each history, ``[B]``; 0 where none is known.
        older: items before those, which a window has cut off, oldest first in each history,
            ``[K]``; ``None`` unless they were asked for.
        older_lengths: how many each history has of these, ``[B]``.
        counted: whether the targets belong to the training part, which a model may have counted.
    """

    items: Tensor
    lengths: Tensor
    users: Tensor
    targets: Tensor
    older: Tensor | None = None
    older_lengths: Tensor | None = None
    counted: bool = False

    @classmethod
    def of_padded(
        cls, item_seq: Tensor, lengths: Tensor, users: Tensor, targets: Tensor
    ) -> PackedHistories:
        """Pack RecBole's windows, ``[B, L]``, which stand oldest first with padding behind."""
        inside = torch.arange(item_seq.shape[1]) < lengths[:, None]
        return cls(item_seq[inside], lengths, users, targets)

    @classmethod
    def of_lists(cls, rows: Sequence[Sequence[int]], max_items: int) -> PackedHistories:
        """Pack whole histories of nobody known; all but the newest ``max_items`` are older."""
        recent, older = [row[-max_items:] for row in rows], [row[:-max_items] for row in rows]
        nobody = torch.zeros(len(rows), dtype=torch.int64)
        parts = (
            (torch.tensor([x for row in part for x in row], dtype=torch.int64), [*map(len, part)])
            for part in (recent, older)
        )
        (items, lengths), (old, old_lengths) = ((ids, torch.tensor(n)) for ids, n in parts)
        return cls(items, lengths, nobody, nobody, old, old_lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def followed_by(self, items: Tensor, most: int) -> PackedHistories:
        """The same with one item more behind each history, none where it is 0, ``[B]``.

        Windows hold the newest ``most`` items; what they cut off goes to ``older``, if that is
        known.
        """
        is_item = items > 0
        whole, lengths = _side_by_side(self.items, self.lengths, items[is_item], is_item.long())
        inside = _to_end(lengths) <= most
        kept = lengths.clamp(max=most)
        older, older_lengths = self.older, self.older_lengths
        if older is not None and older_lengths is not None:
            cut = whole[~inside], lengths - kept
            older, older_lengths = _side_by_side(older, older_lengths, *cut)
        return replace(
            self, items=whole[inside], lengths=kept, older=older, older_lengths=older_lengths
        )

    def newest(self, most: int) -> PackedHistories:
        """The same without the older items of histories that hold more than ``most``."""
        inside = _to_end(self.lengths) <= most
        return replace(self, items=self.items[inside], lengths=self.lengths.clamp(max=most))

    def newest_first(self) -> Tensor:
        """Items newest first in each history, ``[M]``."""
        ends = self.lengths.cumsum(0)
        row = torch.arange(len(self)).repeat_interleave(self.lengths)
        first = (ends - self.lengths)[row]
        place = torch.arange(len(row))
        return self.items[first + ends[row] - 1 - place]

    def padded(self) -> Tensor:
        """Windows as wide as the longest history, oldest item first, ``[B, L]``, ``L >= 1``."""
        width = max(1, int(self.lengths.max()) if len(self) else 0)
        windows = self.items.new_zeros(len(self), width)
        inside = torch.arange(width) < self.lengths[:, None]
        return windows.masked_scatter_(inside, self.items)


def _to_end(lengths: Tensor) -> Tensor:
    """How far each place of runs of these lengths, end to end, is from its run's end: 1 at last."""
    ends = lengths.cumsum(0).repeat_interleave(lengths)
    return ends - torch.arange(len(ends))


def _side_by_side(
    first: Tensor, first_lengths: Tensor, second: Tensor, second_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs end to end, each of the second behind that of the first, and their lengths, ``[B]``."""
    rows = torch.arange(len(first_lengths))
    of_first, of_second = (rows.repeat_interleave(n) for n in (first_lengths, second_lengths))
    order = torch.argsort(torch.cat([of_first, of_second]), stable=True)
    return torch.cat([first, second])[order], first_lengths + second_lengths


class HistoryRows(Interaction):
    """Rows of one target and the window of interactions before it; cut only when fetched.

    Indexing with positions, a slice or a mask gives RecBole's ``Interaction`` with the columns and
    values that its own data set would have unrolled; indexing with a name gives the column of all
    rows. ``[R]`` stands for the rows.

    Args:
        histories: of the interactions.
        source: one tensor per field, ``[M, ...]`` in the order of ``histories``.
        target: position of each row's target, ``[R]``.
        list_fields: name of each window column and the field it is cut from.
        length_field: name of the column that counts the interactions in the window.
        max_length: longest window, in interactions.
    """

    def __init__(
        self,
        histories: Histories,
        source: Mapping[str, Tensor],
        target: Tensor,
        list_fields: Mapping[str, str],
        length_field: str,
        max_length: int,
    ) -> None:
        self.histories = histories
        self.target = target
        self.length = len(target)
        self.interaction = _Columns(self, [*source, length_field, *list_fields])
        self._source, self._list_fields = source, list_fields
        self._length_field, self._max_length = length_field, max_length

    @property
    def user_id(self) -> Tensor:
        """Internal user id of each row, ``[R]``."""
        return self.histories.users[self.target]

    @property
    def history_length(self) -> Tensor:
        """Interactions before each row's target, uncut, ``[R]``."""
        return self.target - self.histories.offsets[self.user_id]

    def with_targets(
        self,
        target: Tensor,
        histories: Histories | None = None,
        source: Mapping[str, Tensor] | None = None,
    ) -> HistoryRows:
        """The same columns for other target positions, ``[R']``, and histories if they are given.

        Without another source these have the same interactions in the same order.
        """
        rows = HistoryRows(
            histories or self.histories,
            self._source if source is None else source,
            target,
            self._list_fields,
            self._length_field,
            self._max_length,
        )
        rows.interaction.names = list(self.interaction.names)
        return rows

    def in_batches(self, size: int, whole: bool = False) -> Iterator[PackedHistories]:
        """The histories before the targets, so many rows at a time; see ``Histories.packed``."""
        for targets in self.target.split(size):
            yield self.histories.packed(targets, self._max_length, whole)

    def by_part(self) -> list[HistoryRows]:
        """Rows of each part of a given split; see ``split_files``.

        Returns:
            For training one row for every interaction of that part that has another of it before
            it; for validation and test one row a user. Each has histories of its own: nothing of a
            later part stands in them.

        Raises:
            RuntimeError: if no split is given.
        """
        part = self.histories.part
        if part is None:
            raise RuntimeError("without a given split there are no parts")
        return [self._of_part(number, part) for number in range(len(PARTS))]

    def _of_part(self, number: int, part: Tensor) -> HistoryRows:
        kept = part <= number
        histories = self.histories.where(kept)
        target = histories.targets[histories.in_training[histories.targets]]
        if number:
            last = last_of_part(histories.users.numpy(), part[kept].numpy(), number)
            target = torch.from_numpy(last)
        source = {name: values[kept] for name, values in self._source.items()}
        return self.with_targets(target, histories, source)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self.interaction[index]
        if not isinstance(index, (int, slice)):
            index = torch.as_tensor(np.asarray(index))
            index = index if index.dtype == torch.bool else index.long()
        return Interaction(self._cut(self.target[index], self.interaction.names))

    def _reindex(self, index: Any) -> None:
        """Reorder the rows, for RecBole's ``sort`` and ``shuffle``."""
        self.target = self.target[torch.as_tensor(index)]
        self.interaction.whole.clear()

    def _cut(self, target: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Values of the named columns at the targets, ``[..., ]`` or ``[..., L]``."""
        columns = {name: self._source[name][target] for name in names if name in self._source}
        if len(columns) == len(names):
            return columns
        first = self.histories.offsets[self.histories.users[target]]
        start = torch.maximum(first, target - self._max_length)
        columns_of_window = [name for name in names if name in self._list_fields]
        if self._length_field in names:
            columns[self._length_field] = target - start
        if columns_of_window:
            position = start[..., None] + torch.arange(self._max_length)
            outside = position >= target[..., None]
            position = position.masked_fill_(outside, 0)
        for name in columns_of_window:
            values = self._source[self._list_fields[name]][position]
            inner = (1,) * (values.dim() - outside.dim())
            columns[name] = values.masked_fill_(outside.reshape(outside.shape + inner), 0)
        return columns


class _Columns(Mapping[str, Tensor]):
    """What ``Interaction`` takes for its dictionary: columns of all rows, made when one is read.

    A window column that was read stays, since RecBole's FEARec reads it again for every row.
    """

    def __init__(self, rows: HistoryRows, names: list[str]) -> None:
        self.rows = rows
        self.names = names
        self.whole: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        if name not in self.whole:
            column = self.rows._cut(self.rows.target, [name])[name]
            if column.dim() == 1:
                return column
            self.whole[name] = column
        return self.whole[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __delitem__(self, name: str) -> None:
        self.names.remove(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
