"""RecBole's Config with our layers; a key or value that nothing can honour is an error."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config as RecBoleConfig

from recbole_jepa4rec.base.files import atomic_write
from recbole_jepa4rec.base.trackers import refuse_missing
from recbole_jepa4rec.base.yaml_files import Loader, as_yaml, find_properties, read_yaml
from recbole_jepa4rec.config.layers import Layers
from recbole_jepa4rec.config.recbole_keys import refuse_idle
from recbole_jepa4rec.config.registry import LOSSES, find_model
from recbole_jepa4rec.config.syntax import deciding, keys_of_others, known_keys, refuse_unknown


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
        files = config_file_list or ()
        self._layers = Layers(model, dataset, files, config_dict, command_line)
        super().__init__(model, dataset)

    def given(self, key: str) -> bool:
        """Whether a file, the dict or the command line sets a key or a part of it."""
        return self._layers.given(key)

    def refuse_idle(self) -> None:
        """Refuse what a run would take and not read, and a GPU or library that is not there.

        Raises:
            ValueError: for the first such key; says why it has no effect.
        """
        asks_gpu = self["use_gpu"] and self._layers.typed("use_gpu")
        if asks_gpu and self["device"].type == "cpu":
            raise ValueError("use_gpu True must be False: torch finds no GPU here")
        refuse_missing(self._resolved)
        refuse_idle(self.model, self._resolved, self.internal_config_dict)

    def unread_keys(self) -> list[str]:
        """Given keys that only other models' yaml files hold."""
        return sorted(filter(self.given, keys_of_others(self.model)))

    def external(self) -> dict[str, Any]:
        """The resolved settings that give an equal Config when given back, ``run_dir`` left out."""
        skipped = {"run_dir", "resume", "config_files", "model", "dataset"}
        if not self.given("gpu_id"):
            skipped.add("gpu_id")  # a default must not become a choice
        kept = known_keys() | self._layers.own_keys
        settings = {
            key: value
            for key, value in self._resolved.items()
            if key in kept and key not in skipped
        }
        dataset = self._layers.sources if len(self._layers.sources) > 1 else self.dataset
        return copy.deepcopy({"model": self.model, "dataset": dataset, **settings})

    def deciding(self) -> dict[str, Any]:
        """What of ``external()`` decides the result, as ``config.yaml`` gives it back."""
        return deciding(yaml.load(as_yaml(self.external()), Loader))

    def save(self, path: str | Path) -> None:
        """Write ``external()`` as yaml.

        Raises:
            OSError: if the file cannot be written.
        """
        with atomic_write(Path(path), "w") as file:
            file.write(as_yaml(self.external()))

    def with_settings(self, settings: Mapping[str, Any]) -> Config:
        """A copy with other values for a part of the run; what was asked for stays.

        So ``given`` and ``external`` of the copy answer as those of the whole run, and everything
        that RecBole has put here is there.

        Raises:
            ValueError: for an unknown key.
        """
        refuse_unknown(settings, "among a run's own settings", self._layers.own_keys)
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

    def _load_cmd_line(self) -> dict[str, Any]:
        """Nothing: RecBole would read ``sys.argv``."""
        return {}

    def _get_model_and_dataset(
        self, model: str | type | None, dataset: str | Sequence[str] | None
    ) -> tuple[str, type, str]:
        name = self._layers.model
        model_class = model if isinstance(model, type) else find_model(name)
        return name, model_class, self._layers.dataset

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        folder = find_properties()
        for name in ("overall", f"model/{model}", f"dataset/{dataset}"):
            if (file := folder / f"{name}.yaml").is_file():
                self.internal_config_dict.update(read_yaml(file))

    def _get_final_config_dict(self) -> dict[str, Any]:
        settings = self._layers.over(self.internal_config_dict)
        has_input_type = hasattr(self.model_class, "input_type")
        if not has_input_type and "loss_type" not in settings:
            allowed = " or ".join(LOSSES)
            raise ValueError(f"model {self.model!r} has no input_type: loss_type must be {allowed}")
        if (
            settings.get("loss_type") == "CE"
            and not has_input_type
            and not self.given("train_neg_sample_args")
        ):
            settings["train_neg_sample_args"] = None  # RecBole's default is refused by RecBole
        self._layers.check(settings, self.internal_config_dict)
        self._resolved = copy.deepcopy(settings)
        return settings

    def _set_default_parameters(self) -> None:
        """RecBole's, which knows no data set but its own under the name ml-100k, nor several."""
        folder = Path(self.final_config_dict["data_path"]) / self.dataset
        super()._set_default_parameters()
        if folder.is_dir():
            self.final_config_dict["data_path"] = str(folder)
        several = len(self._layers.sources) > 1
        self.final_config_dict["source_datasets"] = self._layers.sources if several else None

    def _init_device(self) -> None:
        """Leave CUDA_VISIBLE_DEVICES as it is set; RecBole overwrites it (its issue 1955)."""
        settings = self.final_config_dict
        gpu_id = str(settings["gpu_id"])
        if self.given("gpu_id"):
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", gpu_id)
        on_gpu = settings["use_gpu"] and gpu_id != "" and torch.cuda.is_available()
        settings["device"] = torch.device("cuda" if on_gpu else "cpu")
        settings.update(gpu_id=gpu_id, single_spec=True, local_rank=0)
