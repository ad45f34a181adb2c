"""What is asked for, understood and checked before RecBole, whose import takes seconds."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.yaml_files import read_yaml
from recbole_jepa4rec.config.recbole_keys import (
    refuse_idle,
    refuse_negatives,
    refuse_theirs,
    refuse_transform,
)
from recbole_jepa4rec.config.registry import SETTINGS, find_entry, is_known, training_targets
from recbole_jepa4rec.config.run_settings import ATTRIBUTE_KEYS, RunSettings
from recbole_jepa4rec.config.syntax import (
    default_settings,
    keys_of_others,
    keys_read_by,
    overlay,
    parse_command_line,
    parse_value,
    plain,
    refuse_unknown,
    split_files,
)


class Layers:
    """Given settings in layers, later ones first: command line, dictionary, files.

    Args:
        model: name or class; else the key ``model`` of a layer.
        dataset: name, several as a list or ``"A,B"``; else the key ``dataset`` of a layer.
        files: yaml files.
        config_dict: settings; texts stand for values as on the command line.
        command_line: ``--key=value`` words; ``--config_files="a.yaml b.yaml"`` adds files.

    Attributes:
        model: the model's name.
        sources: names of the data sets.
        own_keys: that a user's class of a model reads beside those of RecBole and ours.

    Raises:
        ValueError: for an unknown model or key, an unreadable file, or where either is not named.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | Sequence[str] | None = None,
        files: Sequence[str | Path] = (),
        config_dict: Mapping[str, Any] | None = None,
        command_line: Sequence[str] = (),
    ) -> None:
        words = parse_command_line(command_line)
        files = [*files, *split_files(words.pop("config_files", ""))]
        contents: dict[str, Mapping[str, Any]] = {f"in {file}": read_yaml(file) for file in files}
        contents |= {"in config_dict": config_dict or {}, "on the command line": words}
        self._layers: list[dict[str, Any]] = [*map(dict, contents.values())]
        model = model or self._last("model")
        dataset = dataset or self._last("dataset")
        self.own_keys = keys_read_by(model) if isinstance(model, type) else frozenset[str]()
        self._layers = [self._checked(layer, where) for where, layer in contents.items()]
        self._words, self._typed = words, {*(config_dict or {}), *words}
        for name, value in (("model", model), ("dataset", dataset)):
            if not value:
                raise ValueError(f"no {name} is named (write --{name}=NAME)")
        self.model = model.__name__ if isinstance(model, type) else self._named(str(model))
        self.sources = _sources(dataset)

    @property
    def dataset(self) -> str:
        """What RecBole calls the data set: its name, several joined by ``+``."""
        return "+".join(self.sources)

    def given(self, key: str) -> bool:
        """Whether a layer sets a key or a part of it."""
        names = {name for layer in self._layers for name in layer}
        return any(name.split(".")[0] == key for name in names)

    def typed(self, key: str) -> bool:
        """Whether the dictionary or the command line sets a key, and not a file alone."""
        return key in self._typed

    def over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The layers laid over defaults, which stay as they are.

        Raises:
            ValueError: if ``a.b`` is given where ``a`` holds no keys.
        """
        settings = copy.deepcopy(dict(defaults))
        for layer in self._layers:
            overlay(settings, copy.deepcopy(layer))
        return settings

    def check(self, settings: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        """Refuse what the model or the evaluation cannot honour; settle the names of a split.

        Args:
            settings: all of them.
            defaults: what they are where nothing is given.

        Raises:
            ValueError: for the first value that cannot be used.
        """
        kind = SETTINGS.get(self.model, RunSettings)
        theirs = {key: defaults[key] for key in defaults if key not in kind.model_fields}
        refuse_theirs(settings, theirs)
        settings["benchmark_filename"] = kind.of(settings).benchmark_filename
        refuse_transform(self.model, settings, defaults.get("transform"))
        refuse_negatives(self.model, settings, self.given("train_neg_sample_args"))
        targets, allowed = settings.get("training_targets"), training_targets(self.model)
        if targets is not None and targets not in allowed:
            raise ValueError(
                f"training_targets is {targets!r}; allowed for {self.model}: "
                f"{', '.join(allowed) or 'none, nothing is trained'}"
            )
        if len(self.sources) == 1:
            return
        if settings["benchmark_filename"]:
            names = ", ".join(self.sources)
            raise ValueError(f"benchmark_filename needs one data set, and {names} are named")
        for key in ATTRIBUTE_KEYS:
            if key in defaults:
                raise ValueError(
                    f"model {self.model!r} needs {key}, and several data sets share no attributes"
                )

    def refuse_early(self) -> None:
        """Refuse what RecBole is not needed to refuse: values, and data sets that are not there.

        What a run would not read is refused as well; of the keys of other models those on the
        command line, for files may be written for several.

        Raises:
            ValueError: for the first value that cannot be used.
        """
        defaults = default_settings(self.model, self.dataset)
        settings = self.over(defaults)
        self.check(settings, defaults)
        refuse_idle(self.model, settings, defaults)
        unread = keys_of_others(self.model) - {"training_targets"}  # which every model may be given
        for key, text in self._words.items():
            if is_known(self.model) and key.partition(".")[0] in unread:
                value = parse_value(key, text)
                raise ValueError(f"{key} {value!r} has no effect: {self.model} does not read it")
        for source in self.sources:
            if source != "ml-100k":  # which RecBole has
                refuse_missing_folder(source, Path(settings["data_path"], source))

    def _checked(self, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A layer whose keys are known, its texts parsed."""
        refuse_unknown(content, where, self.own_keys)
        for key, value in content.items():
            if isinstance(value, dict):
                refuse_unknown((f"{key}.{name}" for name in value), where, self.own_keys)
        return {
            key: plain(key, parse_value(key, value) if isinstance(value, str) else value, where)
            for key, value in content.items()
        }

    def _last(self, key: str) -> Any:
        """What the last layer to set a key gives it; ``None`` where none does."""
        return next((layer[key] for layer in reversed(self._layers) if key in layer), None)

    def _named(self, entry: str) -> str:
        """The model of a name; a loss that the name asks for becomes a layer."""
        name, settings = find_entry(entry)
        for key, value in settings.items():
            given = [layer[key] for layer in self._layers if key in layer]
            if given and given[-1] != value:
                raise ValueError(f"model {entry!r} and {key} {given[-1]!r} contradict each other")
        self._layers.append(settings)
        return name


def refuse_missing_folder(name: str, folder: Path) -> None:
    """Refuse a data set whose folder is not there.

    Raises:
        ValueError: names the nearest spelling.
    """
    if folder.is_dir():
        return
    others = [path.name for path in folder.parent.glob("*") if path.is_dir()]
    hint = did_you_mean(name, [*others, "ml-100k"])
    raise ValueError(f"no data set {name!r} in {folder.parent}{hint}")


def _sources(dataset: str | Sequence[str]) -> list[str]:
    """Names of data sets, checked."""
    names = dataset.split(",") if isinstance(dataset, str) else [*map(str, dataset)]
    for name in names:
        if not name or name in (".", "..") or {*name} & {*"/\\+"}:
            raise ValueError(f"data set {name!r} is not the name of a folder in data_path")
        if names.count(name) > 1:
            raise ValueError(f"data set {name!r} is named twice")
    return names
