"""RecBole's sequential data set with item text, exact time order and no unrolled histories."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import union_categoricals
from recbole.utils import FeatureSource

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.layers import refuse_missing_folder
from recbole_jepa4rec.config.protocol import NOBODY_TESTED, refuse_other_protocol, split_names
from recbole_jepa4rec.data.atomic_files import AtomicFileError, line_number, refuse_rounded
from recbole_jepa4rec.data.fingerprint import fingerprint
from recbole_jepa4rec.data.histories import Histories, HistoryRows
from recbole_jepa4rec.data.item_files import settle_attributes, source_folders
from recbole_jepa4rec.data.item_text import read_item_text
from recbole_jepa4rec.data.list_files import UntoldError, unrolled
from recbole_jepa4rec.data.raw_dataset import RawSequentialDataset
from recbole_jepa4rec.data.split_files import checked_parts, refuse_unknown_items

ROWS_AT_ONCE = 65_536
"""Items whose texts are Python strings at the same time."""


class SequentialTextDataset(RawSequentialDataset):
    """Users' histories in time order, and the text of their items.

    Departs from RecBole's ``SequentialDataset``: time is compared at full precision with the file's
    order breaking ties, users with three interactions are validated as well, and windows of the
    history are cut when a row is fetched. Several data sets (``source_datasets``) become one with
    ids ``NAME/id``; only users, items, times and item text are taken from each. The split is
    leave-one-out, or that of the files which ``benchmark_filename`` names (see ``split_files``).

    Args:
        config: RecBole's, or ours.

    Raises:
        ValueError: if a file, a column or the split cannot be used; one line says which.

    Attributes:
        histories: all users' interactions, sorted by user and time; in what ``build`` gives of a
            split in files, those that the rows may read.
    """

    histories: Histories

    def __init__(self, config: Any) -> None:
        self._settled = settle_attributes(config) if isinstance(config, Config) else {}
        super().__init__(config)

    @cached_property
    def item_text(self) -> pd.DataFrame:
        """Attributes of every item as strings, one row for each internal item id.

        Row 0, the padding item, and items without text hold "". Columns are the
        ``item_text_fields`` in that order, by default every text column of the ``.item`` files.

        Raises:
            ValueError: if there is no item file or no such column.
        """
        sources = [
            (folder / f"{name}.item", self._prefix(name))
            for name, folder in self._source_folders().items()
        ]
        fields = self.config["item_text_fields"]
        return read_item_text(
            sources,
            self.iid_field,
            [fields] if isinstance(fields, str) else fields,
            self.field2id_token[self.iid_field][1:],
        )

    @cached_property
    def fingerprint(self) -> str:
        """What the histories hold, as 16 hexadecimal digits; see ``fingerprint.fingerprint``."""
        histories = self.histories
        return fingerprint(
            self.field2id_token[self.uid_field],
            self.field2id_token[self.iid_field],
            histories.users.numpy(),
            histories.items.numpy(),
            None if histories.part is None else histories.part.numpy(),
        )

    @cached_property
    def text_fingerprint(self) -> str:
        """What the items' texts hold, as 16 hexadecimal digits; their order is not in it.

        Raises:
            ValueError: as ``item_text``.
        """
        ids, text = self.field2id_token[self.iid_field].astype(str), self.item_text
        digest = hashlib.sha256("\t".join([self.iid_field, *text.columns]).encode())
        order = 1 + np.argsort(ids[1:])
        for first in range(0, len(order), ROWS_AT_ONCE):
            rows = order[first : first + ROWS_AT_ONCE]
            columns = [text[name].iloc[rows].to_numpy() for name in text]
            lines = map("\t".join, zip(ids[rows], *columns, strict=True))
            digest.update("".join(f"\n{x}" for x in lines).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def statistics(self) -> dict[str, float]:
        """Counts of what occurs: users, items, interactions; the average length and the density."""
        users = int((self.histories.lengths > 0).sum())
        items = len(self.histories.distinct_items)
        interactions = len(self.histories.items)
        return {
            "users": users,
            "items": items,
            "interactions": interactions,
            "average_length": interactions / users,
            "density": interactions / (users * items),
        }

    def refuse_untested(self) -> None:
        """Refuse data of which nobody can be tested; of a split in files each part has rows.

        Raises:
            ValueError: if every user is too short.
        """
        if self.histories.part is None and not bool((self.histories.lengths >= 3).any()):
            raise ValueError(f"data set {self.config['dataset']!r}: {NOBODY_TESTED}")

    def with_config(self, config: Config) -> SequentialTextDataset:
        """The same data under other settings, none of which says what is loaded."""
        config.settle(self._settled)
        other = copy.copy(self)
        other.config = config
        other.histories = other._trained_on(self.histories)
        return other

    def _trained_on(self, histories: Histories) -> Histories:
        """Histories of which ``train_fraction`` trains; RecBole's own Config lacks the key."""
        return histories.trained_on(self.config["train_fraction"] or 1.0, self.config["seed"])

    def build(self) -> list[SequentialTextDataset]:
        """Split by leaving one out, in time order, or as the files say.

        Returns:
            Data sets for training, validation and test. Leaving one out, the last interaction of
            each user with three or more is tested and the one before it validated; every earlier
            one that has a history trains. Of files, see ``HistoryRows.by_part``.

        Raises:
            ValueError: if ``eval_args`` asks for another split.
        """
        refuse_other_protocol(self.config["eval_args"])
        self._change_feat_format()
        self._drop_unused_col()
        rows: HistoryRows = self.inter_feat
        histories = self.histories
        if histories.part is None:
            found = [rows.with_targets(part, histories) for part in histories.leave_one_out()]
        else:
            found = rows.with_targets(rows.target, histories).by_part()
        parts = [self.copy(part) for part in found]
        for part in parts:
            part.histories = part.inter_feat.histories
        return parts

    def data_augmentation(self) -> None:
        """Stand in for RecBole's unrolling: rows whose windows are cut when they are fetched."""
        self._aug_presets()
        list_fields = {
            getattr(self, f"{field}_list_field"): field
            for field in self.inter_feat
            if field != self.uid_field
        }
        self.inter_feat = HistoryRows(
            self.histories,
            self.inter_feat.interaction,
            self.histories.targets,
            list_fields,
            self.item_list_length_field,
            self.max_item_list_len,
        )

    def _change_feat_format(self) -> None:
        if isinstance(self.inter_feat, HistoryRows):  # a second build() finds it done
            return
        super()._change_feat_format()
        if self.split_paths:  # RecBole takes the rows of such files to be windows already
            self.data_augmentation()

    def _benchmark_presets(self) -> None:
        """Skip RecBole's bookkeeping for windows that stand in the files of a split."""

    def _get_preset(self) -> None:
        super()._get_preset()
        self.split_paths: list[Path] = []
        self.benchmark_filename_list = None  # the parts are told apart here, not by RecBole

    def _source_folders(self) -> dict[str, Path]:
        """Folder of each data set that makes up this one."""
        return source_folders(self.config)

    def _prefix(self, name: str) -> str:
        return f"{name}/" if self.config["source_datasets"] else ""

    def _load_data(self, token: str, dataset_path: str) -> None:
        """Load RecBole's tables; of several data sets only ids and times, with prefixed ids."""
        folders = self._source_folders()
        for name, folder in folders.items():
            refuse_missing_folder(name, folder)
        if not self.config["source_datasets"]:
            super()._load_data(token, dataset_path)
            return
        tables, ids = [], (self.uid_field, self.iid_field)
        for name, folder in folders.items():
            self._load_inter_feat(name, str(folder))
            self._sort_large_times()
            for field in ids:
                column = self.inter_feat[field]
                names = self._prefix(name) + column.cat.categories
                self.inter_feat[field] = column.cat.rename_categories(names)
            tables.append(self.inter_feat)
        self.inter_feat = _joined(tables, ids)
        self.user_feat = self.item_feat = None
        self.field2source[self.uid_field] = FeatureSource.USER_ID
        self.field2source[self.iid_field] = FeatureSource.ITEM_ID

    def _sort_large_times(self) -> None:
        """Let the order of rows stand in for times that other tables' decimals would round."""
        times = self.inter_feat[self.time_field]
        if times.dtype != np.float64 and times.abs().max() > 2**53:
            table = self.inter_feat.sort_values(self.time_field, kind="stable", ignore_index=True)
            self.inter_feat = table.astype({self.time_field: np.float64})

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        """Load RecBole's table, or those of a split, one after another."""
        names = split_names(self.config["benchmark_filename"])
        if names is None:
            super()._load_inter_feat(token, dataset_path)
            self._unroll_lists([Path(dataset_path, f"{token}.inter")], [len(self.inter_feat)])
            return
        self.split_paths = [Path(dataset_path, f"{token}.{name}.inter") for name in names]
        tables: list[pd.DataFrame] = []
        longest: dict[str, int] = {}
        for path in self.split_paths:
            table: Any = self._load_feat(str(path), FeatureSource.INTERACTION)
            if tables and [*table] != [*tables[0]]:
                raise ValueError(f"{path}: expected the columns {', '.join(tables[0])}")
            tables.append(table)
            for field, length in self.field2seqlen.items():
                longest[field] = max(length, longest.get(field, 0))
        self.field2seqlen.update(longest)
        times = [table[self.time_field] for table in tables]
        if len({column.dtype for column in times}) > 1:
            for path, column in zip(self.split_paths, times, strict=True):
                refuse_rounded(path, column.astype(np.float64))
        self.inter_feat = _joined(tables, (self.uid_field, self.iid_field))
        self._unroll_lists(self.split_paths, [len(table) for table in tables])
        ids = [table[self.iid_field] for table in tables]
        if self.row_of_interaction is not None:
            trained = self.inter_feat[self.part_of_row[self.row_of_interaction] == 0]
            ids[0] = trained[self.iid_field].cat.remove_unused_categories()
        item_file = Path(dataset_path, f"{token}.item")
        refuse_unknown_items(self.split_paths, item_file, self.iid_field, ids)

    def _unroll_lists(self, paths: Sequence[Path], lengths: Sequence[int]) -> None:
        """Read the lists of RecBole's benchmark files, if there are any, as interactions.

        Args:
            paths: the files whose rows stand in the table one after another.
            lengths: how many rows each has.
        """
        part = np.repeat(np.arange(len(paths), dtype=np.int8), lengths)
        self.part_of_row, self.row_of_interaction = part, None
        if (lists := self.lists_field) not in self.inter_feat:
            return
        fields = (self.uid_field, self.iid_field, self.time_field)
        for name in self.inter_feat:
            if name not in (*fields, lists):
                raise ValueError(f"load_col.inter {name!r}: {paths[0]} has it not for {lists}")
        try:
            found = unrolled(self.inter_feat, self.inter_feat[lists], part, fields)
        except UntoldError as error:
            path, place = paths[part[error.row]], error.row - sum(lengths[: part[error.row]])
            expected = f"expected {lists} to go on from the rows of the user before"
            line = line_number(path, place)
            raise AtomicFileError(f"{path}, line {line}: {expected}") from error
        self.inter_feat, self.row_of_interaction = found
        for known in (self.field2type, self.field2source, self.field2seqlen):
            del known[lists]

    def _data_filtering(self) -> None:
        before = len(self.inter_feat)
        super()._data_filtering()
        if self.split_paths and len(self.inter_feat) != before:
            raise ValueError(
                "benchmark_filename: val_interval, user_inter_num_interval, item_inter_num_interval"
                f" and rm_dup_inter would drop {before - len(self.inter_feat)} rows of a split"
            )

    def _get_load_and_unload_col(self, source: Any) -> tuple[set[str] | None, set[str] | None]:
        if self.config["source_datasets"]:
            return set(self._needed(source)), None
        return super()._get_load_and_unload_col(source)

    def _remap_ID_all(self) -> None:  # noqa: N802
        """Map ids to numbers; then sort, before missing values are filled or times normalised."""
        super()._remap_ID_all()
        table = self.inter_feat
        times, users = table[self.time_field].to_numpy(), table[self.uid_field].to_numpy()
        low, high = (half.astype(np.uint16) for half in (users, users >> 16))
        order = np.lexsort((times, low, high))  # stable; 16-bit keys are sorted by radix
        columns = {name: table.pop(name).to_numpy()[order] for name in list(table)}
        users, items = (columns[field] for field in (self.uid_field, self.iid_field))
        times = columns[self.time_field]
        columns[self.time_field] = times.astype(np.float64, copy=False)  # their order is settled
        self.inter_feat = pd.DataFrame(columns, copy=False)
        part = None
        if self.split_paths:
            in_order = users, items, times
            rows = order if self.row_of_interaction is None else self.row_of_interaction[order]
            part = checked_parts(self.split_paths, self.part_of_row, rows, in_order)
        histories = Histories.of(
            torch.from_numpy(users),
            torch.from_numpy(items),
            self.user_num,
            None if part is None else torch.from_numpy(part),
        )
        self.histories = self._trained_on(histories)


def _joined(tables: Sequence[pd.DataFrame], ids: Sequence[str]) -> pd.DataFrame:
    """Tables one below the other, their ids still categories."""
    joined = pd.concat(tables, ignore_index=True)
    for field in ids:  # concat gives strings where the categories differ
        joined[field] = union_categoricals([table[field] for table in tables])
    return joined
