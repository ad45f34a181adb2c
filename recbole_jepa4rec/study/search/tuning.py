"""The search on Ray: its cluster, watched; ``ray.tune.Tuner``, and what it tells of the trials."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its table says nothing that ours do not
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # else Ctrl-C ends the search as if done

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler

from recbole_jepa4rec.base.ray_cluster import CONNECT_SECONDS, connected
from recbole_jepa4rec.study.search.request import Request
from recbole_jepa4rec.study.search.space import Dimension
from recbole_jepa4rec.study.search.trial import IS_CURRENT, NAME_KEY, name_of, point_of, run_trial
from recbole_jepa4rec.study.search.trials import (
    FAILED,
    FINISHED,
    SCRATCH_MARK,
    STOPPED,
    Record,
    UnderWay,
    in_one_line,
)
from recbole_jepa4rec.study.study import Board

RETRIES = 1
"""Times that a trial which failed is tried again."""

MOST_EPOCHS = 10**6
"""Where Ray's schedulers would end a trial; ours end by their own settings."""

WATCH_SECONDS = 2.0
"""Between two looks at the machines of a cluster."""


@contextmanager
def cluster(request: Request) -> Iterator[float]:
    """Connect to the cluster asked for, or start one on this machine; leave it at the end.

    Yields:
        The GPUs of a trial: what was asked for, else one where the cluster has any and the
        settings use it.

    Raises:
        ValueError: if there is no such cluster, or no machine of it can hold a trial.
    """
    keys = request.keys
    with connected(keys.address, keys.cpus_per_trial):
        gpus = keys.gpus_per_trial
        if gpus is None:
            has_any = ray.cluster_resources().get("GPU", 0) > 0
            gpus = 1.0 if has_any and request.config["use_gpu"] else 0.0
        needs = {"CPU": float(keys.cpus_per_trial), "GPU": gpus}
        if problem := _too_large(needs):
            raise ValueError(problem)
        with _watched(needs):
            yield gpus


def _too_large(needs: Mapping[str, float]) -> str:
    """Why no machine can hold a trial, for which Ray would wait for ever; empty if one can."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(key, 0.0) >= needs[key] for key in needs) for node in nodes):
        return ""
    for key, name in (("CPU", "cpus_per_trial"), ("GPU", "gpus_per_trial")):
        most = max((node.get(key, 0.0) for node in nodes), default=0.0)
        if needs[key] > most:
            return f"{name} {needs[key]:g}: the largest machine has {most:g}"
    return f"no machine has {needs['CPU']:g} CPU cores and {needs['GPU']:g} GPUs"


@contextmanager
def _watched(needs: Mapping[str, float]) -> Iterator[None]:
    """Notice the losses that Ray itself waits out for ever.

    A machine that goes is Ray's to notice: its trials fail and are tried again. Ray's own process
    on the machine of the search is not: without it hardly a call of Ray's returns, nor does its
    shutdown, and trials fail that have nothing wrong with them.
    """
    own = ray.get_runtime_context().get_node_id()
    node = next(each for each in ray.nodes() if each["NodeID"] == own)
    place = (node["NodeManagerAddress"], node["NodeManagerPort"])
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(needs, place, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join(CONNECT_SECONDS)
        _end_without(place)  # Ray may have given up all trials before the watch looked


def _watch(needs: Mapping[str, float], place: tuple[str, int], over: threading.Event) -> None:
    """Look again and again whether Ray is still there, and whether it has room for a trial."""
    waits = False
    while not over.wait(WATCH_SECONDS):
        _end_without(place)
        try:
            problem = _too_large(needs)
        except ray.exceptions.RaySystemError:
            return  # left meanwhile
        if problem and not waits:
            says = f"{problem}; the search waits for one (or end it, and go on with --resume)"
            print(says, file=sys.stderr, flush=True)
        waits = bool(problem)


def _end_without(place: tuple[str, int]) -> None:
    """End the search, at once, if Ray's process on its machine listens no more."""
    try:
        socket.create_connection(place, CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        if not ray.is_initialized():  # SIGTERM in a call of Ray's has it shut down by itself
            return
        print(
            "error: Ray has ended on the machine of the search; the same command with --resume "
            "goes on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # an exception would wait for Ray; what has ended is on disk
    except OSError:
        return  # a busy machine answers late


def tune_trials(
    request: Request, data: Mapping[str, Any], gpus: float, board: Board[str, Record]
) -> None:
    """Run the trials that are missing, on the cluster that ``cluster`` has connected to.

    Args:
        request: what was asked for.
        data: data sets by ``Request.data_name``; Ray's object store takes one copy of each.
        gpus: of a trial.
        board: of the trials that have ended; is told of every end.
    """
    scratch, trials = (request.folder / "ray").resolve(), (request.folder / "trials").resolve()
    scratch.mkdir()
    (scratch / SCRATCH_MARK).touch()
    trainable = tune.with_parameters(
        run_trial,
        request=request,
        data={name: ray.put(each) for name, each in data.items()},
        trials=trials,
        here=Path.cwd(),
        uses_gpu=gpus > 0,
    )
    names = [name for name in request.points if name not in board.ended]
    space, samples = {NAME_KEY: tune.grid_search(names)}, 1
    algorithm, stopped = None, set[str]()
    if not request.points:
        space = {each.key: _domain(each) for each in request.space}
        samples = request.num_samples - len(board.ended)
        algorithm = _algorithm(request, board.ended)
    under_way = UnderWay(board, request.folder / "trials", request.metric)
    configs: Any = tune if IS_CURRENT else importlib.import_module("ray.air")
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": request.keys.cpus_per_trial, "gpu": gpus}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="valid",
            mode="max",
            num_samples=samples,
            max_concurrent_trials=request.keys.max_concurrent,
            search_alg=algorithm,
            scheduler=_Halving(request.grace_epochs, stopped) if request.grace_epochs else None,
            trial_dirname_creator=lambda trial: name_of(trial.config, trial.trial_id),
        ),
        run_config=configs.RunConfig(
            name="trials",
            storage_path=str(scratch),
            failure_config=configs.FailureConfig(max_failures=RETRIES),
            callbacks=[_Ear(request, under_way, stopped)],
            verbose=0,
        ),
    ).fit()


