"""Search spaces: which settings vary, and in what range."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.config.syntax import refuse_unknown

if TYPE_CHECKING:
    import numpy as np

KINDS = {
    "choice": "a list of values",
    "uniform": "[low, high]",
    "loguniform": "[low, high] above 0",
    "int": "[low, high] in whole numbers",
    "quniform": "[low, high, step]",
}
"""How a setting may vary, and what stands after it."""

DIGITS = 4
"""Significant digits of a drawn number; more would only be harder to read."""


MOST_TRIED = 256
"""Points of a space that are checked before the search begins, at most."""

MOST_LISTED = 10**6
"""Steps of a range, or points of a grid, that are ever listed."""


@dataclass(frozen=True)
class Dimension:
    """One setting that varies.

    Attributes:
        key: the setting.
        kind: of ``KINDS``.
        values: the choices, or the bounds (and step) of the range; both bounds belong to it.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        """A value at random."""
        if self.points is not None:
            return self.points[int(random.integers(len(self.points)))]
        low, high = self.values
        share = float(random.random())
        if self.kind == "loguniform":
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """A number of the range with few digits."""
        low, high = self.values
        return min(max(float(f"{value:.{DIGITS}g}"), float(low)), float(high))

    def value_of(self, number: float) -> Any:
        """The value behind a number that a search algorithm gives."""
        return float(number) if self.points is None else self.points[int(number)]

    def number_of(self, value: Any) -> Any:
        """The opposite of ``value_of``."""
        return value if self.points is None else self.points.index(value)

    @property
    def points(self) -> list[Any] | None:
        """Every value, where there are finitely many; else ``None``."""
        if self.kind == "choice":
            return list(self.values)
        if self.kind == "int":
            return list(range(self.values[0], self.values[1] + 1))
        if self.kind == "quniform":
            low, high, step = self.values
            count = math.floor((high - low) / step + 1e-9) + 1
            return [_exact(low + i * step) for i in range(count)]
        return None

    @property
    def ends(self) -> list[Any]:
        """Values to try out: all choices, or the bounds of a range."""
        if self.kind == "choice":
            return list(self.values)
        points = self.points
        return [points[0], points[-1]] if points else [self.rounded(x) for x in self.values]


def read_space(path: str | Path) -> tuple[Dimension, ...]:
    """The search space in a file: yaml, or RecBole's ``key kind value`` lines (``.test``, ...).

    Raises:
        ValueError: if it cannot be read, is empty, or a range is; names key and file.
    """
    path = Path(path)
    is_yaml = path.suffix in (".yaml", ".yml")
    content = read_yaml(path) if is_yaml else _read_lines(path)
    refuse_unknown(content, f"in {path}")
    if not content:
        raise ValueError(f"{path} holds no setting to search")
    return tuple(_dimension(str(key), entry, path) for key, entry in content.items())


def points_of(space: Sequence[Dimension]) -> int | None:
    """How many points a space has; ``None`` if infinitely many."""
    counts = [None if each.points is None else len(each.points) for each in space]
    finite = [count for count in counts if count is not None]
    return math.prod(finite) if len(finite) == len(counts) else None


