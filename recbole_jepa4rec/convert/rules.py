"""Which interactions stay: a rule's settings, and the rules that papers use, by name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

DUPLICATES = ("keep", "exact", "pair")
WITHOUT_TEXT = ("keep", "before", "after")


@dataclass(frozen=True)
class Rule:
    """Steps of filtering, in the order in which they are taken.

    Attributes:
        duplicates: ``keep``; ``exact`` keeps the first of a user's interactions with one item at
            one time; ``pair`` keeps the earliest of a user's interactions with one item.
        without_text: items without text ``keep``, or leave ``before`` or ``after`` the core.
        core_users: interactions that each user must have in the core.
        core_items: interactions that each item must have in the core.
        cold_users: add users outside the core again, with what they did with its items.
        min_length: interactions below which a user leaves in the end.
        user_share: share of the users that is drawn in the end.
        seed: of that draw.
    """

    duplicates: str = "keep"
    without_text: str = "keep"
    core_users: int = 0
    core_items: int = 0
    cold_users: bool = False
    min_length: int = 0
    user_share: float = 1.0
    seed: int = 2020

    def __post_init__(self) -> None:
        for name, allowed in (("duplicates", DUPLICATES), ("without_text", WITHOUT_TEXT)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(allowed)}")
        for name in ("core_users", "core_items", "min_length"):
            if (count := getattr(self, name)) < 0:
                raise ValueError(f"{name} {count} must be a whole number from 0")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must be a whole number from 0 to 2^63 - 1")
        if not 0 < self.user_share <= 1:
            raise ValueError(f"user_share {self.user_share} must be above 0 and at most 1")


@dataclass(frozen=True)
class Preset:
    """A rule of a paper, and how it prepares the text.

    Attributes:
        rule: which interactions stay.
        explanation: one line for ``--help``.
        attributes: item text, in order; None is all that the source has.
        decode_html: see ``values.text``.
        keys: of sources that can choose, the columns that tell users and items apart.
    """

    rule: Rule
    explanation: str
    attributes: tuple[str, ...] | None = None
    decode_html: bool = False
    keys: tuple[str, str] | None = None


PLAIN = Preset(Rule(), "")

_PAPER_TEXT = ("title", "categories", "brand")
_RECFORMER = Rule(core_users=5, core_items=5, without_text="after", min_length=4)

AMAZON = {
    "jepa4rec": Preset(
        _RECFORMER,
        "as RecFormer, whose settings the paper adopts; entities decoded",
        _PAPER_TEXT,
        decode_html=True,
    ),
    "recformer": Preset(
        _RECFORMER,
        "5-core, then items without text leave, then users with fewer than 4 interactions (Li et "
        "al. 2023; their script also draws a fifth of the users: --user-share 0.2)",
        _PAPER_TEXT,
    ),
    "unisrec": Preset(
        Rule(duplicates="exact", core_users=5, core_items=5, without_text="before"),
        "the same user, item and time counts once, items without text leave, then 5-core (Hou et "
        "al. 2022)",
        _PAPER_TEXT,
        decode_html=True,
    ),
}

ONLINE_RETAIL = {
    "jepa4rec": Preset(
        Rule(core_users=4),
        "customers with at least 4 rows; an item is a description, as it stands: 4,181 users, "
        "3,896 items, 401,248 interactions, as in Table 1",
        keys=("customer", "description"),
    ),
    "unisrec": Preset(
        Rule(core_users=5, core_items=5),
        "a user is an invoice, an item a stock code; 5-core (Hou et al. 2022)",
        keys=("invoice", "code"),
    ),
}


def rule_with(preset: Preset, **changes: Any) -> Rule:
    """The rule of a preset where no change is given (None)."""
    settings = {field.name: getattr(preset.rule, field.name) for field in fields(Rule)}
    return Rule(**{**settings, **{k: v for k, v in changes.items() if v is not None}})
