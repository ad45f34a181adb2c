"""Weights & Biases and MLflow, told what TensorBoard's events hold: settings, curves, test metrics.

Each is a library that the user has installed and set up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

LIBRARIES = {"log_wandb": "wandb", "log_mlflow": "mlflow"}
"""Which library a setting asks for."""


class Tracker(Protocol):
    """Takes in metrics by name."""

    def __call__(self, values: Mapping[str, float], epoch: int) -> None:
        """Add a point to each curve."""


def refuse_missing(settings: Mapping[str, Any]) -> None:
    """Refuse to log with a library that is not installed.

    Raises:
        ValueError: names it.
    """
    for key, library in LIBRARIES.items():
        if settings[key] and not find_spec(library):
            raise ValueError(f"{key} needs {library}: pip install {library}")


@contextmanager
def tracking(settings: Mapping[str, Any], name: str) -> Iterator[list[Tracker]]:
    """What is told of a run meanwhile, which then ends there as well.

    Args:
        settings: of the run; ``wandb_project`` is the project there, the data set the experiment
            of MLflow.
        name: of the run.
    """
    trackers: list[Tracker] = []
    ends = []
    if settings["log_wandb"]:
        wandb: Any = import_module("wandb")
        run = wandb.init(project=settings["wandb_project"], name=name, config=dict(settings))
        trackers.append(lambda values, epoch: run.log({**values, "epoch": epoch}))
        ends.append(lambda failed: run.finish(exit_code=int(failed)))
    if settings["log_mlflow"]:
        mlflow: Any = import_module("mlflow")
        mlflow.set_experiment(settings["dataset"])
        mlflow.start_run(run_name=name)
        mlflow.log_params(dict(settings))
        trackers.append(
            lambda values, epoch: mlflow.log_metrics(
                {key.replace("@", "_at_"): value for key, value in values.items()}, step=epoch
            )
        )
        ends.append(lambda failed: mlflow.end_run("FAILED" if failed else "FINISHED"))
    try:
        yield trackers
    except BaseException:
        for end in ends:
            end(True)
        raise
    for end in ends:
        end(False)
