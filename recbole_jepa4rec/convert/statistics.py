"""What a data set is like: counts, lengths, ties in time, cold targets, text; told as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.convert import filters
from recbole_jepa4rec.text.tokenizer import encode_texts, train_wordpiece

SAMPLE = 10_000
"""Items of which tokens are counted."""

_TRAINING_CHARACTERS = 1000

_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def counts(rows: pd.DataFrame) -> dict[str, float]:
    """The same as ``SequentialTextDataset.statistics``."""
    numbers = filters.counts(rows)
    users, items, interactions = numbers.values()
    return {
        **numbers,
        "average_length": interactions / users,
        "density": interactions / (users * items),
    }


def order_and_targets(rows: pd.DataFrame) -> dict[str, Any]:
    """Lengths, and what leaving the last two out will meet.

    Args:
        rows: as ``filters.in_order`` gives them.

    Returns:
        ``length`` quantiles; ``evaluated_users``: those with three interactions or more;
        ``users_with_equal_times``: share of all users who did two different things at one time, so
        that the order of the file decides; ``targets_with_equal_times``: share of the evaluated
        users for whom that decides which item is tested or validated; ``cold_targets``: share of
        the evaluated users whose test item is in no training part.
    """
    users, items = filters.codes(rows["user"]), filters.codes(rows["item"])
    lengths = np.bincount(users)
    evaluated = lengths >= 3
    last = (lengths.cumsum() - 1)[evaluated]
    same_time = rows["time"].to_numpy()[1:] == rows["time"].to_numpy()[:-1]
    tied = (users[1:] == users[:-1]) & same_time & (items[1:] != items[:-1])  # and the next
    trains = np.ones(len(rows), dtype=bool)
    trains[last] = trains[last - 1] = False
    is_cold = ~np.isin(items[last], items[trains])
    return {
        "length": _quantiles(lengths),
        "evaluated_users": int(evaluated.sum()),
        "users_with_equal_times": len(np.unique(users[1:][tied])) / len(lengths),
        "targets_with_equal_times": _share(tied[last - 1] | tied[last - 2]),
        "cold_targets": _share(is_cold),
    }


def text_statistics(
    attributes: Sequence[str], num_items: int, rows: Iterable[tuple[int, Sequence[str]]]
) -> dict[str, Any]:
    """Share of items that have each attribute, items without text, tokens per item.

    Args:
        attributes: names of the item text's columns.
        num_items: how many rows come.
        rows: number of each item and its values, "" where it lacks an attribute.
    """
    sampled = np.zeros(num_items, dtype=bool)
    sampled[np.random.default_rng(0).permutation(num_items)[:SAMPLE]] = True
    filled, without, sample = np.zeros(len(attributes), dtype=int), 0, []
    for number, values in rows:
        filled += [value != "" for value in values]
        without += not any(values)
        if sampled[number]:
            sample.append(values)
    return {
        "text_coverage": dict(zip(attributes, (filled / num_items).tolist(), strict=True)),
        "items_without_text": without,
        "tokens_per_item": _tokens(sample),
    }


def _tokens(sample: Sequence[Sequence[str]]) -> dict[str, float] | None:
    """Tokens of items in the default model, the attributes' names and its limits aside.

    Its vocabulary is trained on the openings of the values. ``values_cut``: share of the values
    that are longer than ``max_attribute_tokens``.
    """
    texts = [value for values in sample for value in values]
    if not any(texts):
        return None
    settings = read_yaml(find_properties() / "model" / "JEPA4Rec.yaml")
    openings = (text[:_TRAINING_CHARACTERS] for text in texts)  # endless words take minutes
    tokenizer = train_wordpiece(openings, settings["vocab_size"])
    sizes = np.array([len(tokens) for tokens in encode_texts(tokenizer, texts)])
    by_item = sizes.reshape(len(sample), -1).sum(1)
    cut = (sizes > settings["max_attribute_tokens"]).sum() / (sizes > 0).sum()
    return {
        "mean": float(by_item.mean()),
        **_quantiles(by_item),
        "values_cut": float(cut),
        "items_counted": len(by_item),
    }


def _quantiles(numbers: np.ndarray) -> dict[str, float]:
    """Least, quartiles, the 95 % point and the greatest."""
    found = np.quantile(numbers, list(_QUANTILES.values()), method="inverted_cdf")
    return {name: int(value) for name, value in zip(_QUANTILES, found, strict=True)}


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def summary(content: Mapping[str, Any]) -> str:
    """Counts, with the paper's beside them where it has such a data set, and what to know of them.

    Args:
        content: what ``NAME.stats.json`` holds.
    """
    here, published = content["statistics"], content["published"]
    rows = [[content["name"], "here"]]
    if published:
        rows[0] += [f"paper ({published['name']})", "difference"]
    for key, value in here.items():
        row = [key.replace("_", " "), _number(value)]
        if published:
            theirs = published["statistics"].get(key)
            row += ["–", "–"] if theirs is None else [_number(theirs), _change(value, theirs)]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([*table, *_remarks(content), f"fingerprint {content['fingerprint']}"])


def _remarks(content: Mapping[str, Any]) -> Iterator[str]:
    for step in content["steps"]:
        users, items, interactions = (step[key] for key in ("users", "items", "interactions"))
        yield (
            f"after {step['step']}: {users:,} users, {items:,} items, {interactions:,} interactions"
        )
    length = content["length"]
    yield f"length: median {length['median']}, 95 % up to {length['p95']}, at most {length['max']}"
    if coverage := content.get("text_coverage"):
        yield "text: " + ", ".join(f"{name} {share:.1%}" for name, share in coverage.items())
    if tokens := content.get("tokens_per_item"):
        yield f"tokens per item: {tokens['mean']:.1f}, 95 % up to {tokens['p95']}"
    yield (
        f"order hangs on equal times for {content['users_with_equal_times']:.1%} of the users; "
        f"cold test items: {content['cold_targets']:.1%}"
    )
    if content["split"]:
        yield from _split_remarks(content["split"])
    if bad := content["bad_lines"]:
        yield f"{bad} bad lines were left out"
    for key in ("warning", "note"):
        if content["published"] and content["published"][key]:
            yield f"{key}: {content['published'][key]}"


def _split_remarks(split: Mapping[str, Any]) -> Iterator[str]:
    parts = split["parts"]
    yield f"split {split['kind']}: {parts['train']['interactions']:,} interactions train"
    for name in ("valid", "test"):
        part = parts[name]
        yield (
            f"{name}: {part['interactions']:,} interactions, {part['targets']:,} targets, "
            f"{part['cold_targets']:.1%} of them of items that nobody trains on"
        )
    if left := split["left_out"]:
        yield f"{left:,} interactions of users without training before are left out"
    yield f"fingerprint of the split {split['fingerprint']}"


def _number(value: float) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if value >= 1 else f"{value:.1e}"
    )


def _change(here: float, theirs: float) -> str:
    if here == theirs:
        return "0"
    difference = here - theirs
    amount = f"{difference:+,}" if isinstance(difference, int) else f"{difference:+.2g}"
    return f"{amount} ({difference / theirs:+.1%})"
