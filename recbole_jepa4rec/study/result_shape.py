"""What a comparison reads of ``result.json``, and which types it must find there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NUMBER = (int, float)
NUMBER_OR_NONE = (int, float, type(None))

SHAPE: dict[str, Any] = {
    "label": str,
    "model": str,
    "status": str,
    "dataset": str,
    "protocol": {"filter_history": bool},
    "data_fingerprint": str,
    "valid": {},
    "test": {},
    "statistics": dict.fromkeys(
        ("users", "items", "interactions", "average_length", "density"), NUMBER
    ),
    "seconds": dict.fromkeys(("pretrain", "finetune", "total"), NUMBER),
    "learning_curve": [{"stage": str, "seconds": NUMBER, "valid": NUMBER}],
    "tokens_per_second": NUMBER_OR_NONE,
    "peak_memory_gib": NUMBER_OR_NONE,
    "parameters": NUMBER_OR_NONE,
    "hardware": {},
    "versions": {},
}
"""A type, or several; a mapping with at least these keys; a list of the one element."""


def misfits(value: Any, shape: Any, name: str = "") -> Iterator[str]:
    """What a value lacks of a shape such as ``SHAPE``.

    Args:
        value: as json gives it.
        shape: what it should be.
        name: of the value, with dots.

    Yields:
        The name of each wrong part, and what is wrong with it.
    """
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            yield f"{name or 'it'} is {value!r}, not a mapping"
            return
        for key, part in shape.items():
            path = f"{name}.{key}" if name else key
            if key in value:
                yield from misfits(value[key], part, path)
            else:
                yield f"{path} is missing"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{name} is {value!r}, not a list"
            return
        for i, part in enumerate(value):
            yield from misfits(part, shape[0], f"{name}.{i}")
    elif not isinstance(value, shape):
        yield f"{name} is {value!r}"
