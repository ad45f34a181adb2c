"""The only file that knows names; models and data sets are imported when they are asked for."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.config.language_model_settings import LlamaRecSettings, LLMJEPASettings
from recbole_jepa4rec.config.run_settings import (
    CausalSettings,
    FeatureSettings,
    Loss,
    RunSettings,
    S3RecSettings,
    UntrainedSettings,
)
from recbole_jepa4rec.config.sentence_settings import JEPA4RecSettings, RecFormerSettings
from recbole_jepa4rec.config.settings import Keys
from recbole_jepa4rec.config.vector_settings import STARSettings, UniSRecSettings, VQRecSettings

DATASET = "recbole_jepa4rec.data.dataset:SequentialTextDataset"
PHASE_TRAINER = "recbole_jepa4rec.training.phase_trainer:PhaseTrainer"
WITH_PROTOCOL = "recbole_jepa4rec.training.recbole_loop:with_protocol"
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
        source: where it comes from.
    """

    target: str
    reads_text: bool = False
    training_targets: tuple[str, ...] = ()
    needs_retriever: bool = False
    source: str = ""

    @property
    def in_phases(self) -> bool:
        """Whether it is trained in phases, by a trainer of ours."""
        return bool(self.training_targets)


MODELS = {
    "JEPA4Rec": Entry(
        "recbole_jepa4rec.model.jepa4rec:JEPA4Rec",
        reads_text=True,
        training_targets=("random", "all_prefixes"),
        source="Nguyen and Le 2025",
    ),
    "RecFormer": Entry(
        "recbole_jepa4rec.model.jepa4rec:RecFormer",
        reads_text=True,
        training_targets=("random", "all_prefixes"),
        source="Li et al. 2023",
    ),
    "UniSRec": Entry(
        "recbole_jepa4rec.model.unisrec:UniSRec",
        reads_text=True,
        training_targets=("all_prefixes",),
        source="Hou et al. 2022",
    ),
    "VQRec": Entry(
        "recbole_jepa4rec.model.vqrec:VQRec",
        reads_text=True,
        training_targets=("all_prefixes",),
        source="Hou et al. 2023",
    ),
    "LLMJEPA": Entry(
        "recbole_jepa4rec.model.llmjepa:LLMJEPA",
        reads_text=True,
        training_targets=("all_prefixes",),
        source="after Huang et al. 2025",
    ),
    "LlamaRec": Entry(
        "recbole_jepa4rec.model.llamarec:LlamaRec",
        reads_text=True,
        training_targets=("random",),
        needs_retriever=True,
        source="Yue et al. 2023",
    ),
    "STAR": Entry("recbole_jepa4rec.model.star:STAR", reads_text=True, source="Lee et al. 2024"),
    "Popularity": Entry("recbole_jepa4rec.model.counting:Popularity", source="counts"),
    "Markov": Entry("recbole_jepa4rec.model.counting:Markov", source="counts of transitions"),
}
"""Our models."""

SETTINGS: dict[str, type[RunSettings]] = {
    "JEPA4Rec": JEPA4RecSettings,
    "RecFormer": RecFormerSettings,
    "UniSRec": UniSRecSettings,
    "VQRec": VQRecSettings,
    "LLMJEPA": LLMJEPASettings,
    "LlamaRec": LlamaRecSettings,
    "Popularity": UntrainedSettings,
    "Markov": UntrainedSettings,
    "STAR": STARSettings,
    "S3Rec": S3RecSettings,
    "SASRec": CausalSettings,
    "GRU4Rec": CausalSettings,
    "FDSA": FeatureSettings,
    "SASRecF": FeatureSettings,
    "GRU4RecF": FeatureSettings,
}
"""What a file of ``properties/model/`` holds; any other model has the ``RunSettings`` alone."""

CAUSAL_MODELS = ("SASRec", "GRU4Rec", "S3Rec", "FDSA", "SASRecF", "GRU4RecF")
"""RecBole's models that read a history from left to right, their padding behind it."""

TEXT_MODELS = tuple(name for name, entry in MODELS.items() if entry.reads_text)
PHASED_MODELS = tuple(name for name, entry in MODELS.items() if entry.in_phases)

