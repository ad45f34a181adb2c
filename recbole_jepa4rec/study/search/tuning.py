"""The search on Ray: ``ray.tune.Tuner``, and what it tells the board."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its table says nothing that ours do not
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # else Ctrl-C ends the search as if done

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler

from recbole_jepa4rec.study.search import ray_versions
from recbole_jepa4rec.study.search.board import Board, in_one_line
from recbole_jepa4rec.study.search.cluster import gpus_per_trial
from recbole_jepa4rec.study.search.job import NAME_KEY, Job
from recbole_jepa4rec.study.search.record import FAILED, FINISHED, STOPPED
from recbole_jepa4rec.study.search.request import Request
from recbole_jepa4rec.study.search.space import Dimension
from recbole_jepa4rec.study.search.trial import run_trial

RETRIES = 1
"""Times that a trial which failed is tried again."""

MOST_EPOCHS = 10**6
"""Where Ray's schedulers would end a trial; ours end by their own settings."""


def tune_trials(
    request: Request, job: Job, data: Mapping[str, Any], names: list[str], board: Board
) -> None:
    """Run the trials that are missing, on the cluster that ``cluster`` has connected to.

    Args:
        request: what was asked for.
        job: what every trial is told.
        data: data sets by ``data_name``; Ray's object store takes one copy of each.
        names: of trials whose points are known; empty where an algorithm chooses them.
        board: is told of every report and every end.
    """
    scratch = (request.folder / "ray").resolve()
    shutil.rmtree(scratch, ignore_errors=True)  # of an earlier start; holds pickles, never read
    references = {name: ray.put(each) for name, each in data.items()}
    gpus = gpus_per_trial(request)
    job = replace(job, uses_gpu=gpus > 0)
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, job=job, data=references),
        {"cpu": request.cpus, "gpu": gpus},
    )
    stopped: set[str] = set()
    chosen = not names
    tuner = tune.Tuner(
        trainable,
        param_space=_domains(request) if chosen else {NAME_KEY: tune.grid_search(names)},
        tune_config=tune.TuneConfig(
            metric="valid",
            mode="max",
            num_samples=request.num_samples - len(board.records) if chosen else 1,
            max_concurrent_trials=request.max_concurrent,
            search_alg=_algorithm(request, board) if chosen else None,
            scheduler=_Halving(request.grace_epochs, stopped) if request.grace_epochs else None,
            trial_dirname_creator=lambda trial: job.name(trial.config, trial.trial_id),
        ),
        run_config=ray_versions.run_config(
            str(scratch), "trials", RETRIES, _Ear(job, board, stopped)
        ),
    )
    tuner.fit()


def _domains(request: Request) -> dict[str, Any]:
    """The space in Ray's terms; where there are finitely many values, their numbers."""
    return {each.key: _domain(each) for each in request.space}


def _domain(dimension: Dimension) -> Any:
    if dimension.points is not None:
        count = len(dimension.points)
        if dimension.kind == "choice":
            return tune.choice([*range(count)])
        return tune.randint(0, count)
    low, high = map(float, dimension.values)
    return tune.loguniform(low, high) if dimension.kind == "loguniform" else tune.uniform(low, high)


def _algorithm(request: Request, board: Board) -> Any:
    """Optuna's search, told of the trials that ended before, or HyperOpt's."""
    seed = request.config["seed"] + len(board.records)  # else a search that goes on repeats itself
    if request.algorithm == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        known = [record for record in board.records.values() if record.score is not None]
        points = [_numbers(request, record.point) for record in known]
        return OptunaSearch(
            metric="valid",
            mode="max",
            seed=seed,
            points_to_evaluate=points or None,
            evaluated_rewards=[record.score for record in known] or None,
        )
    from ray.tune.search.hyperopt import HyperOptSearch

    return HyperOptSearch(metric="valid", mode="max", random_state_seed=seed)


def _numbers(request: Request, point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as the algorithms see it; the opposite of ``Job.point``."""
    return {
        each.key: point[each.key] if each.points is None else each.points.index(point[each.key])
        for each in request.space
    }


class _Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020), which says whom it stopped.

    Args:
        grace_epochs: validations before a trial may be stopped.
        stopped: takes Ray's names of the trials that were.
    """

    def __init__(self, grace_epochs: int, stopped: set[str]) -> None:
        super().__init__(max_t=MOST_EPOCHS, grace_period=grace_epochs, reduction_factor=3)
        self._stopped = stopped

    def on_trial_result(self, controller: Any, trial: Any, result: Any) -> str:
        decision = super().on_trial_result(controller, trial, result)
        if decision == self.STOP:
            self._stopped.add(trial.trial_id)
        return decision


class _Ear(Callback):
    """Hears of every trial, and tells the board.

    Args:
        job: knows names and points.
        board: is told.
        stopped: Ray's names of trials that were stopped early.
    """

    def __init__(self, job: Job, board: Board, stopped: set[str]) -> None:
        self._job, self._board, self._stopped = job, board, stopped

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """A trial begins, the first time or again."""
        self._board.begin(self._name(trial), self._job.point(trial.config), _error(trial))

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        """A validation is reported."""
        self._board.measure(self._name(trial), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """A trial is over, at its own end or earlier."""
        status = STOPPED if trial.trial_id in self._stopped else FINISHED
        self._board.end(self._name(trial), status)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """A trial has failed as often as it may, perhaps before it ever began."""
        name = self._name(trial)
        if not self._board.is_under_way(name):
            self._board.begin(name, self._job.point(trial.config), None)
        self._board.end(name, FAILED, _error(trial) or "no reason is known")

    def _name(self, trial: Any) -> str:
        return self._job.name(trial.config, trial.trial_id)


def _error(trial: Any) -> str | None:
    """Why a trial failed last, in one line; from Ray's text, never from its pickle."""
    file = trial.error_file
    if not file or not Path(file).is_file():
        return None
    return in_one_line(Path(file).read_text(encoding="utf-8", errors="replace"))
