"""Settings as typed fields, and the line that refuses a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
"""RecBole takes any other for adam."""

CLIPPING = {"max_norm", "norm_type", "error_if_nonfinite"}
"""Keys that ``clip_grad_norm`` may hold."""

LEVELS = ("debug", "info", "warning", "error", "critical")

TYPES = {
    "boolean": ("bool", "True or False"),
    "integer": ("int", "a whole number"),
    "number": ("float", "a number"),
    "string": ("str", "a text"),
    "array": ("list", "a list"),
    "object": ("dict", "a mapping"),
    "null": ("None", "null"),
}
"""Types of JSON Schema: in RecBole's words, and in those of a refusal."""

BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "to below",
}

Kind = TypeVar("Kind", bound="Settings")


class Keys(Protocol):
    """Settings by their keys: RecBole's Config, ours, or a dictionary."""

    def __getitem__(self, key: str, /) -> Any:
        """The value of a key."""

    def __contains__(self, key: Any, /) -> bool:
        """Whether the key has one."""


@dataclass(frozen=True)
class Key:
    """What there is to say of a key.

    Attributes:
        name: of the key.
        type: of its value, in RecBole's words: int, float, bool, str, list, dict.
        allowed: what its value may be, in words, or the choices.
        default: its value where none is given.
        meaning: in one line.
    """

    name: str
    type: str
    allowed: str
    default: Any
    meaning: str


class Settings(BaseModel):
    """Settings as typed values, each field with its bounds, its default and what it means.

    Raises:
        ValueError: for a value that a field or a rule between fields does not allow; ``of`` says so
            in one line.
    """

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def of(cls: type[Kind], config: Keys) -> Kind:
        """The settings that a config holds, each at its default where the config has no such key.

        Raises:
            ValueError: for the first value that is not allowed; says what is.
        """
        values = {key: config[key] for key in cls.model_fields if key in config}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        try:
            return cls(**values)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
        if fault["type"] == "value_error":  # raised here, in words that say it all
            raise ValueError(str(fault["ctx"]["error"]))
        key = str(fault["loc"][0])
        if fault["type"] == "missing":
            raise ValueError(f"{key} is missing")
        schema = cls.model_json_schema()["properties"][key]
        raise ValueError(refusal(key, values[key], schema))

    def refuse(self, key: str, beside: str, allowed: Any) -> NoReturn:
        """Refuse the value that a key has, because of that of another; says what goes with it.

        Raises:
            ValueError: always.
        """
        value, other = vars(self)[key], vars(self)[beside]
        raise ValueError(f"{key} is {value!r}; allowed with {beside}={other!r}: {allowed}")

    def refuse_remainder(self, width: str, heads: str, each: int = 1) -> None:
        """Refuse a width that heads do not divide into parts, each a multiple of a number."""
        value, parts = vars(self)[width], each * vars(self)[heads]
        if value % parts:
            times = f"{each} x " if each > 1 else ""
            raise ValueError(f"{width}={value} is no multiple of {times}{heads}={parts}")

    def refuse_idle(self, keys: Iterable[str], beside: str) -> None:
        """Refuse another value than its default of a key that has no part with another's value."""
        for key in keys:
            if vars(self)[key] != (default := type(self).model_fields[key].default):
                self.refuse(key, beside, repr(default))

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """Every key, in order; a field that a subclass gives another default keeps its meaning."""
        found = {}
        for key, schema in cls.model_json_schema()["properties"].items():
            above = (each.model_fields for each in cls.__mro__ if issubclass(each, Settings))
            said = [fields[key].description for fields in above if key in fields]
            meaning = next((" ".join(text.split()) for text in said if text), "")
            allowed = ", ".join(map(str, _choices(schema))) or _words(schema)
            default = cls.model_fields[key].default
            found[key] = Key(key, _type_name(schema), allowed, default, meaning)
        return found


