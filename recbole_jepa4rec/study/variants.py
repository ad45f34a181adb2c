"""What rows of a comparison stand for: models, with presets or settings of an experiment's."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.config.registry import find_entry
from recbole_jepa4rec.config.syntax import (
    arguments_of_recbole,
    keys_of_others,
    refuse_unknown,
    split_files,
)
from recbole_jepa4rec.study.study import COMPARED

OF_ALL_ROWS = {
    *("model", "dataset", "data_path", "seed", "run_dir", "resume", "config_files"),
    *COMPARED,
    *arguments_of_recbole("dataset"),
    "item_text_fields",
} - {"MAX_ITEM_LIST_LENGTH"}
"""Settings that no preset may have: its row would not answer the question of the others."""

OF_TARGET = ("train_fraction", "reveal_ratio", "benchmark_filename")
"""Settings that a run of pre-training on other data sets is not given."""


@dataclass(frozen=True)
class Variant:
    """A model, with or without presets; one row of the tables.

    Where it is pre-trained on other data sets that is a run of its own, whose weights its run on
    the data set starts from.

    Attributes:
        name: what the row is called, ``JEPA4Rec:jepa4rec-strong``; a file by its name alone.
        model: as a run is given it, ``SASRec-BPR``.
        presets: yaml files over the model's settings, later ones over earlier ones.
        unread: settings that other models read and this one does not.
        own: settings over all others, as texts.
        on_target: more of these, of the run on the data set alone.
        sources: data sets that it is pre-trained on.
        starts_trained: whether it may start from a checkpoint in their stead.
        series: what it shares a line of a plot with: the entry it was made of.
        x: its place on that line.
        published_as: what the paper's figures call it.
    """

    name: str
    model: str
    presets: tuple[Path, ...]
    unread: frozenset[str]
    own: Mapping[str, str] = field(default_factory=dict)
    on_target: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    starts_trained: bool = False
    series: str = ""
    x: float = 0.0
    published_as: str = ""

    @classmethod
    def of(cls, entry: str) -> Variant:
        """Understand ``MODEL`` or ``MODEL:PRESET:PRESET``, and read the presets.

        Raises:
            ValueError: for a part that is empty, unknown or written twice, a file that cannot be
                read, or a setting in it that is not one row's own or that the model does not read.
        """
        model, *parts = entry.split(":")
        if not all([model, *parts]):
            raise ValueError(f"model_list {entry!r} holds an empty name")
        files = [_preset_file(part) for part in parts]
        for part, file in zip(parts, files, strict=True):
            if files.count(file) > 1:
                raise ValueError(f"model_list {entry!r} names preset {part!r} twice")
        name = find_entry(model)[0]
        variant = cls(row_name(entry), model, tuple(files), frozenset(keys_of_others(name)))
        for file in files:
            content, where = read_yaml(file), f"in {file}"
            refuse_unknown(content, where)
            for key in content:
                if key.partition(".")[0] in OF_ALL_ROWS:
                    allowed = "allowed in a preset: settings of the model and its training"
                    raise ValueError(f"key {key!r} {where} is of all rows; {allowed}")
                if key.partition(".")[0] in variant.unread:
                    raise ValueError(f"key {key!r} {where} has no effect: {name} does not read it")
        return variant

    @property
    def folder(self) -> str:
        """Name of the folder of its runs; a colon would be a machine to rsync and scp."""
        return self.name.replace(":", "+")

    @property
    def pretraining(self) -> str:
        """Name, and folder, of the run that pre-trains it on its sources."""
        row = self.name if self.own else self.series
        return f"pretraining/{row.replace(':', '+')}+on+{'+'.join(self.sources)}"

    def settings(
        self, texts: Mapping[str, str], unread: Collection[str], start: str | None
    ) -> dict[str, str]:
        """What its runs on the data set are given, as texts.

        Args:
            texts: what every run is given; keys that the model does not read are left out.
            unread: keys that no model of the comparison reads; they stay, to be refused.
            start: weights that it starts from, if it starts trained.
        """
        given = {**self._shared(texts, unread), **self.on_target}
        if start is None or not self.starts_trained:
            return given
        if "encoder_checkpoint" not in self.unread:
            given["encoder_checkpoint"] = "None"  # which pre-training has started from
        return {**given, "checkpoint": start}

    def pretraining_settings(
        self, texts: Mapping[str, str], unread: Collection[str]
    ) -> dict[str, str]:
        """What its pre-training on other data sets is given; see ``settings``."""
        texts = {key: text for key, text in texts.items() if key not in OF_TARGET}
        stage = {"dataset": ",".join(self.sources), "train_stage": "pretrain"}
        return {**self._shared(texts, unread), **stage}

    def _shared(self, texts: Mapping[str, str], unread: Collection[str]) -> dict[str, str]:
        """What both stages are given."""
        skipped = self.unread.difference(unread)
        given = {key: text for key, text in texts.items() if key.partition(".")[0] not in skipped}
        if self.presets:
            files = [*split_files(texts.get("config_files", "")), *map(str, self.presets)]
            given["config_files"] = shlex.join(files)
        return {"model": self.model, **given, **self.own}


def row_name(entry: str) -> str:
    """An entry with files by their names alone: ``JEPA4Rec:smaller`` for ``…:my/smaller.yaml``."""
    model, *parts = entry.split(":")
    return ":".join([model, *(Path(part).stem if _is_file(part) else part for part in parts)])


def _is_file(preset: str) -> bool:
    return preset.endswith((".yaml", ".yml"))


def _preset_file(preset: str) -> Path:
    """The file of a preset: one of ours, by its name, or the user's."""
    if _is_file(preset):
        return Path(preset)
    ours = {file.stem: file for file in sorted(find_properties().glob("preset/*.yaml"))}
    if preset not in ours:
        hint = did_you_mean(preset, ours)
        raise ValueError(
            f"unknown preset {preset!r}{hint} (allowed: {', '.join(ours)}, or a file NAME.yaml)"
        )
    return ours[preset]
