"""One trial, in a process of Ray's: train, report each validation, leave the test split alone."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from recbole_jepa4rec.base.checkpoint import STATE_NAME, WEIGHTS_NAME
from recbole_jepa4rec.runner.run_folder import RunFolder
from recbole_jepa4rec.runner.single_run import validate
from recbole_jepa4rec.study.search.request import Request
from recbole_jepa4rec.study.search.trials import FAILED_LOG, refuse_no_trial
from recbole_jepa4rec.training.pretrained_chain import PRETRAINED_NAME

tune: Any = importlib.import_module("ray.tune")  # of any version; no type checker knows all

IS_CURRENT = hasattr(tune, "get_context")
"""Whether ``ray.tune`` speaks for itself; in 2.6.3, which RecBole pins, ``ray.air`` does."""

NAME_KEY = "trial"
"""Of Ray's own configuration of a trial whose point is known beforehand."""


def name_of(chosen: Mapping[str, Any], trial_id: str) -> str:
    """Name of a trial and its folder, from Ray's configuration of it and Ray's name for it."""
    return str(chosen.get(NAME_KEY, trial_id))


def point_of(request: Request, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The searched settings of a trial, from Ray's configuration of it."""
    if NAME_KEY in chosen:
        return dict(request.points[chosen[NAME_KEY]])
    return {each.key: each.value_of(chosen[each.key]) for each in request.space}


def run_trial(
    chosen: Mapping[str, Any],
    request: Request,
    data: Mapping[str, Any],
    trials: Path,
    here: Path,
    uses_gpu: bool,
) -> None:
    """Train as told, and report after each validation.

    Args:
        chosen: Ray's configuration of the trial.
        request: what the search was asked for.
        data: references to the shared data sets, by ``Request.data_name``.
        trials: folder of the trials, absolute.
        here: the current folder of the search; paths in the settings are seen from there.
        uses_gpu: whether trials have a share of a GPU; others must not touch one.
    """
    if here.is_dir():  # not on another machine
        os.chdir(here)
    session = tune if IS_CURRENT else importlib.import_module("ray.air.session")
    context = tune.get_context() if IS_CURRENT else session
    torch.set_num_threads(request.keys.cpus_per_trial)
    point = point_of(request, chosen)
    folder = trials / name_of(chosen, context.get_trial_id())
    make_room(folder)
    more = {"run_dir": str(folder), "show_progress": False}
    config = request.trial_config(point, **more, **({} if uses_gpu else {"use_gpu": False}))
    reported, node = 0, ray.get_runtime_context().get_node_id()

    def report(validation: Mapping[str, Any]) -> None:
        nonlocal reported
        reported += 1
        session.report({**validation, "node": node})

    try:
        result = validate(config, ray.get(data[request.data_name(point)]), report)
        if not reported:  # a model that only counts
            report(
                {
                    "stage": "train",
                    "epoch": max(0, result["epochs"] - 1),
                    "seconds": round(result["seconds"], 3),
                    "valid": float(result["valid"][request.metric]),
                }
            )
    finally:
        for name in (WEIGHTS_NAME, STATE_NAME, PRETRAINED_NAME):
            # The winner is trained again, and the weights of a search would fill disks.
            (folder / name).unlink(missing_ok=True)


def make_room(folder: Path) -> None:
    """Clear what an earlier attempt left, but for its log.

    Raises:
        ValueError: if the folder holds something else.
    """
    log = RunFolder(folder).log_file
    text = log.read_bytes() if log.is_file() else None
    if os.path.lexists(folder):
        refuse_no_trial(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    if text is not None:
        (folder / FAILED_LOG).write_bytes(text)
