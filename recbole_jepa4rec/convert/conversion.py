"""From a source to a data set's folder, which takes its name once everything in it is on disk."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd

from recbole_jepa4rec.base.files import CAN_HOLD, atomic_write, hold, stranger, sync
from recbole_jepa4rec.convert import statistics
from recbole_jepa4rec.convert.filters import apply, codes, in_order, read_interactions
from recbole_jepa4rec.convert.settings import Rule, Split
from recbole_jepa4rec.convert.source import Source
from recbole_jepa4rec.convert.split import (
    NAMES,
    fingerprint_of,
    split_files,
    split_rows,
    split_summary,
)
from recbole_jepa4rec.convert.tables import MAX_LINE_BYTES
from recbole_jepa4rec.data.published import beside_published

_UNFIT = set(",+:\t\n\r\0\"'")
_EXACT = 2**53  # up to which a float64 holds every whole number
_HEADER = ("user_id:token", "item_id:token", "timestamp:float")


def convert(
    source: Source,
    rule: Rule,
    target: Path,
    force: bool = False,
    about: Mapping[str, Any] | None = None,
    split: Split | None = None,
) -> dict[str, Any]:
    """Read a source, filter it, and write ``NAME.inter``, ``NAME.item`` and ``NAME.stats.json``.

    Of a split, ``NAME.train.inter``, ``NAME.valid.inter`` and ``NAME.test.inter`` as well.

    Args:
        source: of the interactions and the item text.
        rule: which interactions stay.
        target: what ``check_target`` gave; the data set's name is its. It appears whole or not at
            all.
        force: whether it may replace a data set of that name.
        about: written first into ``NAME.stats.json``.
        split: to be written, if any.

    Returns:
        What ``NAME.stats.json`` holds.

    Raises:
        ValueError: for input that cannot be used; names file, line and what was expected.
        OSError: if a file cannot be written.
    """
    if rule.without_text != "keep" and not source.attributes:
        raise ValueError("the rule drops items without text: expected a file with item text")
    next(iter(source.texts()), None)  # a file in the wrong place ends the run at once
    rows = read_interactions(source.interactions())
    if rows["time"].dtype == float and rows["time"].abs().max() > _EXACT:
        raise ValueError("expected whole numbers alone as times where one is beyond 2^53")
    with_text: set[str] = set()
    if rule.without_text != "keep":
        bought = {*rows["item"].cat.categories}
        with_text = {key for key, values in source.texts() if any(values) and key in bought}
    kept, steps = apply(rule, rows, with_text)
    del rows, with_text
    kept = in_order(kept)
    keys = list(kept["item"].cat.categories)
    ids = source.item_ids(keys, np.bincount(codes(kept["item"])))
    kept["item"] = kept["item"].cat.rename_categories(ids)
    parts = None if split is None else split_rows(split, rule.seed, kept)
    name = target.name
    with whole_folder(target, force) as folder:
        _write_interactions(folder / f"{name}.inter", kept)
        for part, its_rows in {} if parts is None else split_files(parts).items():
            _write_interactions(folder / f"{name}.{part}.inter", its_rows)
        text = {}
        if source.attributes:
            written = _write_items(folder / f"{name}.item", source, keys, ids)
            text = statistics.text_statistics(source.attributes, len(ids), written)
        numbers = statistics.counts(kept)
        content = {
            "name": name,
            **(about or {}),
            "bad_lines": len(source.bad),
            "fingerprint": fingerprint_of(kept),
            "statistics": numbers,
            **statistics.order_and_targets(kept),
            **text,
            "split": split and split_summary(split, rule.seed, parts, kept),
            "steps": steps,
            "published": beside_published(name, numbers),
        }
        with atomic_write(folder / f"{name}.stats.json") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    return content


def _write_interactions(path: Path, rows: pd.DataFrame) -> None:
    """Write ``user_id``, ``item_id`` and ``timestamp`` of each; times in all their digits."""
    times = rows["time"].tolist()
    if rows["time"].dtype == float:
        times = [int(time) if time.is_integer() else time for time in times]
    columns = rows["user"], rows["item"], pd.Series(times, rows.index, dtype=object)
    table = pd.DataFrame(dict(zip(_HEADER, columns, strict=True)))
    with atomic_write(path) as file:
        table.to_csv(
            file, mode="wb", sep="\t", index=False, quoting=csv.QUOTE_NONE, lineterminator="\n"
        )


def _write_items(
    path: Path, source: Source, keys: Sequence[str], ids: Sequence[str]
) -> Iterator[tuple[int, Sequence[str]]]:
    """Write one row for each item: the first text of its key, or empty fields.

    Args:
        path: the file.
        source: of the texts, those of items that are not written as well.
        keys: of the items to write.
        ids: of the items to write.

    Yields:
        The number of each item and its values, as it is written.

    Raises:
        ValueError: if a row is longer than can be read again.
    """
    number_of = {key: number for number, key in enumerate(keys)}

    def row(number: int, values: Sequence[str]) -> bytes:
        line = "\t".join([ids[number], *values]).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES - 1:
            raise ValueError(f"item {ids[number]!r}: expected less text than 16 MiB")
        return line

    with atomic_write(path) as file:
        header = ["item_id:token", *(f"{name}:token_seq" for name in source.attributes)]
        file.write("\t".join(header).encode() + b"\n")
        for key, values in source.texts():
            if key in number_of and any(values):
                number = number_of.pop(key)
                file.write(row(number, values))
                yield number, values
        empty = [""] * len(source.attributes)
        for number in number_of.values():
            file.write(row(number, empty))
            yield number, empty


def check_target(target: Path, force: bool) -> Path:
    """Refuse a place that cannot become the folder, once what killed processes left is mended.

    Args:
        target: the folder to be.
        force: whether an existing data set of that name may be replaced.

    Returns:
        The absolute path.

    Raises:
        ValueError: if there is something already, or the name cannot be one of a data set.
    """
    path = Path(os.path.abspath(target))
    if not path.name or _UNFIT & set(path.name) or path.name.startswith("."):
        raise ValueError(f"--out {target}: expected a folder whose name can name a data set")
    _mend(path)
    if not os.path.lexists(path):
        return path
    if not force:
        raise ValueError(f"--out {target}: it is there already (--force replaces it)")
    if not path.is_dir() or path.is_symlink():
        raise ValueError(f"--out {target}: expected a folder")
    ends = ("inter", "item", "stats.json", *(f"{part}.inter" for part in NAMES))
    written = dict.fromkeys(f"{escape(path.name)}.{end}" for end in ends)
    if other := stranger(path, written):
        raise ValueError(f"--out {target}: it holds {other.name!r}, which --force would delete")
    return path


@contextmanager
def whole_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Give a folder to write into, which takes the name of the target when the block ends well.

    Files of the block must be on the disk by then. At any moment a process may be killed and the
    target is as it was or as it is to be; see ``_mend`` for systems that cannot do that.

    Args:
        target: the folder to be; see ``check_target``.
        force: whether a folder that stands there is replaced.

    Yields:
        The temporary folder, a sibling of the target.

    Raises:
        ValueError: if something has come to stand at the target that may not be replaced.
        OSError: if it cannot be made or renamed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid4().hex}")
    temporary.mkdir()
    with _held(temporary):  # until this process is gone, however it goes
        try:
            yield temporary
            check_target(target, force)
            if not target.exists():
                temporary.rename(target)
            elif not _exchanged(temporary, target):
                target.rename(_aside(temporary))
                temporary.rename(target)
            sync(target.parent)
        finally:
            _settle(temporary, target)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change names at one moment, where the system can (Linux)."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _aside(temporary: Path) -> Path:
    """Where the data set to be replaced stands between two renames."""
    return temporary.with_name(f"{temporary.name}.old")


def _settle(temporary: Path, target: Path) -> None:
    """Delete what is left beside the target; a data set set aside takes its name if nothing has."""
    if _aside(temporary).is_dir() and not os.path.lexists(target):
        _aside(temporary).rename(target)
    for left in (temporary, _aside(temporary)):
        shutil.rmtree(left, ignore_errors=True)


def _mend(target: Path) -> None:
    """Settle what processes have left that live no more."""
    beside = f".{target.name}."
    for path in target.parent.glob(f"{escape(beside)}*"):
        if re.fullmatch("[0-9a-f]{32}(.old)?", path.name.removeprefix(beside)):
            temporary = path.with_name(path.name.removesuffix(".old"))
            if not temporary.is_dir():
                _settle(temporary, target)
                continue
            with _held(temporary) as is_abandoned:
                if is_abandoned:
                    _settle(temporary, target)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder alone during the block; say whether nobody else is known to hold it."""
    if not CAN_HOLD:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield hold(descriptor)
    finally:
        os.close(descriptor)
