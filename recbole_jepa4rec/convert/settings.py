"""What a conversion can be asked for. A field is an option: its help is its meaning."""

from __future__ import annotations

import codecs
import math
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

AMAZON = ("amazon2014", "amazon2018", "amazon2023")
_TABLES = ("generic",)
_RETAIL = ("online-retail",)
_UNRATED = (*_RETAIL, "steam", "from-recbole")


def option(
    default: Any,
    meaning: str,
    metavar: str | None = None,
    parse: Callable[[str], Any] = str,
    choices: Sequence[str] | None = None,
    flag: str | None = None,
    only: Sequence[str] = (),
    but: Sequence[str] = (),
) -> Any:
    """A field of the settings, and the option that sets it.

    Args:
        default: where neither the words nor a preset say otherwise.
        meaning: for ``--help``.
        metavar: what stands for the value there.
        parse: gives the value of a word, or raises ``ArgumentTypeError``.
        choices: the words allowed, if not any.
        flag: its name; by default that of the field, and of a bool its ``no-`` as well. A name for
            a bool turns the default round.
        only: the sources that know it; all by default.
        but: sources that do not.
    """
    words: dict[str, Any] = {"help": meaning}
    if not isinstance(default, bool):
        words |= {"metavar": metavar, "type": parse, "choices": choices}
    elif flag is None:
        words["action"] = BooleanOptionalAction
    else:
        words |= {"action": "store_const", "const": not default}
    return field(default=default, metadata={"words": words, "flag": flag, "only": only, "but": but})


def whole(word: str) -> int:
    """A whole number that is not negative.

    Raises:
        ArgumentTypeError: if the word is none.
    """
    if not word.isdecimal() or int(word) >= 2**63:
        raise ArgumentTypeError(f"{word!r} must be a whole number from 0 to 2^63 - 1")
    return int(word)


def _finite(word: str) -> float:
    from recbole_jepa4rec.data.atomic_files import is_number  # with pandas, which takes a while

    if not is_number(word) or not math.isfinite(float(word)):
        raise ArgumentTypeError(f"{word!r} must be a number")
    return float(word)


def _share(word: str) -> float:
    if not 0 < _finite(word) <= 1:
        raise ArgumentTypeError(f"{word!r} must be above 0 and at most 1")
    return float(word)


def _names(word: str) -> tuple[str, ...]:
    return tuple(word.split(","))


def _encoding(word: str) -> str:
    try:
        return codecs.lookup(word).name
    except LookupError:
        raise ArgumentTypeError(f"encoding {word!r} is not known to Python") from None


@dataclass(frozen=True)
class Reading:
    """How the files of a source are read."""

    max_bad: int = option(0, "broken lines to leave out before giving up (default 0)", "N", whole)
    attributes: tuple[str, ...] | None = option(
        None, "item text to write, in order", "A,B", _names, but=_RETAIL
    )
    decode_html: bool = option(
        False, "write HTML's entities as characters and drop its tags", but=(*_RETAIL, "movielens")
    )
    min_rating: float | None = option(None, "leave out lower ratings", "R", _finite, but=_UNRATED)
    user: str = option("user_id", "(default user_id)", "COLUMN", only=_TABLES)
    item: str = option("item_id", "(default item_id)", "COLUMN", only=_TABLES)
    time: str = option("timestamp", "(default timestamp)", "COLUMN", only=_TABLES)
    no_time: bool = option(False, "rows are in order of time", flag="--no-time", only=_TABLES)
    rating: str | None = option(None, "for --min-rating", "COLUMN", only=_TABLES)
    encoding: str = option(
        "utf-8", "of .csv and .tsv (default utf-8)", parse=_encoding, only=_TABLES
    )
    quotes: bool = option(
        True, 'take " of .csv and .tsv for a plain character', flag="--no-quotes", only=_TABLES
    )
    user_key: str = option(
        "customer",
        "what a user is (default customer)",
        choices=("customer", "invoice"),
        flag="--user",
        only=_RETAIL,
    )
    item_key: str = option(
        "description",
        "what an item is (default description)",
        choices=("description", "code"),
        flag="--item",
        only=_RETAIL,
    )
    time_format: str | None = option(
        None,
        "how times are written, strptime's: %%d/%%m/%%Y %%H:%%M",
        "FORM",
        only=(*_TABLES, *_RETAIL),
    )