def refusal(key: str, value: Any, schema: dict[str, Any]) -> str:
    """The line that refuses a value.

    Args:
        key: that has it.
        value: that is not allowed.
        schema: what is allowed, as JSON Schema.
    """
    if choices := _choices(schema):
        return f"{key} is {value!r}; allowed: {', '.join(map(str, choices))}"
    return f"{key} {value!r} must be {_words(schema)}"


def _choices(schema: dict[str, Any]) -> list[Any]:
    """The only values that a JSON Schema allows, where it names them."""
    return schema.get("enum", [schema["const"]] if "const" in schema else [])


def _words(schema: dict[str, Any]) -> str:
    """What a JSON Schema allows, in words; ``must`` has them where they do not follow from it."""
    if "must" in schema:
        return schema["must"]
    if choices := _choices(schema):
        return " or ".join(map(str, choices))
    if "anyOf" in schema:
        parts = sorted(schema["anyOf"], key=lambda part: part.get("type") != "null")
        return " or ".join(map(_words, parts))
    words = "an even whole number" if "multipleOf" in schema else TYPES[schema["type"]][1]
    within = [f"{word} {schema[bound]:g}" for bound, word in BOUNDS.items() if bound in schema]
    return " ".join([words, *within])


def _type_name(schema: dict[str, Any]) -> str:
    """RecBole's word for the type of a value; of several the first."""
    if "anyOf" in schema:
        return _type_name(schema["anyOf"][0])
    return TYPES[schema["type"]][0]


def only_if(fits: Callable[[Any], bool]) -> AfterValidator:
    """A rule that no bound can say."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise AssertionError
        return value

    return AfterValidator(check)


def must(words: str) -> Any:
    """The words for such a rule, after "must be"."""
    return Field(json_schema_extra={"must": words})


def _is_clipping(value: dict[str, Any] | None) -> bool:
    if value is None:
        return True
    norm = value.get("max_norm", math.inf)
    return type(norm) in (int, float) and math.isfinite(norm) and set(value) <= CLIPPING


def is_interval(value: str | None) -> bool:
    """Whether RecBole can parse ``[A,B];(C,D)``, and no interval ends before it begins."""
    try:
        for part in (value or "[0,inf)").split(";"):
            first, *inside, last = [*part.strip()]
            left, right = map(float, "".join(inside).split(","))
            if first not in "[(" or last not in "])" or not left <= right:
                return False
    except ValueError:
        return False
    return True


def _is_load_col(value: dict[str, Any] | None) -> bool:
    return all(
        names == "*" or (isinstance(names, (list, tuple)) and all(type(n) is str for n in names))
        for names in (value or {}).values()
    )


Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Positive = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]
ThreeWeights = Annotated[
    list[AtLeastZero], Field(min_length=3, max_length=3), must("a list of three numbers from 0")
]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Switch = Annotated[bool | None, must("True or False")]
Names = Annotated[list[str] | str, Field(min_length=1), must("a name or a list of names")]
TopK = Annotated[list[Count] | Count, must("a whole number from 1 or a list of such numbers")]
Seed = Annotated[int, Field(ge=0, lt=2**32), must(f"a whole number from 0 to {2**32 - 1}")]
Learner = Annotated[
    str, only_if(lambda name: name.lower() in LEARNERS), must(f"one of {', '.join(LEARNERS)}")
]
Level = Annotated[
    str, only_if(lambda name: name.lower() in LEVELS), must(f"one of {', '.join(LEVELS)}")
]
Clipping = Annotated[
    dict[str, Any] | None,
    only_if(_is_clipping),
    must("null or a mapping with the number max_norm"),
]
LoadCol = Annotated[
    dict[str, Any] | None,
    only_if(_is_load_col),
    must("null or a mapping from a file's suffix to '*' or a list of names"),
]
Interval = Annotated[str | None, only_if(is_interval), must("an interval such as '[5,inf)'")]
