"""Tests of differences, against their definitions written out."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from recbole_jepa4rec.study.significance import bootstrap_means, holm, interval, p_better


def slow_holm(p_values):
    """Reject in the order of p while p <= alpha / (m - i); the least alpha that rejects each."""
    m = len(p_values)
    corrected = []
    for p in p_values:
        smaller = sorted(q for q in p_values if q <= p)
        needed = [q * (m - i) for i, q in enumerate(smaller)]
        corrected.append(min(1.0, max(needed)))
    return corrected


@pytest.mark.parametrize("p_values", [*itertools.permutations([0.01, 0.04, 0.03, 0.005])])
def test_holm_in_any_order(p_values):
    assert holm(p_values) == pytest.approx(slow_holm(p_values))


def test_holm_of_a_textbook_and_of_ties():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([0.01, 0.01, 0.5]) == pytest.approx([0.03, 0.03, 0.5])
    assert holm([]) == []


def test_the_p_value_is_that_of_the_paired_t_statistic():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.1, 1, 50), rng.normal(0, 1, 50)
    difference = [a - b for a, b in zip(one, other, strict=True)]
    mean = sum(difference) / 50
    deviation = math.sqrt(sum((d - mean) ** 2 for d in difference) / 49)
    t = mean / (deviation / math.sqrt(50))
    assert p_better(one, other) == pytest.approx(stats.t.sf(t, df=49))
    assert p_better(one, other) + p_better(other, one) == pytest.approx(1)


def test_the_direction_is_that_the_reference_is_better():
    rng = np.random.default_rng(1)
    low = rng.random(200)
    high = low + rng.random(200)
    assert p_better(high, low) < 1e-10
    assert p_better(low, high) > 1 - 1e-10


@pytest.mark.parametrize(("difference", "p"), [(0.0, 1.0), (0.5, 0.0), (-0.5, 1.0)])
def test_a_difference_without_spread(difference, p):
    values = np.array([0.25, 0.5, 1.0])
    assert p_better(values + difference, values) == p


@pytest.mark.parametrize(("one", "other"), [([1.0], [0.5]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_too_few_or_unequal_users_are_refused(one, other):
    with pytest.raises(ValueError, match="two users or more"):
        p_better(np.array(one), np.array(other))
    with pytest.raises(ValueError, match="two users or more, found 1"):
        bootstrap_means(np.zeros((2, 1)))


def test_the_interval_is_about_the_mean_and_as_wide_as_theory_says():
    values = np.random.default_rng(2).exponential(size=(3, 2000))
    for row, means in zip(values, bootstrap_means(values), strict=True):
        low, high = interval(means)
        assert low < row.mean() < high
        width = 2 * 1.96 * row.std(ddof=1) / math.sqrt(2000)
        assert high - low == pytest.approx(width, rel=0.12)


def test_rows_are_resampled_together():
    one = np.random.default_rng(3).random(100)
    means = bootstrap_means(np.stack([one, one + 0.25, -one]))
    np.testing.assert_allclose(means[1] - means[0], 0.25)
    np.testing.assert_allclose(means[2], -means[0])
    assert means[0].std() > 0


def test_each_mean_is_that_of_users_drawn_with_replacement():
    values = np.array([[0.0, 1.0, 10.0]])
    possible = {sum(drawn) / 3 for drawn in itertools.product([0, 1, 10], repeat=3)}
    means = bootstrap_means(values, resamples=2000)[0]
    found, counts = np.unique(means.round(9), return_counts=True)
    assert found == pytest.approx(sorted(possible))
    assert counts[0] / 2000 == pytest.approx(1 / 27, abs=0.012)  # the first user three times


def test_the_draws_follow_the_seed_and_are_made_in_parts(monkeypatch):
    values = np.random.default_rng(4).random((2, 500))
    assert np.array_equal(bootstrap_means(values, seed=5), bootstrap_means(values, seed=5))
    assert not np.array_equal(bootstrap_means(values, seed=5), bootstrap_means(values, seed=6))
    monkeypatch.setattr("recbole_jepa4rec.study.significance.BATCH_VALUES", 3000)
    sizes = []
    draw = stats.bootstrap

    def watched(data, statistic, **options):
        def measured(drawn, axis):
            sizes.append(drawn.size)
            return statistic(drawn, axis)

        return draw(data, measured, **options)

    monkeypatch.setattr("recbole_jepa4rec.study.significance.stats.bootstrap", watched)
    assert bootstrap_means(values).shape == (2, 1000)
    assert max(sizes) <= 3000
