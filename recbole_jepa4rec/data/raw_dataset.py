"""RecBole's sequential data set, its tables read raw and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_jepa4rec.config.settings import is_interval
from recbole_jepa4rec.data.atomic_files import (
    AtomicFileError,
    Column,
    is_number,
    read_atomic,
    read_header,
    refuse_repeated,
    refuse_rounded,
    refuse_rows,
)

_ONLY = {"field_separator": "\t", "encoding": "utf-8"}
_BY_DEFAULT = {"user_id", "item_id", "rating", "timestamp"}  # RecBole asks for them, there or not
_FILTERS = ("val_interval", "user_inter_num_interval", "item_inter_num_interval")
_ALL = (None, "[0,inf)")
_NAMING = ("val_interval", "seq_len", "discretization", "normalize_field", "numerical_features")
_NUMBERS = (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)


class RawSequentialDataset(SequentialDataset):
    """A ``SequentialDataset`` whose ids, texts and times arrive as they stand in the files.

    Departs from RecBole, whose reader loses rows, titles and the id "NA" to pandas' quoting and its
    words for «missing»: files are read raw, an empty id or time is refused, duplicates are removed
    in a stable order, and values are filled in without chained assignment, which pandas 3 ignores.
    Users and items are those of the interactions, whatever the other files describe.

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
        columns = self._columns(filepath, source, load, unload or set())
        names = [column.name for column in columns]
        whole = self.time_field if source == FeatureSource.INTERACTION else None
        frame = read_atomic(filepath, names, whole=whole)
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
            elif kind == "token" and not (present := frame[name] != "").all():
                frame[name] = frame[name].where(present)
        return frame

    def _columns(
        self, filepath: str, source: Any, load: set[str] | None, unload: set[str]
    ) -> list[Column]:
        """The columns to load; refuse files that lack one, or hold ids or times of other types."""
        needed = self._needed(source)
        if source == FeatureSource.INTERACTION:
            lists = self.lists_field
            needed += [column.name for column in read_header(filepath) if column.name == lists]
        types = {self.time_field: "float", self.lists_field: "token_seq"}
        named = (load or set()) - _BY_DEFAULT
        wanted = {name: types.get(name, "token") for name in needed}
        header = read_header(filepath, {**dict.fromkeys(sorted(named)), **wanted})
        return [
            column
            for column in header
            if column.name in needed
            or ((load is None or column.name in load) and column.name not in unload)
        ]

    def _load_data(self, token: str, dataset_path: str) -> None:
        for suffix, names in (self.config["load_col"] or {}).items():
            path = Path(dataset_path, f"{token}.{suffix}")
            if suffix == "inter" and self.config["benchmark_filename"]:
                continue  # the split's files, not this one, are read
            if suffix == "inter" and not path.is_file():
                split = [f.name for f in sorted(path.parent.glob(f"{token}.*.inter"))]
                hint = f" (benchmark_filename reads a split such as {', '.join(split)})"
                raise ValueError(f"there is no file {path}{hint if split else ''}")
            if names and names != "*" and not path.is_file():
                raise ValueError(f"load_col.{suffix} {names!r}: there is no file {path}")
        loads = self.config["load_col"]
        for suffix, names in (self.config["unload_col"] or {}).items():
            if loads is not None and "*" not in (loads.get(suffix) or ()):
                raise ValueError(
                    f"unload_col.{suffix} {names!r} has no effect: load_col names what is loaded "
                    "(load_col=null loads everything)"
                )
        super()._load_data(token, dataset_path)

    @property
    def lists_field(self) -> str:
        """The column of lists in files as RecBole writes them for benchmarks."""
        return f"{self.iid_field}{self.config['LIST_SUFFIX']}"

    def _set_alias(self, alias_name: str, default_value: list[str]) -> None:
        """Refuse columns that are not loaded; the lists, which are read as items, need no alias."""
        super()._set_alias(alias_name, default_value)
        names = [str(name) for name in self.alias[alias_name] if name != self.lists_field]
        for name in names:
            if name not in self.field2type:
                raise ValueError(f"alias_of_{alias_name} {name!r}: no such column is loaded")
        self.alias[alias_name] = np.array(names)

    def _needed(self, source: Any) -> list[str]:
        """Columns that are loaded from a file whatever ``load_col`` says."""
        return {
            FeatureSource.INTERACTION: [self.uid_field, self.iid_field, self.time_field],
            FeatureSource.USER: [self.uid_field],
            FeatureSource.ITEM: [self.iid_field],
        }.get(source, [])

    def _check_keys(self, filepath: str, source: Any, frame: pd.DataFrame) -> None:
        """Refuse rows without id or time, and user or item files that repeat an id."""
        is_timed = source == FeatureSource.INTERACTION
        ids = self._needed(source)[: 2 if is_timed else 1]
        if ids and frame.empty:
            raise AtomicFileError(f"{filepath}: no row below the header")
        for field in ids:
            refuse_rows(filepath, frame[field] == "", f"a {field}, found none")
        if is_timed:
            times = frame[self.time_field]
            refuse_rows(filepath, ~np.isfinite(times), f"a finite {times.name}")
            refuse_rounded(filepath, times)
        elif ids:
            refuse_repeated(filepath, frame[ids[0]])

    def _data_filtering(self) -> None:
        """Filter as RecBole does, but describe all users and items that occur, and only those."""
        self._refuse_columns()
        self._describe_occurring()
        super()._data_filtering()
        self._describe_occurring()

    def _refuse_columns(self) -> None:
        """Refuse settings that name columns which are not loaded, or intervals that are none."""
        for key in _NAMING:
            for name in self.config[key] or ():
                if name not in self.field2type:
                    raise ValueError(f"{key} {name!r}: no such column is loaded")
        for name, value in (self.config["val_interval"] or {}).items():
            if self.field2type[name] in _NUMBERS:
                fits, must = isinstance(value, str) and is_interval(value), "an interval [A,B]"
            else:
                fits, must = isinstance(value, list), "a list of values"
            if not fits:
                raise ValueError(f"val_interval.{name} {value!r} must be {must}")

    def _describe_occurring(self) -> None:
        """Fit the user and item tables to the interactions; ids without a row get an empty one."""
        for name, field in (("user_feat", self.uid_field), ("item_feat", self.iid_field)):
            if (table := getattr(self, name)) is None:
                continue
            occurring = pd.Series(self.inter_feat[field].unique(), dtype=object, name=field)
            described = table.loc[table[field].isin(occurring), field].astype(object)
            ids = pd.concat([described, occurring[~occurring.isin(described)]])
            table = ids.to_frame().merge(table, "left", on=field)[list(table)]
            for column in table:
                if self.field2type[column] in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ):
                    is_words = self.field2type[column] == FeatureType.TOKEN_SEQ
                    table[column] = _fill_sequences(table[column], object if is_words else float)
            setattr(self, name, table)

    def _reset_index(self) -> None:
        if self.inter_feat.empty:
            filters = {key: self.config[key] for key in _FILTERS if self.config[key] not in _ALL}
            given = ", ".join(f"{key} {value!r}" for key, value in filters.items())
            raise ValueError(f"no interaction is left after {given}")
        super()._reset_index()

    def _remove_duplication(self) -> None:
        """Do as RecBole's method does, but stably: the file's order decides between equal times."""
        if (keep := self.config["rm_dup_inter"]) is not None:
            in_time = self.inter_feat.sort_values(self.time_field, kind="stable")
            kept = in_time.drop_duplicates([self.uid_field, self.iid_field], keep=keep)
            self.inter_feat = kept.sort_index()

    def _filter_by_inter_num(self) -> None:
        """Skip RecBole's count of every id in Python where its default interval keeps them all."""
        if any(self.config[key] not in _ALL for key in _FILTERS[1:]):
            super()._filter_by_inter_num()

    def _concat_remaped_tokens(self, remap_list: list) -> tuple[Any, np.ndarray]:
        """Join columns of ids as categories, of which RecBole then maps each once, not each row."""
        if any(kind != FeatureType.TOKEN for _, _, kind in remap_list):
            return super()._concat_remaped_tokens(remap_list)
        columns = [feat[field].astype("category") for feat, field, _ in remap_list]
        return union_categoricals(columns), np.cumsum([len(column) for column in columns])[:-1]

    def _fill_nan(self) -> None:
        for name in self.feat_name_list:
            table = getattr(self, name)
            for field in table:
                kind, column = self.field2type[field], table[field]
                if not column.isna().any():
                    continue
                if kind == FeatureType.TOKEN:
                    table[field] = column.fillna(0).astype(np.int64)
                elif kind == FeatureType.FLOAT:
                    table[field] = column.fillna(column.mean())
                else:
                    is_ids = kind == FeatureType.TOKEN_SEQ
                    table[field] = _fill_sequences(column, np.int64 if is_ids else np.float64)


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


def _fill_sequences(column: pd.Series, dtype: type) -> list[np.ndarray]:
    """Cells of a sequence column, with an empty sequence where nothing stands."""
    empty: np.ndarray = np.array([], dtype=dtype)
    return [cell if isinstance(cell, np.ndarray) else empty for cell in column]
