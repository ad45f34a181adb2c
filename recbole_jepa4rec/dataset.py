"""RecBole's sequential data set with item text, exact time order and no unrolled histories."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import union_categoricals
from recbole.utils import FeatureSource

from recbole_jepa4rec.histories import Histories, HistoryRows
from recbole_jepa4rec.item_files import source_folders
from recbole_jepa4rec.item_text import read_item_text
from recbole_jepa4rec.raw_dataset import RawSequentialDataset
from recbole_jepa4rec.registry import did_you_mean
from recbole_jepa4rec.settings import PROTOCOL


class SequentialTextDataset(RawSequentialDataset):
    """Users' histories in time order, and the text of their items.

    Departs from RecBole's ``SequentialDataset``: time is compared at full precision with the file's
    order breaking ties, users with three interactions are validated as well, and windows of the
    history are cut when a row is fetched. Several data sets (``source_datasets``) become one with
    ids ``NAME/id``; only users, items, times and item text are taken from each.

    Args:
        config: RecBole's, or ours.

    Raises:
        ValueError: if a file, a column or the split cannot be used; one line says which.

    Attributes:
        histories: all users' interactions, sorted by user and time.
    """

    histories: Histories

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
        """What the histories hold, as 16 hexadecimal digits.

        It depends on the raw ids of users and items and on the order inside each history, not on
        the order of the users in the file.
        """
        histories = self.histories
        item_order = _sorted_by_token(
            histories.distinct_items.numpy(), self.field2id_token[self.iid_field]
        )
        user_order = _sorted_by_token(
            torch.nonzero(histories.lengths)[:, 0].numpy(), self.field2id_token[self.uid_field]
        )
        rank_of_item = np.zeros(self.item_num, dtype="<i8")
        rank_of_item[item_order] = np.arange(len(item_order))
        lengths = histories.lengths.numpy()[user_order].astype("<i8")
        moved = histories.offsets.numpy()[user_order] - (lengths.cumsum() - lengths)
        by_user = np.repeat(moved, lengths) + np.arange(len(histories.items))

        digest = hashlib.sha256()
        for field, order in ((self.uid_field, user_order), (self.iid_field, item_order)):
            digest.update("\n".join(self.field2id_token[field][order]).encode() + b"\n\n")
        digest.update(lengths.tobytes())
        digest.update(rank_of_item[histories.items.numpy()[by_user]].tobytes())
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

    def build(self) -> list[SequentialTextDataset]:
        """Split by leaving one out, in time order.

        Returns:
            Data sets for training, validation and test: of each user with three interactions or
            more the last is tested and the one before it validated; every earlier interaction that
            has a history trains.

        Raises:
            ValueError: if ``eval_args`` asks for another split.
        """
        self._check_protocol()
        self._change_feat_format()
        self._drop_unused_col()
        rows: HistoryRows = self.inter_feat
        return [self.copy(rows.with_targets(part)) for part in self.histories.leave_one_out()]

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

    def _check_protocol(self) -> None:
        for key, allowed in PROTOCOL.items():
            if (given := self.config["eval_args"][key]) != allowed:
                raise ValueError(f"eval_args.{key} {given!r} is not supported (allowed: {allowed})")

    def _change_feat_format(self) -> None:
        if not isinstance(self.inter_feat, HistoryRows):  # a second build() finds it done
            super()._change_feat_format()

    def _source_folders(self) -> dict[str, Path]:
        """Folder of each data set that makes up this one."""
        return source_folders(self.config)

    def _prefix(self, name: str) -> str:
        return f"{name}/" if self.config["source_datasets"] else ""

    def _load_data(self, token: str, dataset_path: str) -> None:
        """Load RecBole's tables; of several data sets only ids and times, with prefixed ids."""
        folders = self._source_folders()
        for name, folder in folders.items():
            _check_folder(name, folder)
        if not self.config["source_datasets"]:
            super()._load_data(token, dataset_path)
            return
        tables, ids = [], (self.uid_field, self.iid_field)
        for name, folder in folders.items():
            self._load_inter_feat(name, str(folder))
            for field in ids:
                column = self.inter_feat[field]
                names = self._prefix(name) + column.cat.categories
                self.inter_feat[field] = column.cat.rename_categories(names)
            tables.append(self.inter_feat)
        self.inter_feat = pd.concat(tables, ignore_index=True)
        for field in ids:  # concat gives strings where the categories differ
            self.inter_feat[field] = union_categoricals([table[field] for table in tables])
        self.user_feat = self.item_feat = None
        self.field2source[self.uid_field] = FeatureSource.USER_ID
        self.field2source[self.iid_field] = FeatureSource.ITEM_ID

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
        self.inter_feat = pd.DataFrame(columns, copy=False)
        self.histories = Histories.of(
            torch.from_numpy(columns[self.uid_field]),
            torch.from_numpy(columns[self.iid_field]),
            self.user_num,
        )


def _check_folder(name: str, folder: Path) -> None:
    if folder.is_dir():
        return
    others = [path.name for path in folder.parent.glob("*") if path.is_dir()]
    hint = did_you_mean(name, [*others, "ml-100k"])
    raise ValueError(f"no data set {name!r} in {folder.parent}{hint}")


def _sorted_by_token(ids: np.ndarray, id2token: np.ndarray) -> np.ndarray:
    return ids[np.argsort(id2token[ids], kind="stable")]
