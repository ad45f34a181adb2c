"""How settings are written, in yaml files and as ``--key=value``: plain data, never evaluated."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.yaml_files import Loader, find_properties, read_yaml
from recbole_jepa4rec.config.protocol import PROTOCOL
from recbole_jepa4rec.config.recbole_keys import RENAMED
from recbole_jepa4rec.config.registry import SETTINGS, recbole_folder
from recbole_jepa4rec.config.run_settings import RunSettings
from recbole_jepa4rec.config.settings import CLIPPING

SUBKEYS = {
    "eval_args": {*PROTOCOL},
    "train_neg_sample_args": {"distribution", "sample_num", "alpha", "dynamic", "candidate_num"},
    "clip_grad_norm": CLIPPING,
}
"""Keys that hold a fixed set of keys themselves."""

ELSEWHERE = {"model", "dataset", "config_files", "encoding", "contrast", "sim", "use_filter", "eta"}
"""Keys that stand in no yaml file, but that the runner or RecBole's code reads."""

UNLISTED = {"FEARec": {"tau"}, "HRM": {"reg_weight"}}
"""Keys that RecBole's models read and their yaml files lack, while those of others have them."""

WHEREABOUTS = (
    *("show_progress", "state", "runs_path", "cache_dir", "gpu_id", "worker", "data_path"),
    *("checkpoint_steps", "address", "ip", "port", "group_offset"),
    *("log_wandb", "wandb_project", "log_mlflow"),
)
"""Keys that say where and how loudly to run, not what; the data's fingerprint tells the data."""

KNOWN_PACKAGES = ("builtins", "recbole", "recbole_jepa4rec", "torch")
"""Packages in which no key of a user's own is looked for."""

WORDS = {"none": None, "null": None, "~": None, "true": True, "false": False}


def parse_command_line(arguments: Sequence[str]) -> dict[str, str]:
    """Keys and their values' texts from ``--key=value`` and ``--key value``.

    Raises:
        ValueError: for a stray word, a key without value, or a key with two different values.
    """
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise ValueError(f"stray word {word!r} on the command line (write --key=value)")
        if not equals:
            text = next(words, "--")
            if text.startswith("--"):
                raise ValueError(f"--{key} has no value (write --{key}=value)")
        if found.setdefault(key, text) != text:
            raise ValueError(f"--{key} is given twice: {found[key]!r} and {text!r}")
    return found


