"""The data sets that all trials share: read once, and whatever is cached made once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from recbole.utils import argument_list

from recbole_jepa4rec.base.checkpoint import weights_file
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.config.run_settings import ATTRIBUTE_KEYS
from recbole_jepa4rec.data.item_files import reads_item_text, refuse_without_text
from recbole_jepa4rec.study.search.job import data_name
from recbole_jepa4rec.study.search.request import Request
from recbole_jepa4rec.training.pretrained_chain import asked_stage, is_chained

DATA_KEYS = {*argument_list.dataset_arguments, *ATTRIBUTE_KEYS, "item_text_fields"}
"""Settings that change what is read of a data set."""


def data_keys(request: Request) -> tuple[str, ...]:
    """The searched settings that change what is read.

    Raises:
        ValueError: if one of them has infinitely many values.
    """
    found = [each for each in request.space if each.key.partition(".")[0] in DATA_KEYS]
    for each in found:
        if each.points is None:
            raise ValueError(f"{each.key} shapes the data: {each.kind} must be choice or int")
    return tuple(each.key for each in found)


def read_data(request: Request, keys: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """Read the data once for each combination of the settings that shape them.

    Args:
        request: what was asked for.
        keys: of ``data_keys``.

    Returns:
        The data sets by ``data_name``, and the fingerprint that all of them have.

    Raises:
        ValueError: if they cannot be read, if the model cannot run on them, or if trials would be
            measured on different interactions.
    """
    _refuse_unfit(request)
    columns = [each.points or [] for each in request.space if each.key in keys]
    found: dict[str, Any] = {}
    for values in itertools.product(*columns):
        point = dict(zip(keys, values, strict=True))
        found[data_name(point, keys)] = _read(request, point)
    prints = {name: data.fingerprint for name, data in found.items()}
    if len({*prints.values()}) > 1:
        raise ValueError(
            f"{', '.join(keys)} cannot be searched: trials would be measured on different "
            "interactions"
        )
    return found, next(iter(prints.values()))


def _read(request: Request, point: Mapping[str, Any]) -> Any:
    """One data set, with all that is read of files later already in memory."""
    config = request.trial_config(point)
    data = find_dataset(config.model_class)(config)
    if reads_item_text(config):
        data.item_text  # noqa: B018 (read here, since a trial may run where there are no files)
        config.model_class(config, data)  # leaves tokens and item vectors in the cache
    data.config = None  # each trial has its own
    return data


def _refuse_unfit(request: Request) -> None:
    config = request.config
    if config["checkpoint"]:
        weights_file(config["checkpoint"])
    refuse_without_text(config)
    if is_chained(config):
        asked_stage(config)
