"""The only file that knows names, and the only one that adds to RecBole's own tables."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from recbole_jepa4rec.base.events import EventWriter
from recbole_jepa4rec.base.spelling import did_you_mean
from recbole_jepa4rec.base.yaml_files import find_properties
from recbole_jepa4rec.config.protocol import LIST_METRICS, RANK_METRICS
from recbole_jepa4rec.config.run_settings import Loss
from recbole_jepa4rec.config.settings import Keys

for _alias, _name in {"float_": "float64", "complex_": "complex128", "unicode_": "str_"}.items():
    if _alias not in np.__dict__:  # numpy 2 dropped them; RecBole's Config still reads them
        setattr(np, _alias, getattr(np, _name))

DATASET = "recbole_jepa4rec.data.dataset:SequentialTextDataset"
PHASE_TRAINER = "recbole_jepa4rec.training.phase_trainer:PhaseTrainer"
WITH_PROTOCOL = "recbole_jepa4rec.training.recbole_loop:with_protocol"
FULL_MRR = "recbole_jepa4rec.evaluation.metrics:FullMRR"
OWN_METRIC = "recbole_jepa4rec.evaluation.metrics:OwnMetric"
"""What stands on higher floors and is looked up by name when it is first asked for."""


@dataclass(frozen=True)
class Entry:
    """What is known of a model of ours before its class, which is heavy, is imported.

    Attributes:
        target: where its class is, ``module:Class``.
        reads_text: whether it knows items by their text; with a ``text_weight`` of 0 it reads none.
        training_targets: what one pass over a history can train, of a model trained in phases;
            nothing, of one that only counts.
        needs_retriever: whether another model's ranking is handed to it.
    """

    target: str
    reads_text: bool = False
    training_targets: tuple[str, ...] = ()
    needs_retriever: bool = False

    @property
    def in_phases(self) -> bool:
        """Whether it is trained in phases, by a trainer of ours."""
        return bool(self.training_targets)


MODELS = {
    "JEPA4Rec": Entry("recbole_jepa4rec.model.jepa4rec:JEPA4Rec", True, ("random", "all_prefixes")),
    "RecFormer": Entry(
        "recbole_jepa4rec.model.recformer:RecFormer", True, ("random", "all_prefixes")
    ),
    "UniSRec": Entry("recbole_jepa4rec.model.unisrec:UniSRec", True, ("all_prefixes",)),
    "VQRec": Entry("recbole_jepa4rec.model.vqrec:VQRec", True, ("all_prefixes",)),
    "LlamaRec": Entry(
        "recbole_jepa4rec.model.llamarec:LlamaRec", True, ("random",), needs_retriever=True
    ),
    "STAR": Entry("recbole_jepa4rec.model.star:STAR", True),
    "Popularity": Entry("recbole_jepa4rec.model.counting:Popularity"),
    "Markov": Entry("recbole_jepa4rec.model.counting:Markov"),
}
"""Our models."""

TEXT_MODELS = tuple(name for name, entry in MODELS.items() if entry.reads_text)
PHASED_MODELS = tuple(name for name, entry in MODELS.items() if entry.in_phases)

SEQUENTIAL = "recbole.model.sequential_recommender"

LOSSES = get_args(Loss)


def find_model(name: str) -> type:
    """Our model of that name, else RecBole's sequential one.

    Raises:
        ValueError: if there is none; names the nearest spelling, or says that it is not sequential.
    """
    if name in MODELS:
        return _resolve(MODELS[name].target)
    theirs = {
        key: value
        for key, value in vars(import_module(SEQUENTIAL)).items()
        if isinstance(value, type)
    }
    if name in theirs:
        return theirs[name]
    folder = Path(import_module("recbole.model").__path__[0])
    others = {file.stem for file in folder.glob("*_recommender/*.py")} - {*map(str.lower, theirs)}
    if name.lower() in others:
        raise ValueError(f"model {name!r} is not sequential; only sequential models can run here")
    raise ValueError(f"unknown model {name!r}{did_you_mean(name, [*MODELS, *theirs])}")


def find_entry(entry: str) -> tuple[str, dict[str, str]]:
    """The model, and the settings, that a name in a list of models stands for.

    ``SASRec-BPR`` is SASRec with ``loss_type: BPR``; a name without such an ending is the model's.

    Raises:
        ValueError: if there is no such model, or its loss cannot be chosen in this way.
    """
    name, dash, loss = entry.partition("-")
    find_model(name)
    if not dash:
        return name, {}
    if not has_loss_type(name):
        raise ValueError(f"model {entry!r}: {name} has one loss only (write {name})")
    if loss not in LOSSES:
        allowed = ", ".join(f"{name}-{known}" for known in LOSSES)
        raise ValueError(f"model {entry!r}: no such loss (allowed: {name}, {allowed})")
    return name, {"loss_type": loss}


def has_loss_type(name: str) -> bool:
    """Whether the loss of a model can be chosen: its yaml of RecBole's has a ``loss_type``."""
    properties = Path(import_module("recbole").__path__[0], "properties", "model", f"{name}.yaml")
    if name in MODELS or not properties.is_file():
        return False
    return re.search(r"^loss_type *:", properties.read_text(encoding="utf-8"), re.M) is not None


