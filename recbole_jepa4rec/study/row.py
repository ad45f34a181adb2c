"""One row of a comparison: a model, and its runs with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from recbole_jepa4rec.evaluation.metrics import metric_values
from recbole_jepa4rec.study.finished_run import FinishedRun

GROUPS = {"never seen": (0, 0), "seen 1–4 times": (1, 4), "seen 5+ times": (5, None)}
"""Users by how often their target occurs in the training part: the least and the most."""

GROUP_METRICS = ("ndcg@10", "recall@10")
CUTOFFS_PER_DECADE = 12


@dataclass(frozen=True)
class Row:
    """A model with its seeds.

    Attributes:
        entry: the model as the list names it.
        seeds: asked for.
        runs: finished ones by seed.
        errors: of the seeds that failed, one line each.
    """

    entry: str
    seeds: Sequence[int]
    runs: Mapping[int, FinishedRun]
    errors: Mapping[int, str]

    @property
    def label(self) -> str:
        """What tables call the model."""
        return next((run.label for run in self.runs.values()), self.entry)

    @property
    def status(self) -> str:
        """``finished``, ``failed`` (a seed did), ``partial`` or ``waiting`` (seeds to come)."""
        if self.errors:
            return "failed"
        if len(self.runs) == len(self.seeds):
            return "finished"
        return "partial" if self.runs else "waiting"

    @property
    def counts(self) -> bool:
        """Whether the row takes part in rankings and tests."""
        return bool(self.runs) and not self.errors

    @cached_property
    def user_values(self) -> dict[str, np.ndarray]:
        """Every metric of each user, averaged over the seeds, ``[U]`` each."""
        return _mean_values([run.values() for run in self.runs.values()])

    def spread(self, part: Literal["valid", "test"]) -> dict[str, dict[str, float | None]]:
        """Mean and sample standard deviation (``None`` for one seed) of each metric over seeds.

        Args:
            part: ``"valid"`` or ``"test"``.
        """
        results = [run.result[part] for run in self.runs.values()]
        return {key: mean_and_std([result[key] for result in results]) for key in results[0]}

    def groups(self) -> list[dict[str, Any]]:
        """Metrics of the users of each of ``GROUPS``; ``None`` where there is no such user."""
        runs = [*self.runs.values()]
        counts = runs[0].users["target_train_count"].to_numpy()
        ranks = [run.users["rank"].to_numpy() for run in runs]
        values = _mean_values([metric_values(each, ["ndcg", "recall"], [10]) for each in ranks])
        found = []
        for name, (least, most) in GROUPS.items():
            inside = (counts >= least) & (counts <= (np.inf if most is None else most))
            means = {
                key: float(values[key][inside].mean()) if inside.any() else None
                for key in GROUP_METRICS
            }
            found.append({"name": name, "users": int(inside.sum()), **means})
        return found

    def ranking(self) -> dict[str, list[float]]:
        """Share of users whose target is among the first ``k``, for ``k`` evenly on a log scale."""
        runs = [*self.runs.values()]
        items = int(runs[0].result["statistics"]["items"])
        steps = max(2, int(np.log10(items) * CUTOFFS_PER_DECADE))
        cutoffs = np.unique(np.geomspace(1, items, steps).round().astype(int))
        shares = [
            np.searchsorted(np.sort(run.users["rank"].to_numpy()), cutoffs, side="right")
            / len(run.users)
            for run in runs
        ]
        return {"k": cutoffs.tolist(), "recall": np.mean(shares, axis=0).tolist()}

    def cost(self) -> dict[str, float | None]:
        """Means over the seeds: seconds, tokens per second, memory and parameters."""
        results = [run.result for run in self.runs.values()]
        seconds = [result["seconds"] for result in results]
        return {
            "train_seconds": _mean([s["pretrain"] + s["finetune"] for s in seconds]),
            "total_seconds": _mean([s["total"] for s in seconds]),
            "tokens_per_second": _mean([result["tokens_per_second"] for result in results]),
            "peak_memory_gib": _mean([result["peak_memory_gib"] for result in results]),
            "parameters": _mean([result["parameters"] for result in results]),
        }

    def time_limit(self) -> float | None:
        """``max_train_seconds`` if the training of a seed was validated after it had passed.

        Where training is cut, its last weights are validated at once, so that the curve tells.
        """
        for run in self.runs.values():
            limit, curve = run.settings.get("max_train_seconds"), run.result["learning_curve"]
            if limit is not None and any(point["seconds"] >= limit for point in curve):
                return float(limit)
        return None

    def learning_curves(self) -> list[dict[str, Any]]:
        """Of each seed, the validations during training."""
        return [
            {"seed": seed, "points": run.result["learning_curve"]}
            for seed, run in self.runs.items()
        ]


def mean_and_std(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and the sample standard deviation (over n - 1) of two values or more."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _mean_values(of_seeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.mean([each[key] for each in of_seeds], axis=0) for key in of_seeds[0]}