def split_files(text: str) -> list[str]:
    """Paths of ``config_files``, of which those with blanks stand in quotes.

    Raises:
        ValueError: for a quote that does not end.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"config_files {text!r}: {error}") from None


def parse_value(key: str, text: str) -> Any:
    """The value a text stands for: a Python literal, true, false, null, a yaml list, or itself."""
    if key in text_keys():
        return None if text.lower() in ("none", "null", "~") else text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = _yaml_list(text) if text[:1] in ("[", "{") else text
    return list(value) if isinstance(value, tuple) else value


def plain(key: str, value: Any, where: str) -> Any:
    """A value as yaml can hold it: paths as texts, NumPy's numbers as Python's, tuples as lists.

    Raises:
        ValueError: for what is no number, text, list or mapping of these, or a whole number that
            64 bits cannot hold.
    """
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError(f"{key} {where} is {value}; allowed: numbers below 2^63")
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, type):
        return value  # the class of a model is one, too
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Mapping):
        return {name: plain(f"{key}.{name}", each, where) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(key, each, where) for each in value]
    raise ValueError(
        f"{key} {where} is a {type(value).__name__}; allowed: numbers, texts, lists and mappings"
    )


def keys_read_by(model_class: type) -> frozenset[str]:
    """Keys that a user's class, or what stands beside it, reads as ``config["key"]``.

    They are found in the files of the class and its bases, where these are not of a package that
    is known here.
    """
    found = set()
    for each in model_class.__mro__:
        if each.__module__.partition(".")[0] in KNOWN_PACKAGES:
            continue
        try:
            text = Path(inspect.getfile(each)).read_text(encoding="utf-8")
        except (OSError, TypeError, ValueError):  # typed into a shell, or compiled
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                name, key = ast.unparse(node.value).rpartition(".")[2], node.slice.value
                if name == "config" and isinstance(key, str):
                    found.add(key)
    return frozenset(found)


def refuse_unknown(keys: Iterable[Any], where: str, also: Iterable[str] = ()) -> None:
    """Check keys, dotted ones included, against what anything reads.

    Args:
        keys: to check.
        where: they stand; for the message.
        also: further keys that are read.

    Raises:
        ValueError: for the first unknown key; says what it is called now, or names the nearest
            known one.
    """
    for key in keys:
        first, _, rest = str(key).partition(".")
        second, known = rest.partition(".")[0], known_keys().union(also)
        if first not in known:
            name, hint = first, did_you_mean(first, known)
        elif second and second not in SUBKEYS.get(first, {second}):
            name, hint = f"{first}.{second}", did_you_mean(second, SUBKEYS[first])
        else:
            continue
        if name in RENAMED:
            hint = f" (RecBole calls it {RENAMED[name]!r} now)"
        raise ValueError(f"unknown key {name!r}{hint} {where}")


def overlay(settings: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put a layer over settings, in place: ``a.b`` changes one entry, ``eval_args`` is merged.

    Raises:
        ValueError: if ``a.b`` is given where ``a`` holds no keys.
    """
    for key, value in layer.items():
        *parents, last = key.split(".")
        holder = settings
        for parent in parents:
            holder[parent] = {} if holder.get(parent) is None else holder[parent]
            holder = holder[parent]
            if not isinstance(holder, dict):
                raise ValueError(f"key {key!r}: {parent!r} is {holder!r}, which holds no keys")
        if last == "eval_args" and isinstance(value, dict):
            value = {**holder.get(last, {}), **value}
        holder[last] = value


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without ``WHEREABOUTS``."""
    return {key: value for key, value in settings.items() if key not in WHEREABOUTS}


def first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """The first key, with dots, under which two mappings differ, and both its values.

    A key that is in one only has the value ``None`` in the other.
    """
    for key in {**there, **here}:
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if inner := first_difference(old, new):
                return f"{key}.{inner[0]}", *inner[1:]
        elif old != new:
            return key, old, new
    return None


def keys_of_others(model: str) -> set[str]:
    """Keys that other models read, and this one does not."""
    own, others, general = set[str](), set[str](), set[str]()
    for file, content in _defaults().items():
        if file.parent.name != "model":
            general.update(content)
        elif file.stem == model:
            own.update(content)
        else:
            others.update(content)
    return others - own - general - UNLISTED.get(model, set())


def default_settings(model: str, dataset: str) -> dict[str, Any]:
    """What a run starts from where nothing is given, read without RecBole.

    Of the files that RecBole's Config looks for those of a sequential model, and then ours. Values
    that it sets beside them, and files of a few models that say which columns are loaded, are left
    out.
    """
    theirs, ours = recbole_folder() / "properties", find_properties()
    names = ("overall", f"model/{model}", "dataset/sample", f"dataset/{dataset}")
    files = [theirs / f"{name}.yaml" for name in (*names, "quick_start_config/sequential")]
    files += [ours / f"{name}.yaml" for name in names if name != "dataset/sample"]
    settings: dict[str, Any] = {}
    for file in files:
        if file.is_file():
            settings |= _defaults().get(file) or read_yaml(file)
    return settings


@functools.cache
def arguments_of_recbole(kind: str) -> tuple[str, ...]:
    """Keys that RecBole lists for its command line.

    Args:
        kind: ``"general"``, ``"training"``, ``"evaluation"`` or ``"dataset"``.
    """
    file = recbole_folder() / "utils" / "argument_list.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == f"{kind}_arguments":
            return tuple(ast.literal_eval(node.value))
    raise ValueError(f"{file} lists no {kind} arguments")


@functools.cache
def known_keys() -> frozenset[str]:
    """Every key that RecBole or we read."""
    named = {key for content in _defaults().values() for key in content}
    listed = (theirs for kind in ("general", "dataset") for theirs in arguments_of_recbole(kind))
    return frozenset(named.union(ELSEWHERE, listed) - {"config_file"})


@functools.cache
def text_keys() -> frozenset[str]:
    """Keys whose value is always a text, so that ``--gpu_id=0,1`` is no list."""
    types: dict[str, set[str]] = {"model": {"str"}, "dataset": {"str"}, "config_files": {"str"}}
    for content in _defaults().values():
        for key, value in content.items():
            if value is not None:
                types.setdefault(key, set()).add(type(value).__name__)
    kinds: set[type[RunSettings]] = {RunSettings, *SETTINGS.values()}
    for kind in kinds:
        for said in kind.keys().values():
            types.setdefault(said.name, set()).add(said.type)
    return frozenset(key for key, seen in types.items() if seen == {"str"})


@functools.cache
def _defaults() -> dict[Path, dict[str, Any]]:
    """Contents of RecBole's yaml files and ours."""
    theirs, ours = recbole_folder() / "properties", find_properties()
    files = [
        theirs / "overall.yaml",
        theirs / "dataset" / "sample.yaml",
        theirs / "dataset" / "ml-100k.yaml",
        *sorted(theirs.glob("quick_start_config/*.yaml")),
        *sorted(theirs.glob("model/*.yaml")),
        ours / "overall.yaml",
        *sorted(ours.glob("model/*.yaml")),
    ]
    return {file: yaml.load(file.read_text(encoding="utf-8"), Loader) or {} for file in files}


def _yaml_list(text: str) -> Any:
    """A list or mapping as yaml writes it, without quotes; else the text itself."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
