"""RecBole's Config with our layers; a key or value that nothing can honour is an error."""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config as RecBoleConfig

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.base.yaml_files import Loader, find_properties, read_yaml
from recbole_jepa4rec.config.model_settings import SETTINGS
from recbole_jepa4rec.config.registry import find_entry, find_model
from recbole_jepa4rec.config.run_settings import ATTRIBUTE_KEYS, RunSettings, refuse_theirs
from recbole_jepa4rec.config.syntax import (
    keys_of_others,
    known_keys,
    overlay,
    parse_command_line,
    parse_value,
    refuse_unknown,
)


class Config(RecBoleConfig):
    """Settings of one run, read as ``config["key"]``.

    Layers, later ones first: command line, ``config_dict``, files, our yaml of the data set, of the
    model, ``overall.yaml``, RecBole's own. ``sys.argv`` is never read.

    Args:
        model: name or class; else the key ``model`` of a layer.
        dataset: name, several as a list or ``"A,B"``; else the key ``dataset`` of a layer.
        config_file_list: yaml files.
        config_dict: settings; texts stand for values as on the command line.
        command_line: ``--key=value`` words; ``--config_files="a.yaml b.yaml"`` adds files.

    Raises:
        ValueError: for an unknown model, key or value, or an unreadable file.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | Sequence[str] | None = None,
        config_file_list: Sequence[str | Path] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        command_line: Sequence[str] = (),
    ) -> None:
        self._arguments = parse_command_line(command_line)
        files = [*(config_file_list or ()), *shlex.split(self._arguments.pop("config_files", ""))]
        self._layers: list[dict[str, Any]] = []
        self._sources: list[str] = []
        super().__init__(model, dataset, files, config_dict)

    def given(self, key: str) -> bool:
        """Whether a file, the dict or the command line sets a key or a part of it."""
        names = {name for layer in self._layers for name in layer}
        return any(name.split(".")[0] == key for name in names)

    def unread_keys(self) -> list[str]:
        """Given keys that only other models' yaml files hold."""
        return sorted(filter(self.given, keys_of_others(self.model)))

    def external(self) -> dict[str, Any]:
        """The resolved settings that give an equal Config when given back, ``run_dir`` left out."""
        skipped = {"run_dir", "resume", "config_files", "model", "dataset"}
        if not self.given("gpu_id"):
            skipped.add("gpu_id")  # a default must not become a choice
        settings = {
            key: value
            for key, value in self._resolved.items()
            if key in known_keys() and key not in skipped
        }
        dataset = self._sources if len(self._sources) > 1 else self.dataset
        return copy.deepcopy({"model": self.model, "dataset": dataset, **settings})

    def save(self, path: str | Path) -> None:
        """Write ``external()`` as yaml.

        Raises:
            OSError: if the file cannot be written.
        """
        with atomic_write(Path(path), "w") as file:
            yaml.safe_dump(self.external(), file, sort_keys=False, allow_unicode=True)

    def with_settings(self, settings: Mapping[str, Any]) -> Config:
        """A copy with other values for a part of the run; what was asked for stays.

        So ``given`` and ``external`` of the copy answer as those of the whole run, and everything
        that RecBole has put here is there.

        Raises:
            ValueError: for an unknown key.
        """
        refuse_unknown(settings, "among a run's own settings")
        other = copy.copy(self)
        other.final_config_dict = {**self.final_config_dict, **settings}
        other._resolved = {**self._resolved}
        return other

    def settle(self, found: Mapping[str, Any]) -> None:
        """Fill in what only the data could tell; it becomes a part of ``external``."""
        self.final_config_dict.update(copy.deepcopy(dict(found)))
        self._resolved.update(copy.deepcopy(dict(found)))

    def _build_yaml_loader(self) -> type:
        return Loader

    def _load_config_files(self, file_list: Sequence[str | Path]) -> dict[str, Any]:
        for file in file_list:
            self._add_layer(read_yaml(file), f"in {file}")
        return {key: value for layer in self._layers for key, value in layer.items()}

    def _load_variable_config_dict(self, config_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        return self._add_layer(config_dict or {}, "in config_dict")

    def _load_cmd_line(self) -> dict[str, Any]:
        return self._add_layer(self._arguments, "on the command line")

    def _add_layer(self, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Check, parse and remember one layer of given settings."""
        refuse_unknown(content, where)
        for key, value in content.items():
            if isinstance(value, dict):
                refuse_unknown((f"{key}.{name}" for name in value), where)
        layer = {
            key: parse_value(key, value) if isinstance(value, str) else copy.deepcopy(value)
            for key, value in content.items()
        }
        self._layers.append(layer)
        return layer

    def _get_model_and_dataset(
        self, model: str | type | None, dataset: str | Sequence[str] | None
    ) -> tuple[str, type, str]:
        model = model or self.external_config_dict.get("model")
        dataset = dataset or self.external_config_dict.get("dataset")
        for name, value in (("model", model), ("dataset", dataset)):
            if not value:
                raise ValueError(f"no {name} is named (write --{name}=NAME)")
        model_class = model if isinstance(model, type) else self._find_entry(str(model))
        self._sources = dataset.split(",") if isinstance(dataset, str) else [*map(str, dataset)]
        for source in self._sources:
            if not source or source in (".", "..") or {*source} & {*"/\\+"}:
                raise ValueError(f"data set {source!r} is not the name of a folder in data_path")
            if self._sources.count(source) > 1:
                raise ValueError(f"data set {source!r} is named twice")
        return model_class.__name__, model_class, "+".join(self._sources)

    def _find_entry(self, entry: str) -> type:
        """The class of a model's name; a loss that the name asks for becomes a layer."""
        name, settings = find_entry(entry)
        for key, value in settings.items():
            given = [layer[key] for layer in self._layers if key in layer]
            if given and given[-1] != value:
                raise ValueError(f"model {entry!r} and {key} {given[-1]!r} contradict each other")
        self._layers.append(settings)
        return find_model(name)

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        folder = find_properties()
        for name in ("overall", f"model/{model}", f"dataset/{dataset}"):
            if (file := folder / f"{name}.yaml").is_file():
                self.internal_config_dict.update(read_yaml(file))

    def _get_final_config_dict(self) -> dict[str, Any]:
        settings = copy.deepcopy(self.internal_config_dict)
        for layer in self._layers:
            overlay(settings, copy.deepcopy(layer))
        if (
            settings.get("loss_type") == "CE"
            and not hasattr(self.model_class, "input_type")
            and not self.given("train_neg_sample_args")
        ):
            settings["train_neg_sample_args"] = None  # RecBole's default is refused by RecBole
        self._check(settings)
        self._resolved = copy.deepcopy(settings)
        return settings

    def _check(self, settings: dict[str, Any]) -> None:
        """Refuse what the model or the evaluation cannot honour."""
        kind = SETTINGS.get(self.model, RunSettings)
        defaults = self.internal_config_dict
        theirs = {key: defaults[key] for key in defaults if key not in kind.model_fields}
        refuse_theirs(settings, theirs)
        typed = kind.of(settings)
        settings["benchmark_filename"] = typed.benchmark_filename
        if len(self._sources) > 1:
            self._refuse_several_sources(typed)

    def _refuse_several_sources(self, typed: RunSettings) -> None:
        """Refuse several data sets where one alone will do."""
        names = ", ".join(self._sources)
        if typed.benchmark_filename:
            raise ValueError(f"benchmark_filename needs one data set, and {names} are named")
        for key in ATTRIBUTE_KEYS:
            if key in self.internal_config_dict:
                raise ValueError(
                    f"model {self.model!r} needs {key}, and several data sets share no attributes"
                )

    def _set_default_parameters(self) -> None:
        """RecBole's, which knows no data set but its own under the name ml-100k, nor several."""
        folder = Path(self.final_config_dict["data_path"]) / self.dataset
        super()._set_default_parameters()
        if folder.is_dir():
            self.final_config_dict["data_path"] = str(folder)
        several = len(self._sources) > 1
        self.final_config_dict["source_datasets"] = self._sources if several else None

    def _init_device(self) -> None:
        """Leave CUDA_VISIBLE_DEVICES as it is set; RecBole overwrites it (its issue 1955)."""
        settings = self.final_config_dict
        gpu_id = str(settings["gpu_id"])
        if self.given("gpu_id"):
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", gpu_id)
        on_gpu = settings["use_gpu"] and gpu_id != "" and torch.cuda.is_available()
        settings["device"] = torch.device("cuda" if on_gpu else "cpu")
        settings.update(gpu_id=gpu_id, single_spec=True, local_rank=0)
