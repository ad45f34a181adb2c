"""The nearest known word to one that nobody knows."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any


def did_you_mean(word: str, known: Any) -> str:
    """`` (did you mean 'x'?)`` for the nearest known word, else nothing."""
    by_lower = {str(name).lower(): str(name) for name in known}
    near = get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
