"""The values of the search's own keys, from the words of a command line."""

from __future__ import annotations

import math
from collections.abc import Collection


def one_of(key: str, text: str | None, allowed: Collection[str]) -> str:
    """One of a few words.

    Raises:
        ValueError: for any other; lists them.
    """
    if text not in allowed:
        raise ValueError(f"{key} {text!r} must be one of {', '.join(allowed)}")
    return str(text)


def whole(key: str, text: str | None, least: int = 1) -> int:
    """A whole number.

    Raises:
        ValueError: if it is none, or below ``least``.
    """
    if not (text and text.isascii() and text.isdigit() and int(text) >= least):
        raise ValueError(f"{key} {text!r} must be a whole number from {least}")
    return int(text)


def gpus(text: str | None) -> float | None:
    """GPUs of a trial; Ray shares one among several trials, but no trial has 1.5.

    Raises:
        ValueError: if it is neither a share of one nor a whole number.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= 1 or (value > 1 and value.is_integer())):
        raise ValueError(f"gpus_per_trial {text!r} must be a share of one GPU or a whole number")
    return value


def address(text: str | None) -> str | None:
    """Where a cluster's head listens; Ray's client (``ray://``) cannot drive a search.

    Raises:
        ValueError: if it is neither ``auto`` nor HOST:PORT.
    """
    if text is None or text == "auto":
        return text
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ValueError(f"address {text!r} must be auto or HOST:PORT of a Ray cluster's head")
    return text


def switch(key: str, text: str) -> bool:
    """True or False.

    Raises:
        ValueError: for anything else.
    """
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{key} {text!r} must be True or False")
    return text.lower() == "true"
