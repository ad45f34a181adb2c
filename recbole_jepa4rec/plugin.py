"""What RecBole's own look-ups find of ours: models, trainers, data sets, yaml files, metrics.

It is added to RecBole's modules as they are imported. Importing them takes seconds, which somebody
who misspelt a word should not have to wait.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from recbole_jepa4rec.base.yaml_files import find_properties
from recbole_jepa4rec.config.protocol import LIST_METRICS, RANK_METRICS
from recbole_jepa4rec.config.registry import (
    DATASET,
    MODELS,
    PHASE_TRAINER,
    PHASED_MODELS,
    SEQUENTIAL,
    WITH_PROTOCOL,
    find_model,
    resolve,
)


def register() -> None:
    """Let RecBole's own look-ups find ours from now on; its own models see no difference.

    RecBole need not be installed: what needs it names the command that brings it, and ``doctor``
    and ``convert`` do without.
    """
    if any(isinstance(finder, _AddingFinder) for finder in sys.meta_path):
        return
    for name in MODELS:
        alias = ModuleType(f"{SEQUENTIAL}.{name.lower()}", f"Stands for the module of {name}.")
        alias.__spec__ = ModuleSpec(alias.__name__, None)  # get_model asks find_spec for it
        _answer(alias, {name: functools.partial(find_model, name)})
        sys.modules[alias.__name__] = alias
    sys.meta_path.insert(0, _AddingFinder())
    for name, add in _ADDITIONS.items():
        if name in sys.modules:
            add(sys.modules[name])


class _AddingFinder(MetaPathFinder):
    """Finds the modules that something is added to."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in _ADDITIONS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin:
            spec.loader = _AddingLoader(name, spec.origin)
        return spec


class _AddingLoader(SourceFileLoader):
    """Adds to a module that has just been loaded."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _ADDITIONS[module.__name__](module)


def _answer(module: ModuleType, names: dict[str, Callable[[], type]]) -> None:
    """Give a module attributes that are computed when they are asked for."""

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in names:
            return names[name]()
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__dict__["__getattr__"] = __getattr__


def _add_properties(package: ModuleType) -> None:
    """Add a layer to RecBole's Config: the yaml file of our model, if it is one of ours."""
    import numpy as np

    for alias, name in {"float_": "float64", "complex_": "complex128", "unicode_": "str_"}.items():
        if alias not in np.__dict__:  # numpy 2 dropped them; RecBole's Config still reads them
            setattr(np, alias, getattr(np, name))
    load = package.Config._load_internal_config_dict

    @functools.wraps(load)
    def load_ours_too(self: Any, model: str, model_class: type, dataset: str) -> None:
        load(self, model, model_class, dataset)
        if model in MODELS:
            self._update_internal_config_dict(find_properties() / "model" / f"{model}.yaml")

    package.Config._load_internal_config_dict = load_ours_too


def _add_datasets(package: ModuleType) -> None:
    """Add ``<Model>Dataset`` for each of our models."""
    found = functools.partial(resolve, DATASET)
    _answer(package, dict.fromkeys((f"{name}Dataset" for name in MODELS), found))


def _add_trainers(package: ModuleType) -> None:
    """Add ``<Model>Trainer`` for each of our models; the folder of events is opened when needed.

    Our own trainers put a writer of the run's folder in the place of RecBole's.
    """

    def own_trainer(name: str) -> type:
        if name in PHASED_MODELS:
            return resolve(PHASE_TRAINER)
        return resolve(WITH_PROTOCOL)(package.Trainer)

    _answer(package, {f"{name}Trainer": functools.partial(own_trainer, name) for name in MODELS})
    get_tensorboard = package.trainer.get_tensorboard

    @functools.wraps(get_tensorboard)
    def open_late(logger: Any) -> Any:
        from recbole_jepa4rec.base.events import EventWriter

        return EventWriter(lambda: get_tensorboard(logger))

    package.trainer.get_tensorboard = open_late


def _add_transforms(module: Any) -> None:
    """Let the draw of an item that a history lacks end where the history holds all of them."""

    class MaskItemSequence(module.MaskItemSequence):
        """RecBole's, which draws until it meets an item that is not there."""

        def _neg_sample(self, item_set: Sequence[int], n_items: int) -> int:
            """A random item that the history lacks; any where it lacks none."""
            if len(item_set) >= n_items - 1 and {*item_set}.issuperset(range(1, n_items)):
                return random.randint(1, n_items - 1)
            return super()._neg_sample(item_set, n_items)

    module.MaskItemSequence = MaskItemSequence


def _add_metrics(package: ModuleType) -> None:
    """Add the uncut reciprocal rank, and the metrics that RecBole lacks, to its tables."""
    from recbole.evaluator.base_metric import AbstractMetric
    from recbole.utils import EvaluatorType

    class FullMRR(AbstractMetric):
        """Mean reciprocal rank over the whole ranking, ``mrr``, for RecBole's own evaluator."""

        metric_type = EvaluatorType.RANKING
        metric_need = ["rec.meanrank"]

        def calculate_metric(self, dataobject: Any) -> dict[str, float]:
            """Average the reciprocals of the mean ranks that RecBole's collector has gathered.

            Args:
                dataobject: RecBole's ``DataStruct``; its ``rec.meanrank`` holds rows of
                    ``[sum of target ranks, number of items, number of targets]``.

            Returns:
                ``{"mrr": value}``, rounded to ``metric_decimal_place``.

            Raises:
                ValueError: if a row has more than one target.
            """
            rank_sum, _, num_targets = dataobject.get("rec.meanrank").double().unbind(dim=1)
            if bool((num_targets != 1).any()):
                raise ValueError("metric 'FullMRR' needs exactly one target per row")
            return {"mrr": round(float((1 / rank_sum).mean()), self.decimal_place)}

    class OwnMetric(AbstractMetric):
        """Stands for the metrics that RecBole lacks; our own loop measures them."""

        metric_type = EvaluatorType.RANKING
        metric_need: list[str] = []

        def calculate_metric(self, dataobject: Any) -> dict[str, float]:
            """Refuse: RecBole's collector does not keep what these need.

            Raises:
                ValueError: always.
            """
            raise ValueError("metrics that RecBole lacks are measured by run_recbole.py alone")

    tables = package.register
    lacking = [name for name in (*RANK_METRICS, *LIST_METRICS) if name not in tables.metrics_dict]
    ours: dict[str, Any] = {"fullmrr": FullMRR, **dict.fromkeys(lacking, OwnMetric)}
    for name, metric in ours.items():
        tables.metrics_dict[name] = metric
        tables.metric_information[name] = metric.metric_need
        tables.metric_types[name] = metric.metric_type


_ADDITIONS: dict[str, Callable[[ModuleType], None]] = {
    "recbole.config": _add_properties,
    "recbole.data.dataset": _add_datasets,
    "recbole.data.transform": _add_transforms,
    "recbole.evaluator": _add_metrics,
    "recbole.trainer": _add_trainers,
}
"""What is added to a module of RecBole's."""
