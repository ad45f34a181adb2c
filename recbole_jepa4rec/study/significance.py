"""Whether a difference between two models is more than chance, user by user."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 1000
LEVEL = 0.95
BATCH_VALUES = 1 << 22
"""Users drawn at once, over all resamples: 32 MiB of their numbers, and as much of counts."""


UserValues = Mapping[str, Mapping[str, np.ndarray]]
"""Every metric of each user, ``[U]``, by entry and metric; users in the same order."""

Interval = tuple[float, float]


def intervals_and_tests(
    values: UserValues, reference: str, ranked: Collection[str]
) -> tuple[dict[str, dict[str, Interval]], list[dict[str, Any]]]:
    """Put an interval to each mean; test an entry against each other one, in every metric.

    Args:
        values: of every row.
        reference: the entry that may be better.
        ranked: entries that are tested; none is, unless the reference is among them.

    Returns:
        The intervals by entry and metric, and the tests: of each the ``baseline``, the ``metric``,
        the mean ``difference`` and its ``interval``, ``p`` and ``p_holm``, which is corrected over
        all of them.
    """
    names = [(entry, key) for entry, of_row in values.items() for key in of_row]
    if not names:
        return {}, []
    rows = bootstrap_means(np.array([values[entry][key] for entry, key in names]))
    drawn: dict[str, dict[str, np.ndarray]] = {entry: {} for entry in values}
    for (entry, key), means in zip(names, rows, strict=True):
        drawn[entry][key] = means
    intervals = {
        entry: {key: interval(means) for key, means in of_row.items()}
        for entry, of_row in drawn.items()
    }
    baselines = [entry for entry in ranked if entry != reference and reference in ranked]
    tests: list[dict[str, Any]] = [
        {
            "baseline": entry,
            "metric": key,
            "difference": float((mine - values[entry][key]).mean()),
            "interval": interval(drawn[reference][key] - drawn[entry][key]),
            "p": p_better(mine, values[entry][key]),
        }
        for entry in baselines
        for key, mine in values[reference].items()
    ]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return intervals, tests


def p_better(reference: np.ndarray, baseline: np.ndarray) -> float:
    """One-sided paired t-test of «the reference's mean is greater».

    Args:
        reference: a metric of each user, ``[U]``.
        baseline: the same of the other model, users in the same order, ``[U]``.

    Returns:
        The p-value. Where every user's difference is the same, so that t is not defined: 0 for a
        positive difference, else 1.

    Raises:
        ValueError: if the lengths differ or there are fewer than two users.
    """
    if reference.shape != baseline.shape or len(reference) < 2:
        shapes = f"{reference.shape} and {baseline.shape}"
        raise ValueError(f"a paired test needs two users or more on both sides, found {shapes}")
    difference = reference - baseline
    if np.ptp(difference) == 0:
        return 0.0 if difference[0] > 0 else 1.0
    return float(stats.ttest_rel(reference, baseline, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m is multiplied by ``m - i + 1``.

    Returns:
        Corrected p-values in the order given, at most 1, never falling as p rises.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected.tolist()


def bootstrap_means(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Means over resampled users; each resample draws the same users for every row.

    The difference of two rows of the result is therefore the paired bootstrap of their difference.

    Args:
        values: a row for each model and metric, ``[R, U]``.
        seed: of the draws.
        resamples: how many, ``S``.

    Returns:
        ``[R, S]``.

    Raises:
        ValueError: if there are fewer than two users.
    """
    users = values.shape[1]
    if users < 2:
        raise ValueError(f"a bootstrap needs two users or more, found {users}")

    def means(drawn: np.ndarray, axis: int) -> np.ndarray:
        """Means of all rows over the users drawn, ``[R, B]`` for ``[B, U]``."""
        counts = [np.bincount(each, minlength=users) for each in np.atleast_2d(drawn)]
        # How often a user was drawn weighs its values: one product instead of R * B look-ups.
        found = values @ np.array(counts, dtype=np.float64).T / users
        return found if drawn.ndim == 2 else found[:, 0]

    drawn = stats.bootstrap(
        (np.arange(users),),
        means,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // users),
        method="percentile",  # BCa would leave out every user once: U² values
        random_state=np.random.default_rng(seed),
    )
    return drawn.bootstrap_distribution


def interval(means: np.ndarray) -> Interval:
    """Where the middle ``LEVEL`` of the resampled means lies; ``means`` is ``[S]``."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