def grid(space: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Every point of a space, the last setting varying fastest.

    Raises:
        ValueError: if a range has no step, or there are too many points.
    """
    for each in space:
        if each.points is None:
            raise ValueError(
                f"algorithm 'grid' cannot list {each.key}: {each.kind} has no steps "
                "(allowed: choice, int, quniform)"
            )
    if (count := points_of(space) or 0) > MOST_LISTED:
        raise ValueError(f"algorithm 'grid' would try {count} points; allowed: {MOST_LISTED}")
    columns = [each.points or [] for each in space]
    keys = [each.key for each in space]
    return [dict(zip(keys, row, strict=True)) for row in itertools.product(*columns)]


def combinations(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """Points to try out: the ends of all settings with each other, where these are few.

    Else those of one setting at a time, beside the first ends of the others.
    """
    keys, ends = [each.key for each in space], [each.ends for each in space]
    if math.prod(map(len, ends)) <= MOST_TRIED:
        yield from (dict(zip(keys, row, strict=True)) for row in itertools.product(*ends))
        return
    first = {key: values[0] for key, values in zip(keys, ends, strict=True)}
    for key, values in zip(keys, ends, strict=True):
        yield from ({**first, key: value} for value in values)


def random_points(space: Sequence[Dimension], count: int, seed: int) -> list[dict[str, Any]]:
    """Different points at random; fewer than ``count`` if the space has no more.

    Point ``i`` does not depend on ``count``, so that a longer search begins like a shorter one.
    """
    import numpy as np  # takes a while, and words are to be refused before

    limit = points_of(space)
    count = count if limit is None else min(count, limit)
    random = np.random.Generator(np.random.PCG64(seed))
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        point = {each.key: each.draw(random) for each in space}
        found.setdefault(repr(point), point)
    return list(found.values())


def _read_lines(path: Path) -> dict[str, Any]:
    """RecBole's format, whose lists are literals and whose ``loguniform`` has exponents of e."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read search space {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"search space {path} is not UTF-8 at byte {error.start}") from None
    content: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(words) < 3:
            raise ValueError(f"{where}: expected 'key kind value', found {line.strip()!r}")
        key, kind, text = words[0], words[1], " ".join(words[2:])
        if key in content:
            raise ValueError(f"{where}: {key} stands there twice")
        try:
            value = list(ast.literal_eval(text if text[:1] in "[(" else f"[{text}]"))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"{where}: {text!r} is no list of plain values") from None
        if kind == "loguniform" and _are_numbers(value):
            value = [_exp(exponent, where) for exponent in value]
        content[key] = {kind: value}
    return content


def _exp(exponent: float, where: str) -> float:
    try:
        return float(f"{math.exp(exponent):.{DIGITS}g}")
    except OverflowError:
        raise ValueError(
            f"{where}: loguniform {exponent} is an exponent of e, and too large"
        ) from None


def _dimension(key: str, entry: Any, path: Path) -> Dimension:
    where = f"{path}: {key}"
    if not isinstance(entry, Mapping) or len(entry) != 1:
        kinds = ", ".join(KINDS)
        raise ValueError(f"{where} {entry!r} must be one of {kinds}, as {{choice: [1, 2]}}")
    kind, values = next(iter(entry.items()))
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise ValueError(f"{where}: unknown kind {kind!r}{hint} (allowed: {', '.join(KINDS)})")
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{where}: {kind} {values!r} must be {KINDS[kind]}")
    if not values:
        raise ValueError(f"{where}: {kind} [] is empty (must be {KINDS[kind]})")
    if kind == "choice":
        _refuse_twice(where, values)
    else:
        _refuse_range(where, kind, values)
    return Dimension(key, kind, tuple(values))


def _refuse_twice(where: str, values: Sequence[Any]) -> None:
    for i, value in enumerate(values):
        if any(repr(value) == repr(other) for other in values[:i]):
            raise ValueError(f"{where}: choice {list(values)} holds {value!r} twice")


def _refuse_range(where: str, kind: str, values: Sequence[Any]) -> None:
    shown = f"{where}: {kind} {list(values)}"
    if len(values) != (3 if kind == "quniform" else 2) or not _are_numbers(values):
        raise ValueError(f"{shown} must be {KINDS[kind]}")
    if kind == "int" and not all(type(value) is int for value in values):
        raise ValueError(f"{shown} must be {KINDS[kind]}")
    if kind == "loguniform" and values[0] <= 0:
        raise ValueError(f"{shown} must be {KINDS[kind]}")
    if kind == "quniform" and values[2] <= 0:
        raise ValueError(f"{shown}: the step must be above 0")
    if values[0] >= values[1]:
        raise ValueError(f"{shown} is empty: low must be below high")
    if kind == "quniform" and values[2] > values[1] - values[0]:
        raise ValueError(f"{shown} holds low alone: the step must be at most high - low")
    step = values[2] if kind == "quniform" else 1
    if kind in ("int", "quniform") and (values[1] - values[0]) / step >= MOST_LISTED:
        raise ValueError(f"{shown} has too many steps; allowed: {MOST_LISTED}")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(
        type(value) in (int, float) and abs(value) < 2**63 for value in values
    )


def _exact(value: float) -> float | int:
    """A step of a range without the dust of binary fractions; whole steps stay whole numbers."""
    return value if isinstance(value, int) else float(f"{value:.12g}")
