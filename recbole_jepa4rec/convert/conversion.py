"""From a source to a data set's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_jepa4rec.convert import statistics
from recbole_jepa4rec.convert.filters import apply
from recbole_jepa4rec.convert.folder import check_target, whole_folder, writing
from recbole_jepa4rec.convert.interactions import Interactions
from recbole_jepa4rec.convert.settings import Rule, Split
from recbole_jepa4rec.convert.source import Source
from recbole_jepa4rec.convert.split import split_rows
from recbole_jepa4rec.convert.writer import write_interactions, write_items
from recbole_jepa4rec.data.fingerprint import fingerprint
from recbole_jepa4rec.data.published import beside_published


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
        target: the folder; its name is that of the data set. It appears whole or not at all.
        force: whether it may replace a data set of that name.
        about: written first into ``NAME.stats.json``.
        split: to be written, if any.

    Returns:
        What ``NAME.stats.json`` holds.

    Raises:
        ValueError: for input that cannot be used; names file, line and what was expected.
        OSError: if a file cannot be written.
    """
    target = check_target(target, force)
    if rule.without_text != "keep" and not source.attributes:
        raise ValueError("the rule drops items without text: expected a file with item text")
    next(iter(source.texts()), None)  # a file in the wrong place ends the run at once
    rows = Interactions.read(source.interactions())
    has_text = _has_text(source, rows) if rule.without_text != "keep" else None
    kept, steps = apply(rule, rows, has_text)
    del rows
    kept = kept.in_order().renumbered()
    keys = kept.item_ids
    ids = source.item_ids(keys, np.bincount(kept.items, minlength=len(keys)))
    kept = Interactions(kept.user_ids, ids, kept.users, kept.items, kept.times)
    parts = split_rows(split, rule.seed, kept) if split else None
    with whole_folder(target, force) as folder:
        write_interactions(folder / f"{target.name}.inter", kept, ids)
        for name, part in parts.files().items() if parts else ():
            write_interactions(folder / f"{target.name}.{name}.inter", part, ids)
        text = {}
        if source.attributes:
            of_text = statistics.TextStatistics(source.attributes, len(ids))
            path = folder / f"{target.name}.item"
            for number, values in write_items(path, source.attributes, source.texts(), keys, ids):
                of_text.add(number, values)
            text = of_text.summary()
        counts = statistics.counts(kept)
        content = {
            "name": target.name,
            **(about or {}),
            "bad_lines": len(source.bad),
            "fingerprint": fingerprint(
                np.array(kept.user_ids, object), np.array(ids, object), kept.users, kept.items
            ),
            "statistics": counts,
            **statistics.order_and_targets(kept),
            **text,
            "split": parts.summary() if parts else None,
            "steps": steps,
            "published": beside_published(target.name, counts),
        }
        with writing(folder / f"{target.name}.stats.json") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
    return content


def _has_text(source: Source, rows: Interactions) -> np.ndarray:
    """Whether each item number has text, bool ``[I]``."""
    number_of = {key: number for number, key in enumerate(rows.item_ids)}
    has_text = np.zeros(len(number_of), dtype=bool)
    for key, values in source.texts():
        if any(values) and (number := number_of.get(key)) is not None:
            has_text[number] = True
    return has_text
