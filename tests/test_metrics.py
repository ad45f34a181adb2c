"""Ranks by counting, and metrics as functions of the rank."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.evaluator import register

from recbole_jepa4rec.config import protocol
from recbole_jepa4rec.data.histories import Histories, HistoryRows
from recbole_jepa4rec.evaluation import metrics
from recbole_jepa4rec.evaluation.metrics import (
    RANK_METRICS,
    mean_metrics,
    metric_values,
    numbers_alone,
    target_ranks,
)
from recbole_jepa4rec.evaluation.ranking import rank_targets

few_scores = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 0.5000001, 2.0, math.inf])


def slow_rank(scores: list[float], target: int) -> float:
    others = [score for item, score in enumerate(scores) if item not in (0, target)]
    greater = sum(score > scores[target] for score in others)
    ties = sum(score == scores[target] for score in others)
    return 1 + greater + ties / 2


@given(st.lists(few_scores, min_size=2, max_size=9), st.data())
def test_rank_equals_the_slow_count(row, data):
    target = data.draw(st.integers(1, len(row) - 1))
    ranks = target_ranks(torch.tensor([row], dtype=torch.float32), torch.tensor([target]))
    row32 = torch.tensor(row).tolist()
    assert ranks.dtype == torch.float64
    assert ranks.item() == slow_rank(row32, target)


@pytest.mark.parametrize("at_once", [1, 7, 64, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_chunks_of_any_size_give_the_same_ranks(monkeypatch, at_once, dtype):
    monkeypatch.setattr(metrics, "SCORES_AT_ONCE", at_once)
    scores = torch.randint(0, 9, (7, 23)).to(dtype)
    target = torch.randint(1, 23, (7,))
    expected = list(map(slow_rank, scores.tolist(), target.tolist()))
    assert target_ranks(scores.requires_grad_(), target).tolist() == expected
    scores.detach()[3, -1] = math.nan
    with pytest.raises(ValueError, match="NaN in 1 of 7 rows"):
        numbers_alone(target_ranks(scores, target))


def test_a_constant_model_gets_the_mean_rank():
    ranks = target_ranks(torch.zeros(3, 11), torch.tensor([1, 5, 10]))
    assert ranks.tolist() == [5.5, 5.5, 5.5]


def test_the_padding_column_is_not_looked_at():
    scores = torch.randn(4, 7)
    target = torch.tensor([1, 2, 3, 6])
    expected = target_ranks(scores, target)
    for value in (math.inf, -math.inf, math.nan):
        scores[:, 0] = value
        assert torch.equal(target_ranks(scores, target), expected)


def test_filtered_items_do_not_compete():
    scores = torch.tensor([[0.0, 5.0, 4.0, 3.0]])
    scores[0, 1] = -math.inf
    assert target_ranks(scores, torch.tensor([3])).item() == 2


def test_values_by_hand():
    values = metric_values(np.array([1, 2.5, 10, 11]), ["Recall", "ndcg", "MRR"], [2, 10])
    assert set(values) == {f"{m}@{k}" for m in ("recall", "ndcg", "mrr") for k in (2, 10)} | {"mrr"}
    assert values["recall@2"].tolist() == [1, 0, 0, 0]
    assert values["recall@10"].tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(values["ndcg@10"], [1, 1 / math.log2(3.5), 1 / math.log2(11), 0])
    np.testing.assert_allclose(values["mrr@10"], [1, 0.4, 0.1, 0])
    np.testing.assert_allclose(values["mrr"], [1, 0.4, 0.1, 1 / 11])


def test_means_of_values():
    ranks = torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert mean_metrics(ranks, ["hit", "precision"], [2]) == {
        "hit@2": 0.5,
        "precision@2": 0.25,
        "mrr": 0.625,
    }
    with pytest.raises(ValueError, match="at least 3 interactions"):
        mean_metrics(ranks[:0], ["hit"], [2])


def test_settings_know_the_metrics():
    assert set(RANK_METRICS) == set(protocol.RANK_METRICS)
    assert set(metrics.LIST_METRICS) == set(protocol.LIST_METRICS)


@pytest.mark.parametrize("name", RANK_METRICS)
def test_a_metric_of_ranks_never_rises_with_the_rank(name):
    ranks = np.arange(2, 60) / 2
    for k in (1, 3, 10):
        values = RANK_METRICS[name](ranks, k)
        assert values.dtype == np.float64
        assert values.max() <= 1 and (np.diff(values) <= 0).all()
        assert (values[ranks > k] == 0).all()


@pytest.mark.parametrize("name", metrics.LIST_METRICS)
def test_a_metric_of_lists_knows_no_order_of_users(name):
    counts = metrics.TrainingCounts(torch.tensor([0, 5, 3, 0]), torch.tensor([0, 4, 3, 0]), 6)
    best = torch.tensor([[1, 2], [1, 3], [2, 1]])
    value = metrics.LIST_METRICS[name](best, counts)
    assert math.isfinite(value)
    assert metrics.LIST_METRICS[name](best.flip(0), counts) == pytest.approx(value)
    assert metrics.LIST_METRICS[name](best.repeat(3, 1), counts) == pytest.approx(value)


@pytest.mark.parametrize("name", ["AUC", "gauc", "ItemCoverage", "recal"])
def test_other_metrics_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name.lower()!r}.*recall, hit, ndcg"):
        metric_values(np.ones(1), ["recall", name], [10])


def test_a_cut_off_below_one_is_refused():
    with pytest.raises(ValueError, match="topk 0"):
        metric_values(np.ones(1), ["recall"], [0])


def recbole_evaluator(metrics, topk):
    from recbole.evaluator.collector import Collector

    config = {
        "metrics": metrics,
        "topk": topk,
        "eval_args": {"mode": {"valid": "full", "test": "full"}},
        "device": torch.device("cpu"),
        "metric_decimal_place": 12,
    }
    return Collector(config), {name: register.metrics_dict[name](config) for name in metrics}


def test_metrics_equal_recboles_where_nothing_ties(monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)
    known = {name for name, metric in register.metrics_dict.items() if "plugin" not in str(metric)}
    theirs_too = [name for name in RANK_METRICS if name in known]
    names, topk = [*theirs_too, "fullmrr"], [1, 3, 10]
    scores = torch.stack([torch.randperm(40) for _ in range(64)]).float()
    scores[:, 0] = -math.inf
    target = torch.randint(1, 40, (64,))

    collector, metrics = recbole_evaluator(names, topk)
    collector.eval_batch_collect(scores, None, torch.arange(64), target)
    collected = collector.get_data_struct()
    theirs = {}
    for metric in metrics.values():
        theirs.update(metric.calculate_metric(collected))
    assert mean_metrics(target_ranks(scores, target), names, topk) == pytest.approx(theirs)


def test_full_mrr_refuses_rows_with_several_targets():
    collected = {"rec.meanrank": torch.tensor([[3.0, 10.0, 2.0]])}
    with pytest.raises(ValueError, match="exactly one target"):
        register.metrics_dict["fullmrr"]({"metric_decimal_place": 4}).calculate_metric(collected)


class TestLists:
    """Users 1 to 4 over items 1 to 5; item 5 is not trained on."""

    HISTORIES = Histories.of(
        torch.tensor([1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4]),
        torch.tensor([1, 5, 5, 1, 1, 5, 5, 2, 5, 5, 3]),
        num_users=5,
    )
    BEST = torch.tensor([[1, 2], [1, 5], [1, 2]])

    def test_counts_are_those_of_the_training_part(self):
        counts = metrics.TrainingCounts.of(self.HISTORIES, 6)
        assert counts.interactions.tolist() == [0, 3, 1, 1, 0, 0]
        assert counts.users.tolist() == [0, 2, 1, 1, 0, 0]
        assert counts.num_users == 4

    def test_values_by_hand(self):
        counts = metrics.TrainingCounts.of(self.HISTORIES, 6)
        names = ["Recall", "Coverage", "Novelty", "Average_Popularity"]
        values = metrics.list_metrics(self.BEST, names, [1, 2], counts)
        assert values == pytest.approx(
            {
                "coverage@1": 1 / 5,
                "coverage@2": 3 / 5,
                "novelty@1": 1.0,  # two of four users had item 1
                "novelty@2": (3 * 1.0 + 2 * 2.0 + 2.0) / 6,  # item 5 counts as one user's
                "average_popularity@1": 3.0,
                "average_popularity@2": (3 * 3 + 2 * 1 + 0) / 6,
            }
        )

    def test_the_best_are_looked_for_where_a_metric_asks(self):
        assert metrics.depth_of(["Recall", "novelty"], [5, 10]) == 10
        assert metrics.depth_of(["Recall", "NDCG"], [5, 10]) == 0

    def test_ranks_do_not_tell_them(self):
        assert set(metric_values(np.ones(2), ["coverage", "recall"], [3])) == {"recall@3", "mrr"}


class TestRankingLoop:
    def rank(self, scores, size, **settings):
        """Rank the last items of two users whose scores are given."""
        histories = Histories.of(
            torch.tensor([1, 1, 1, 2, 2]), torch.tensor([1, 2, 3, 4, 1]), num_users=3
        )
        rows = HistoryRows(histories, {}, torch.tensor([2, 4]), {}, "length", 10)
        batches = [torch.arange(2)[first : first + size] for first in range(0, 2, size)]
        given = {"filter_history": False, "depth": 2, **settings}
        return rank_targets(rows, batches, lambda batch: scores[batch].clone(), **given)

    SCORES = torch.tensor([[9.0, 5, 4, 3, 2], [9.0, 1, 2, 3, 4]])

    @pytest.mark.parametrize("size", [1, 2])
    def test_ranks_and_the_best_whatever_the_batches(self, size):
        ranking = self.rank(self.SCORES, size)
        assert ranking.ranks.tolist() == [3, 4]
        assert ranking.best.tolist() == [[1, 2], [4, 3]]

    def test_the_history_leaves_the_ranking_where_asked(self):
        ranking = self.rank(self.SCORES, 2, filter_history=True)
        assert ranking.ranks.tolist() == [1, 3]
        assert ranking.best.tolist() == [[3, 4], [3, 2]]

    def test_scores_that_are_no_numbers_are_refused(self):
        scores = self.SCORES.clone()
        scores[1, 2] = math.nan
        with pytest.raises(metrics.NotNumbersError, match="NaN in 1 of 2 rows"):
            self.rank(scores, 2)
