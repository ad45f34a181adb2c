"""One trial, in a process of Ray's: train, report each validation, leave the test split alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from recbole_jepa4rec.runner.run_folder import RunFolder
from recbole_jepa4rec.runner.single_run import validate
from recbole_jepa4rec.study.search import ray_versions
from recbole_jepa4rec.study.search.job import Job, data_name

FAILED_LOG = "run.failed.log"
"""What ``run.log`` of an attempt that failed is called afterwards."""


def run_trial(chosen: Mapping[str, Any], job: Job, data: Mapping[str, Any]) -> None:
    """Train as told, and report after each validation.

    Args:
        chosen: Ray's configuration of the trial.
        job: what all trials share.
        data: references to the shared data sets, by ``data_name``.
    """
    if job.here.is_dir():  # not on another machine
        os.chdir(job.here)
    import torch

    from recbole_jepa4rec.config.config import Config

    torch.set_num_threads(job.threads)
    point = job.point(chosen)
    folder = job.folder / job.name(chosen, ray_versions.trial_id())
    make_room(folder)
    settings = {**job.given, **point, "run_dir": str(folder), "show_progress": False}
    if not job.uses_gpu:
        settings["use_gpu"] = False
    config = Config(job.entry, config_dict=settings)
    reported, node = 0, ray.get_runtime_context().get_node_id()

    def report(validation: Mapping[str, Any]) -> None:
        nonlocal reported
        reported += 1
        ray_versions.report({**validation, "node": node})

    try:
        result = validate(config, ray.get(data[data_name(point, job.data_keys)]), report)
        if not reported:  # a model that only counts
            metric = config["valid_metric"].lower()
            report(
                {
                    "stage": "train",
                    "epoch": max(0, result["epochs"] - 1),
                    "seconds": round(result["seconds"], 3),
                    "valid": float(result["valid"][metric]),
                }
            )
    finally:
        drop_weights(folder)


def make_room(folder: Path) -> None:
    """Clear what an earlier attempt left, but for its log."""
    log = RunFolder(folder).log_file
    text = log.read_bytes() if log.is_file() else None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if text is not None:
        (folder / FAILED_LOG).write_bytes(text)


def drop_weights(folder: Path) -> None:
    """Remove the weights of a trial: the winner is trained again, and a search would fill disks."""
    from recbole_jepa4rec.base.checkpoint import STATE_NAME, WEIGHTS_NAME
    from recbole_jepa4rec.training.pretrained_chain import PRETRAINED_NAME

    for name in (WEIGHTS_NAME, STATE_NAME, PRETRAINED_NAME):
        (folder / name).unlink(missing_ok=True)
