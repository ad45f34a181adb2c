"""RecBole's sequential data set, its tables read raw and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_jepa4rec.atomic_files import (
    AtomicFileError,
    is_number,
    read_atomic,
    read_header,
    refuse_repeated,
    refuse_rows,
)

_ONLY = {"field_separator": "\t", "encoding": "utf-8", "benchmark_filename": None}


class RawSequentialDataset(SequentialDataset):
    """A ``SequentialDataset`` whose ids, texts and times arrive as they stand in the files.

    Departs from RecBole, whose reader loses rows, titles and the id "NA" to pandas' quoting and its
    words for «missing»: files are read raw, an empty id or time is refused, duplicates are removed
    in a stable order, and values are filled in without chained assignment, which pandas 3 ignores.

    Args:
        config: RecBole's, or ours.

    Raises:
        ValueError: naming file, line and what was expected.
    """

    inter_feat: Any  # a table until build(), rows after it

    def __init__(self, config: Any) -> None:
        for key, only in _ONLY.items():
            if config[key] not in (None, only):
                raise ValueError(f"{key} {config[key]!r} is not supported (allowed: {only!r})")
        super().__init__(config)

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        """Do as RecBole's method does, bookkeeping included, with the raw reader."""
        load, unload = self._get_load_and_unload_col(source)
        if load == set():
            return None
        columns = [
            column
            for column in read_header(filepath)
            if (load is None or column.name in load) and column.name not in (unload or ())
        ]
        if not columns:
            self.logger.warning(f"none of the columns {load} is in {filepath}")
            return None
        frame = read_atomic(filepath, [column.name for column in columns])
        self._check_keys(filepath, source, frame)
        for name, kind in columns:
            if source != "link":
                self.field2source[name], self.field2type[name] = source, FeatureType(kind)
                self.field2seqlen[name] = 1
                if kind.startswith("float"):
                    self.field2bucketnum[name] = 2
            if kind.endswith("_seq"):
                limit = (self.config["seq_len"] or {}).get(name)
                frame[name] = _split_sequences(
                    filepath, frame[name], kind, self.config["seq_separator"], limit
                )
                self.field2seqlen[name] = max(map(len, frame[name]))
            elif kind == "token" and not (present := frame[name].astype(bool)).all():
                frame[name] = frame[name].where(present)
        return frame

    def _check_keys(self, filepath: str, source: Any, frame: pd.DataFrame) -> None:
        """Refuse a table without its ids or times, and user or item files that repeat an id."""
        ids = {
            FeatureSource.INTERACTION: [self.uid_field, self.iid_field],
            FeatureSource.USER: [self.uid_field],
            FeatureSource.ITEM: [self.iid_field],
        }.get(source, [])
        is_timed = source == FeatureSource.INTERACTION
        for field in [*ids, self.time_field] if is_timed else ids:
            if field not in frame:
                there = ", ".join(column.name for column in read_header(filepath))
                raise AtomicFileError(f"{filepath}: no column {field!r} (there are: {there})")
        if ids and frame.empty:
            raise AtomicFileError(f"{filepath}: no row below the header")
        for field in ids:
            refuse_rows(filepath, ~frame[field].astype(bool), f"a {field}, found none")
        if is_timed:
            times = frame[self.time_field]
            if times.dtype != np.float64:
                raise AtomicFileError(f"{filepath}: column {times.name!r} must be of type float")
            refuse_rows(filepath, ~np.isfinite(times), f"a finite {times.name}")
        elif ids:
            refuse_repeated(filepath, frame[ids[0]])

    def _remove_duplication(self) -> None:
        """Do as RecBole's method does, but stably: the file's order decides between equal times."""
        if (keep := self.config["rm_dup_inter"]) is not None:
            in_time = self.inter_feat.sort_values(self.time_field, kind="stable")
            kept = in_time.drop_duplicates([self.uid_field, self.iid_field], keep=keep)
            self.inter_feat = kept.sort_index()

    def _filter_by_inter_num(self) -> None:
        """Skip RecBole's count of every id in Python where its default interval keeps them all."""
        keys = ("user_inter_num_interval", "item_inter_num_interval")
        if any(self.config[key] not in (None, "[0,inf)") for key in keys):
            super()._filter_by_inter_num()

    def _fill_nan(self) -> None:
        for name in self.feat_name_list:
            table = getattr(self, name)
            for field in table:
                kind, column = self.field2type[field], table[field]
                if kind == FeatureType.TOKEN:
                    table[field] = column.fillna(0).astype(np.int64)
                elif kind == FeatureType.FLOAT:
                    table[field] = column.fillna(column.mean())
                else:
                    dtype = np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64
                    empty = np.array([], dtype=dtype)
                    table[field] = [row if isinstance(row, np.ndarray) else empty for row in column]


def _split_sequences(
    filepath: str, cells: pd.Series, kind: str, separator: str, limit: int | None
) -> list[np.ndarray]:
    """Words or numbers of each cell of a sequence column, at most ``limit``."""
    words = [[word for word in cell.split(separator) if word][:limit] for cell in cells]
    if kind == "token_seq":
        return [np.array(row, dtype=object) for row in words]
    try:
        return [np.array(row, dtype=np.float64) for row in words]
    except ValueError:
        faulty = pd.Series([not all(map(is_number, row)) for row in words])
        refuse_rows(filepath, faulty, f"numbers in {cells.name!r}")
        raise