def _domain(dimension: Dimension) -> Any:
    """A dimension in Ray's terms; where there are finitely many values, their numbers."""
    if dimension.points is not None:
        count = len(dimension.points)
        if dimension.kind == "choice":
            return tune.choice([*range(count)])
        return tune.randint(0, count)
    low, high = map(float, dimension.values)
    return tune.loguniform(low, high) if dimension.kind == "loguniform" else tune.uniform(low, high)


def _algorithm(request: Request, ended: Mapping[str, Record]) -> Any:
    """Optuna's search, told of the trials that ended before, or HyperOpt's."""
    seed = request.config["seed"] + len(ended)  # else a search that goes on repeats itself
    if request.keys.algorithm == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        known = [record for record in ended.values() if record.score is not None]
        points = [
            {each.key: each.number_of(record.point[each.key]) for each in request.space}
            for record in known
        ]
        return OptunaSearch(
            metric="valid",
            mode="max",
            seed=seed,
            points_to_evaluate=points or None,
            evaluated_rewards=[record.score for record in known] or None,
        )
    from ray.tune.search.hyperopt import HyperOptSearch

    return HyperOptSearch(metric="valid", mode="max", random_state_seed=seed)


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
    """Hears from Ray of every trial.

    Args:
        request: what was asked for.
        under_way: is told.
        stopped: Ray's names of trials that were stopped early.
    """

    def __init__(self, request: Request, under_way: UnderWay, stopped: set[str]) -> None:
        self._request, self._under_way, self._stopped = request, under_way, stopped

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """A trial begins, the first time or again."""
        self._begin(trial, _error(trial))

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        """A validation is reported."""
        self._under_way.measure(_name(trial), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """A trial is over, at its own end or earlier."""
        status = STOPPED if trial.trial_id in self._stopped else FINISHED
        self._under_way.end(_name(trial), status)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """A trial has failed as often as it may, perhaps before it ever began."""
        if _name(trial) not in self._under_way:
            self._begin(trial, None)
        self._under_way.end(_name(trial), FAILED, _error(trial) or "no reason is known")

    def _begin(self, trial: Any, error: str | None) -> None:
        self._under_way.begin(_name(trial), point_of(self._request, trial.config), error)


def _name(trial: Any) -> str:
    return name_of(trial.config, trial.trial_id)


def _error(trial: Any) -> str | None:
    """Why a trial failed last, in one line; from Ray's text, never from its pickle."""
    file = trial.error_file
    if not file or not Path(file).is_file():
        return None
    return in_one_line(Path(file).read_text(encoding="utf-8", errors="replace"))
