"""The table that a conversion ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNTS = ("users", "items", "interactions", "average_length", "density")


def summary(content: Mapping[str, Any]) -> str:
    """Counts, with the paper's beside them where it has such a data set, and what to know of them.

    Args:
        content: what ``NAME.stats.json`` holds.
    """
    here, published = content["statistics"], content["published"]
    rows = [[content["name"], "here"]]
    if published:
        rows[0] += [f"paper ({published['name']})", "difference"]
    for key in _COUNTS:
        row = [key.replace("_", " "), _number(here[key])]
        if published:
            theirs = published["statistics"].get(key)
            row += ["–", "–"] if theirs is None else [_number(theirs), _change(here[key], theirs)]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    return "\n".join([*lines, *_remarks(content), f"fingerprint {content['fingerprint']}"])


def _remarks(content: Mapping[str, Any]) -> list[str]:
    lines = [
        f"after {step['step']}: {step['users']:,} users, {step['items']:,} items, "
        f"{step['interactions']:,} interactions"
        for step in content["steps"]
    ]
    length = content["length"]
    lines.append(
        f"length: median {length['median']}, 95 % up to {length['p95']}, at most {length['max']}"
    )
    coverage = content.get("text_coverage", {})
    if coverage:
        lines.append(
            "text: " + ", ".join(f"{name} {share:.1%}" for name, share in coverage.items())
        )
    if tokens := content.get("tokens_per_item"):
        lines.append(f"tokens per item: {tokens['mean']:.1f}, 95 % up to {tokens['p95']}")
    lines.append(
        f"order hangs on equal times for {content['users_with_equal_times']:.1%} of the users; "
        f"cold test items: {content['cold_targets']:.1%}"
    )
    lines += _split_remarks(content["split"])
    if bad := content.get("bad_lines"):
        lines.append(f"{bad} bad lines were left out")
    published = content["published"]
    for key in ("warning", "note"):
        if published and published[key]:
            lines.append(f"{key}: {published[key]}")
    return lines


def _split_remarks(split: Mapping[str, Any] | None) -> list[str]:
    if split is None:
        return []
    parts = split["parts"]
    lines = [f"split {split['kind']}: {parts['train']['interactions']:,} interactions train"]
    lines += [
        f"{name}: {part['interactions']:,} interactions, {part['targets']:,} targets, "
        f"{part['cold_targets']:.1%} of them of items that nobody trains on"
        for name, part in parts.items()
        if "targets" in part
    ]
    if left := split["left_out"]:
        lines.append(f"{left:,} interactions of users without training before are left out")
    return [*lines, f"fingerprint of the split {split['fingerprint']}"]


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
