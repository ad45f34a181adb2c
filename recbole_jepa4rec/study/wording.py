"""How numbers and findings of a comparison are said in tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALPHA = 0.05
"""Corrected p-values below it are called significant."""

NAMES = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP"}
"""Of metrics that are not written like other words."""

MISSING = "–"
COST = {
    "train_seconds": "training, s",
    "total_seconds": "in all, s",
    "tokens_per_second": "tokens/s",
    "peak_memory_gib": "peak memory, GiB",
    "parameters": "parameters",
}

DRIFT = {"cosine": "cosine with the true item", "recall@10": "Recall@10"}
"""Measures of a rollout's drift, as tables call them."""

VECTORS = {
    "std": "deviation",
    "effective_rank": "effective rank",
    "uniformity": "uniformity",
    "sigreg": "SIGReg",
    "alignment": "alignment",
}
"""What ``training/collapse.py`` measures, and its title."""


def metric_name(key: str) -> str:
    """``NDCG@10`` for ``ndcg@10``."""
    name, at, k = key.partition("@")
    return NAMES.get(name, name.capitalize().replace("_", " ")) + at + k


def number(value: float | None, digits: int = 4) -> str:
    """A metric, with four digits after the point."""
    return MISSING if value is None else f"{value:.{digits}f}"


def spread(entry: Mapping[str, Any]) -> str:
    """Mean, and ± the standard deviation where there is one."""
    std = entry["std"]
    return number(entry["mean"]) + ("" if std is None else f" ± {number(std)}")


def amount(value: float | None) -> str:
    """A count, seconds or rate: three digits or all before the point, with separators."""
    if value is None:
        return MISSING
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """A signed percentage."""
    return MISSING if value is None else f"{value:+.1f} %"


def p_value(p: float) -> str:
    """A p-value; very small ones as a bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def plain(value: Any) -> str:
    """A setting or fact in one line, without quotes around names."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(plain, value)) + "]"
    return "null" if value is None else str(value)


def protocol_sentence(protocol: Mapping[str, Any]) -> str:
    """How targets were split off and ranked, as a caption says it."""
    split = plain(protocol["split"])
    if "LS" in protocol["split"] and protocol["order"] == "TO":
        split = "leave-one-out in time order"
    history = "left out" if protocol["filter_history"] else "included"
    return f"Split: {split}; targets ranked among all items, those of the history {history}."


FILTERS = {
    each.__name__: each
    for each in (
        *(metric_name, number, spread, amount, percent, p_value, plain),
        protocol_sentence,
    )
}
"""What templates call by these names."""


def headline(comparison: Mapping[str, Any]) -> list[str]:
    """The comparison in one sentence, and what the test says of it in another, if it says any."""
    rows = {row["entry"]: row for row in comparison["rows"]}
    reference, baseline = rows[comparison["reference"]], rows.get(comparison["best_baseline"])
    name, dataset, key = reference["label"], comparison["dataset"], comparison["valid_metric"]
    if not reference["counts"]:
        return [f"{name} has no complete result on {dataset}: nothing is tested."]
    mine = reference["test"][key]["mean"]
    reached = f"On {dataset}, {name} reaches {metric_name(key)} {number(mine)} on the test split"
    if baseline is None:
        return [f"{reached}; there is no baseline to compare it with."]
    theirs, change = baseline["test"][key]["mean"], comparison["improvement"][key]
    by = "" if change is None else f"{abs(change):.1f} % "
    stands = "the same as" if mine == theirs else f"{by}{'above' if mine > theirs else 'below'}"
    asked = (baseline["entry"], key)
    test = next(t for t in comparison["tests"] if (t["baseline"], t["metric"]) == asked)
    return [
        f"{reached}, {stands} {baseline['label']}, the best baseline on validation.",
        _verdict(test, name, comparison["users"]),
    ]


def _verdict(test: Mapping[str, Any], name: str, users: int) -> str:
    p = test["p_holm"]
    equals = p_value(p) if p < 1e-4 else f"= {p_value(p)}"
    figures = f"p {equals} after Holm's correction, {users:,} users"
    if p < ALPHA:
        return f"The difference is significant ({figures})."
    if test["difference"] <= 0:
        return f"Nothing here says that {name} is better ({figures})."
    return f"The difference may be chance ({figures})."


def progress(comparison: Mapping[str, Any]) -> str | None:
    """How many runs are still to come; ``None`` when all have ended."""
    ended = {row["entry"]: len(row["seeds"]) + len(row["errors"]) for row in comparison["rows"]}
    going = [row["entry"] for row in comparison["rows"] if row["status"] != "finished"]
    left = sum(len(comparison["seeds"]) - ended[entry] for entry in going)
    return f"{left} of {sum(ended.values()) + left} runs still to come." if left else None


def failures(comparison: Mapping[str, Any]) -> list[str]:
    """A line for each failed run."""
    return [
        f"{row['label']}, seed {seed}, failed: {error}"
        for row in comparison["rows"]
        for seed, error in row["errors"].items()
    ]


def out_of_time(comparison: Mapping[str, Any]) -> list[str]:
    """A line for each ``max_train_seconds`` that the training of a row used up."""
    labels: dict[float, list[str]] = {}
    for row in comparison["rows"]:
        if row.get("time_limit") is not None:
            labels.setdefault(row["time_limit"], []).append(row["label"])
    return [
        f"Training used up max_train_seconds ({limit:g} s), and with more time the figures may be "
        f"others: {'; '.join(of_limit)}."
        for limit, of_limit in labels.items()
    ]


def unequal_machines(comparison: Mapping[str, Any]) -> list[str]:
    """A line for each of hardware and versions that is not the same for all rows."""
    return [
        f"Not all runs had the same {name}: costs are not comparable."
        if name == "hardware"
        else f"Not all runs had the same {name}."
        for name in ("hardware", "versions")
        if len(comparison["conditions"][name]) > 1
    ]