@dataclass(frozen=True)
class Rule:
    """Which interactions stay: steps of filtering, in the order in which they are taken."""

    duplicates: str = option(
        "keep",
        "exact: one of the same user, item and time; pair: the earliest of a user and an item",
        choices=("keep", "exact", "pair"),
    )
    without_text: str = option(
        "keep",
        "items without any attribute stay, or leave before or after the core",
        choices=("keep", "before", "after"),
    )
    core_users: int = option(0, "interactions of each user of the core", "K", whole)
    core_items: int = option(0, "interactions of each item of the core", "K", whole)
    cold_users: bool = option(
        False, "add users outside the core again, with what they did with items of the core"
    )
    min_length: int = option(0, "drop shorter users in the end", "K", whole)
    user_share: float = option(1.0, "draw this share of the users in the end", "S", _share)
    seed: int = option(2020, "of that draw and of cold items (default 2020)", "N", whole)


EXPLANATION = """splits (--split), written as NAME.train.inter, NAME.valid.inter, NAME.test.inter:
  loo: of each user with three interactions or more the last is tested and the one before it
    validated; everything else trains. What a run does without these files.
  last_n: of each user the last 5 (--last) are held back for test and the one before them is
    validated; everything else trains, and all of a user with fewer than N + 2. For rollouts, which
    predict them all from what came before the first.
  temporal: everybody is cut at the same two moments. Interactions are sorted by time; test holds
    the last tenth (--test-share), validation the tenth before (--valid-share). All of one moment go
    into the later part.
  cold_items: a tenth of the items (--test-share) is drawn for test, another (--valid-share) for
    validation, by id and --seed alone; each file holds every interaction with its items, and
    training none of them. Time does not cut: training may hold later interactions.
In validation and test a user's last row is the target; his earlier rows there, and those in the
parts before, at the same time or earlier, are its history. A user without a training row before the
target is left out of that file. Run with --benchmark_filename=train,valid,test.
"""


@dataclass(frozen=True)
class Split:
    """A split to be written as files; ``EXPLANATION`` defines each kind."""

    split: str | None = option(None, "which", choices=("loo", "last_n", "temporal", "cold_items"))
    last: int = option(5, "interactions that last_n holds back (default 5)", "N", whole)
    valid_share: float = option(
        0.1, "validated share of the interactions or items (default 0.1)", "S", _share
    )
    test_share: float = option(
        0.1, "tested share of the interactions or items (default 0.1)", "S", _share
    )

    def __post_init__(self) -> None:
        if self.valid_share + self.test_share >= 1:
            total = f"{self.valid_share} and test_share {self.test_share}"
            raise ValueError(f"valid_share {total} must leave something to train on")
        if not self.last:
            raise ValueError("--last 0 must be at least 1")


READ_BY = {
    "last": ("last_n",),
    "valid_share": ("temporal", "cold_items"),
    "test_share": ("temporal", "cold_items"),
}
"""The splits that read each of the others' options."""


@dataclass(frozen=True)
class Preset:
    """The rule of a paper, and how it reads the files.

    Attributes:
        meaning: one line for ``--help``.
        rule: which interactions stay.
        reading: how the files are read.
    """

    meaning: str
    rule: Rule = Rule()
    reading: Reading = Reading()


_PAPER_TEXT = Reading(attributes=("title", "categories", "brand"))
_PAPER_TEXT_DECODED = Reading(attributes=_PAPER_TEXT.attributes, decode_html=True)
_RECFORMER = Rule(core_users=5, core_items=5, without_text="after", min_length=4)

_AMAZON_PRESETS = {
    "jepa4rec": Preset(
        "as RecFormer, whose settings the paper adopts; entities decoded",
        _RECFORMER,
        _PAPER_TEXT_DECODED,
    ),
    "recformer": Preset(
        "5-core, then items without text leave, then users with fewer than 4 interactions (Li et "
        "al. 2023; their script also draws a fifth of the users: --user-share 0.2)",
        _RECFORMER,
        _PAPER_TEXT,
    ),
    "unisrec": Preset(
        "the same user, item and time counts once, items without text leave, then 5-core (Hou et "
        "al. 2022)",
        Rule(duplicates="exact", core_users=5, core_items=5, without_text="before"),
        _PAPER_TEXT_DECODED,
    ),
}

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    **dict.fromkeys(AMAZON, _AMAZON_PRESETS),
    "online-retail": {
        "jepa4rec": Preset(
            "customers with at least 4 rows; an item is a description, as it stands: 4,181 users, "
            "3,896 items, 401,248 interactions, as in Table 1",
            Rule(core_users=4),
        ),
        "unisrec": Preset(
            "a user is an invoice, an item a stock code; 5-core (Hou et al. 2022)",
            Rule(core_users=5, core_items=5),
            Reading(user_key="invoice", item_key="code"),
        ),
    },
}
"""The presets of each source that has any, by name."""