SEQUENTIAL = "recbole.model.sequential_recommender"

LOSSES = get_args(Loss)


def refuse_unknown_model(name: str) -> None:
    """Refuse what is no sequential model; neither RecBole nor the model is imported.

    Raises:
        ValueError: names the nearest spelling, or says that the model is not sequential.
    """
    if is_known(name):
        return
    theirs = sequential_models()
    folder = recbole_folder() / "model"
    others = {file.stem for file in folder.glob("*_recommender/*.py")} - {*map(str.lower, theirs)}
    if name.lower() in others:
        raise ValueError(f"model {name!r} is not sequential; only sequential models can run here")
    raise ValueError(f"unknown model {name!r}{did_you_mean(name, [*MODELS, *theirs])}")


def is_known(name: str) -> bool:
    """Whether a model is ours or RecBole's, and no class of a user's."""
    return name in MODELS or name in sequential_models()


def find_model(name: str) -> type:
    """Our model of that name, else RecBole's sequential one.

    Raises:
        ValueError: as ``refuse_unknown_model``.
    """
    refuse_unknown_model(name)
    return resolve(MODELS[name].target if name in MODELS else f"{SEQUENTIAL}:{name}")


def find_entry(entry: str) -> tuple[str, dict[str, str]]:
    """The model, and the settings, that a name in a list of models stands for.

    ``SASRec-BPR`` is SASRec with ``loss_type: BPR``; a name without such an ending is the model's.

    Raises:
        ValueError: if there is no such model, or its loss cannot be chosen in this way.
    """
    name, dash, loss = entry.partition("-")
    refuse_unknown_model(name)
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
    properties = recbole_folder() / "properties" / "model" / f"{name}.yaml"
    if name in MODELS or not properties.is_file():
        return False
    return re.search(r"^loss_type *:", properties.read_text(encoding="utf-8"), re.M) is not None


def row_label(name: str, loss_type: str | None) -> str:
    """What tables call a model that does not say so itself: its name and, where it has one, loss.

    SASRec trained by cross-entropy and by BPR are different baselines, so that the name must tell.
    """
    return f"{name}-{loss_type}" if has_loss_type(name) else name


def training_targets(name: str) -> tuple[str, ...]:
    """What a pass of a model can train, values of ``training_targets``; none where none trains."""
    if name in MODELS:
        return MODELS[name].training_targets
    return ("all_prefixes", "rows") if name in CAUSAL_MODELS else ("rows",)


def find_trainer(model_class: type, config: Keys) -> type:
    """The trainer of a model: ours, or RecBole's with our protocol mixed in."""
    name = model_class.__name__
    if name in PHASED_MODELS:
        return resolve(PHASE_TRAINER)
    get_trainer = import_module("recbole.utils").get_trainer
    return resolve(WITH_PROTOCOL)(get_trainer(config["MODEL_TYPE"], name))


def find_dataset(model_class: type) -> type:
    """The data set of every model in our runner.

    Raises:
        ValueError: if RecBole gives the model a data set class of its own.
    """
    name = model_class.__name__
    if name not in MODELS and hasattr(import_module("recbole.data.dataset"), f"{name}Dataset"):
        raise ValueError(f"model {name!r} needs RecBole's own {name}Dataset, which cannot run here")
    return resolve(DATASET)


def recbole_folder() -> Path:
    """Where RecBole is installed; it is not imported.

    Raises:
        ImportError: if it is not; names the command that mends it.
    """
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        command = "pip install --no-deps recbole==1.2.1"
        raise ImportError(f"RecBole is not installed; mend it by: {command}")
    return Path(spec.submodule_search_locations[0])


@functools.cache
def sequential_models() -> frozenset[str]:
    """Names of RecBole's sequential models: what the package of their modules imports."""
    package = recbole_folder() / "model" / "sequential_recommender" / "__init__.py"
    nodes = ast.parse(package.read_text(encoding="utf-8")).body
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return frozenset(alias.name for node in imports for alias in node.names)


def resolve(target: str) -> Any:
    """What ``module:name`` names."""
    module, name = target.split(":")
    return getattr(import_module(module), name)
