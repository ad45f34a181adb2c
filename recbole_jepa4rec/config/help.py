"""What commands answer to ``--help``, and what is known of models, from the settings classes."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

from recbole_jepa4rec.config.registry import (
    CAUSAL_MODELS,
    MODELS,
    SETTINGS,
    Entry,
    refuse_unknown_model,
    sequential_models,
)
from recbole_jepa4rec.config.run_settings import RunSettings
from recbole_jepa4rec.config.settings import Settings

WIDTH = 80
KEYS = (
    "Every other key of a model or run is given in the same way; `recbole-jepa4rec models NAME` "
    "lists a model's, docs/keys.md all of them."
)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether a command line asks what can be said."""
    return not {"-h", "--help"}.isdisjoint(words)


def help_of(usage: str, about: str, kind: type[Settings] = RunSettings) -> str:
    """What a command answers: how it is called, what it does, and its keys.

    Args:
        usage: the words, without the program's name.
        about: a sentence.
        kind: whose keys are the command's own.
    """
    head = f"usage: recbole-jepa4rec {usage}\n\n{textwrap.fill(about, WIDTH)}\n"
    return f"{head}\n{keys_of(kind)}\n{textwrap.fill(KEYS, WIDTH)}"


def keys_of(kind: type[Settings], without: Collection[str] = ()) -> str:
    """The keys of a settings class, each with its meaning, what is allowed and its default."""
    lines = []
    for key, said in kind.keys().items():
        default = (
            ",".join(map(str, said.default)) if isinstance(said.default, tuple) else said.default
        )
        shown = "" if default in (None, "") else f" (default {default})"
        text = f"{said.meaning} {said.allowed[:1].upper()}{said.allowed[1:]}{shown}."
        indent = " " * 6
        body = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
        lines.append(f"  --{key}\n{body}\n")
    return "".join(lines)


def list_models() -> str:
    """All models, ours with what they need and where they come from."""
    lines = ["Ours:"]
    for name, entry in MODELS.items():
        lines.append(f"  {name:<11} {_needs(entry):<44} {entry.source}")
    theirs = [name for name in sequential_models() if name not in MODELS]
    shared = ", ".join(CAUSAL_MODELS)
    for title, names in (
        ("RecBole's:", ", ".join(theirs)),
        ("Of these, one causal pass a user trains on all prefixes of:", shared),
    ):
        folded = textwrap.fill(names, WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines += ["", title, folded]
    return "\n".join(lines)


def describe_model(name: str) -> str:
    """What a model is and the keys that it reads.

    Raises:
        ValueError: if there is no such model.
    """
    refuse_unknown_model(name)
    entry = MODELS.get(name)
    what = f"{_needs(entry)}; {entry.source}" if entry else "RecBole's"
    kind = SETTINGS.get(name)
    keys = keys_of(kind, without=RunSettings.keys()) if kind else ""
    theirs = "" if entry else f"RecBole's own keys stand in its properties/model/{name}.yaml.\n"
    every = "`recbole-jepa4rec run --help` lists the keys of every run."
    return f"{name}: {what}\n\n{theirs}{keys}\n{every}"


def _needs(entry: Entry) -> str:
    """What a model of ours reads and needs, in words."""
    said = ["reads text" if entry.reads_text else "item ids alone"]
    if entry.needs_retriever:
        said.append("needs a retriever")
    said.append("is trained" if entry.in_phases else "trains nothing")
    return ", ".join(said)