def row_label(name: str, loss_type: str | None) -> str:
    """What tables call a model that does not say so itself: its name and, where it has one, loss.

    SASRec trained by cross-entropy and by BPR are different baselines, so that the name must tell.
    """
    return f"{name}-{loss_type}" if has_loss_type(name) else name


def find_trainer(model_class: type, config: Keys) -> type:
    """The trainer of a model: ours, or RecBole's with our protocol mixed in."""
    name = model_class.__name__
    if name in PHASED_MODELS:
        return _resolve(PHASE_TRAINER)
    get_trainer = import_module("recbole.utils").get_trainer
    return _resolve(WITH_PROTOCOL)(get_trainer(config["MODEL_TYPE"], name))


def find_dataset(model_class: type) -> type:
    """The data set of every model in our runner.

    Raises:
        ValueError: if RecBole gives the model a data set class of its own.
    """
    name = model_class.__name__
    if name not in MODELS and hasattr(import_module("recbole.data.dataset"), f"{name}Dataset"):
        raise ValueError(f"model {name!r} needs RecBole's own {name}Dataset, which cannot run here")
    return _resolve(DATASET)


def register() -> None:
    """Let RecBole's own look-ups find our models, trainers, data sets, yaml files and metrics.

    Classes are resolved at their first use. RecBole's models see no difference.
    """
    import_module(SEQUENTIAL)
    for name, entry in MODELS.items():
        alias = f"{SEQUENTIAL}.{name.lower()}"
        module = ModuleType(alias, f"Alias of {entry.target}.")
        module.__spec__ = ModuleSpec(alias, None)  # get_model asks find_spec, which reads this
        _answer(module, {name: functools.partial(_resolve, entry.target)})
        sys.modules[alias] = module
    trainers = {f"{name}Trainer": functools.partial(_own_trainer, name) for name in MODELS}
    _answer(import_module("recbole.trainer"), trainers)
    datasets = {f"{name}Dataset": functools.partial(_resolve, DATASET) for name in MODELS}
    _answer(import_module("recbole.data.dataset"), datasets)
    _register_metrics()
    _register_properties()
    _register_events()


def _resolve(target: str) -> Any:
    """What ``module:name`` names."""
    module, name = target.split(":")
    return getattr(import_module(module), name)


def _own_trainer(name: str) -> type:
    if name in PHASED_MODELS:
        return _resolve(PHASE_TRAINER)
    return _resolve(WITH_PROTOCOL)(import_module("recbole.trainer").Trainer)


def _answer(module: ModuleType, names: Mapping[str, Callable[[], type]]) -> None:
    """Give a module attributes that are computed when they are asked for."""

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in names:
            return names[name]()
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__dict__["__getattr__"] = __getattr__


def _register_metrics() -> None:
    """Add the uncut reciprocal rank, and the metrics that RecBole lacks, to its tables."""
    tables = import_module("recbole.evaluator.register")
    lacking = [name for name in (*RANK_METRICS, *LIST_METRICS) if name not in tables.metrics_dict]
    for name, target in {"fullmrr": FULL_MRR, **dict.fromkeys(lacking, OWN_METRIC)}.items():
        metric: Any = _resolve(target)
        tables.metrics_dict[name] = metric
        tables.metric_information[name] = metric.metric_need
        tables.metric_types[name] = metric.metric_type


def _register_properties() -> None:
    """Add a layer to RecBole's Config: the yaml file of our model, if it is one of ours."""
    from recbole.config import Config

    def load_ours_too(load: Callable[..., None]) -> Callable[..., None]:
        def load_internal(self: Any, model: str, model_class: type, dataset: str) -> None:
            load(self, model, model_class, dataset)
            if model in MODELS:
                self._update_internal_config_dict(find_properties() / "model" / f"{model}.yaml")

        return load_internal

    _wrap_once(Config, "_load_internal_config_dict", load_ours_too)


def _register_events() -> None:
    """Have RecBole's trainers open their folder of events when the first value is written.

    Ours put a writer of the run's folder in its place before that.
    """
    import recbole.trainer.trainer as recbole_trainer

    def open_late(get_tensorboard: Callable[[Any], SummaryWriter]) -> Callable[[Any], EventWriter]:
        return lambda logger: EventWriter(lambda: get_tensorboard(logger))

    _wrap_once(recbole_trainer, "get_tensorboard", open_late)


def _wrap_once(holder: Any, name: str, wrapped: Callable[[Any], Any]) -> None:
    """Put a function of ours around one of RecBole's, whose modules import such things by name."""
    function = getattr(holder, name)
    if not hasattr(function, "is_ours"):
        ours: Any = functools.wraps(function)(wrapped(function))
        ours.is_ours = True
        setattr(holder, name, ours)
