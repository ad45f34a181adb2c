"""Values of a line: ids, times and text, as the atomic files can hold them."""

from __future__ import annotations

import html
import math
import re
from datetime import date, datetime, timezone
from typing import Any

from recbole_jepa4rec.data.atomic_files import is_number

_UNFIT = re.compile(r"[\t\n\r\0\ud800-\udfff]")
_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
_LARGEST_TIME = 2.0**63


class FaultError(ValueError):
    """What a line should have had."""


def token(value: Any, name: str) -> str:
    """An id, as it stands.

    Raises:
        FaultError: if there is none, or a file of tab-separated lines cannot hold it.
    """
    if type(value) is str and value.isalnum():
        return value
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value:
        raise FaultError(f"expected {name} to be an id, found {shown(value)}")
    if _UNFIT.search(value):
        raise FaultError(
            f"expected {name} without tabs, line ends and control bytes, found {shown(value)}"
        )
    return value


def number(value: Any, name: str) -> float:
    """A finite number, from a number or its decimal notation.

    Raises:
        FaultError: for anything else.
    """
    if isinstance(value, str) and is_number(value):
        value = float(value) if len(value) > 15 or not value.isdecimal() else int(value)
    if type(value) not in (int, float) or not abs(value) < _LARGEST_TIME:  # NaN is not, either
        raise FaultError(f"expected {name} to be a number, found {shown(value)}")
    return value


def is_below(least: float | None, value: Any, name: str) -> bool:
    """Tell whether a rating is below the least one that counts (None: each counts).

    Raises:
        FaultError: if it is no number where one is compared.
    """
    return least is not None and number(value, name) < least


def time(value: Any, name: str) -> float:
    """A moment: a number as it stands, or the Unix seconds of a date (UTC unless it says else).

    Raises:
        FaultError: for anything else.
    """
    if type(value) is int and -_LARGEST_TIME < value < _LARGEST_TIME:
        return value
    if isinstance(value, date):
        return _seconds(value)
    if isinstance(value, str) and not is_number(value):
        try:
            return _seconds(datetime.fromisoformat(value.strip().replace("Z", "+00:00")))
        except ValueError:
            raise FaultError(
                f"expected {name} to be a number or a date such as 2011-12-09 12:50:00, "
                f"found {shown(value)}"
            ) from None
    return number(value, name)


def time_in_format(value: Any, form: str, name: str) -> float:
    """Unix seconds of a date that is written as ``strptime`` formats say (UTC).

    Raises:
        FaultError: if it is not.
    """
    try:
        return _seconds(datetime.strptime(str(value), form))
    except ValueError:
        raise FaultError(f"expected {name} as {form}, found {shown(value)}") from None


def text(value: Any, separator: str = " ", decode_html: bool = False) -> str:
    """Text on one line: white space folded to single blanks, nothing else changed.

    Args:
        value: a string, a number, None, or lists of these, which are joined; of nested lists
            (several category paths) each member counts once.
        separator: put between the members of a list.
        decode_html: write HTML's entities as characters, and drop its tags.
    """
    if not isinstance(value, str):
        members = _members(value)
        if isinstance(value, list) and any(isinstance(member, list) for member in value):
            members = list(dict.fromkeys(members))
        value = separator.join(filter(None, (" ".join(member.split()) for member in members)))
    if decode_html and ("&" in value or "<" in value):
        value = _TAG.sub(" ", html.unescape(value))
    if not value.isascii():
        value = _without_surrogates(value)
    return " ".join(value.replace("\0", " ").split())


def shown(value: Any) -> str:
    """A value as a message shows it."""
    return "none" if value in (None, "") else repr(value)[:60]


def _members(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return [text for member in value for text in _members(member)]
    if isinstance(value, dict):
        return [f"{name}: {' '.join(_members(member))}" for name, member in value.items()]
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return [] if is_missing else [str(value)]


def _without_surrogates(value: str) -> str:
    """Pairs become the characters they stand for; halves, which are no text, are replaced."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _seconds(moment: date) -> float:
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    seconds = moment.timestamp()
    return int(seconds) if seconds == int(seconds) else seconds
