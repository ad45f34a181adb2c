"""The two counting models, against slow counts and figures computed apart from this code."""

import pytest
import torch
from recbole.data.utils import data_preparation

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.evaluation.metrics import mean_metrics, target_ranks
from recbole_jepa4rec.model.counting import Markov, Popularity
from recbole_jepa4rec.runner.quick_start import run

MODELS = [Popularity, Markov]


def prepare(model_class, name):
    config = Config(model=model_class.__name__, dataset=name)
    dataset = SequentialTextDataset(config)
    loaders = data_preparation(config, dataset)
    return model_class(config, loaders[0]._dataset).eval(), dataset, loaders


def training_parts(dataset):
    """Each user's training items as a list, by the rule of the protocol."""
    histories = dataset.histories
    for user in range(1, dataset.user_num):
        items = histories.items[histories.offsets[user] : histories.offsets[user + 1]].tolist()
        yield items[:-2] if len(items) >= 3 else items


def slow_scores(model_class, dataset, last):
    scores = [0] * dataset.item_num
    for items in training_parts(dataset):
        for before, item in zip([None, *items], items, strict=False):
            scores[item] += model_class is Popularity or before == last
    return scores


@pytest.mark.parametrize("model_class", MODELS)
def test_scores_equal_a_slow_count(model_class):
    model, dataset, (_, valid, test) = prepare(model_class, "toy")
    for loader in (valid, test):
        for batch, *_ in loader:
            scores = model.full_sort_predict(batch)
            last = batch["item_id_list"].gather(1, batch["item_length"][:, None] - 1)[:, 0]
            assert scores.shape == (38, dataset.item_num)
            assert scores.tolist() == [slow_scores(model_class, dataset, x) for x in last.tolist()]
            expected = scores[torch.arange(38), batch["item_id"]]
            assert torch.equal(model.predict(batch), expected)


@pytest.mark.parametrize("model_class", MODELS)
def test_scores_may_be_overwritten_by_the_evaluation(model_class):
    model, _, (_, _, test) = prepare(model_class, "toy")
    batch = next(iter(test))[0]
    with torch.no_grad():
        before = model.full_sort_predict(batch)
        model.full_sort_predict(batch)[:, 0] = -torch.inf
        assert torch.equal(model.full_sort_predict(batch), before)


@pytest.mark.parametrize("model_class", MODELS)
def test_training_changes_nothing(model_class):
    model, _, (train, _, _) = prepare(model_class, "toy")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters())
    loss = model.calculate_loss(next(iter(train)))
    loss.backward()
    optimizer.step()
    assert loss.item() == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_history_that_nothing_followed_ties_all_items():
    model, dataset, _ = prepare(Markov, "toy")
    nothing = torch.zeros(2, dtype=torch.long)
    histories = PackedHistories(nothing[:1], torch.tensor([0, 1]), nothing, nothing)
    scores = model.scores(histories)
    assert scores.tolist() == torch.zeros(2, dataset.item_num).tolist()
    ranks = target_ranks(scores, torch.tensor([1, 30]))
    assert ranks.tolist() == [15.5, 15.5]


@pytest.mark.parametrize(
    ("model_class", "expected"),
    [
        (Popularity, {"recall@10": 0.0498, "ndcg@10": 0.0224, "mrr": 0.0222}),
        (Markov, {"recall@10": 0.1039, "ndcg@10": 0.0514, "mrr": 0.0452}),
    ],
)
def test_ml_100k_gives_the_reference_figures(model_class, expected):
    model, _, (_, _, test) = prepare(model_class, "ml-100k")
    with torch.no_grad():
        ranks = [target_ranks(model.full_sort_predict(b), b["item_id"]) for b, *_ in test]
    means = mean_metrics(torch.cat(ranks), ["Recall", "NDCG"], [10])
    assert {name: round(means[name], 4) for name in expected} == expected


@pytest.mark.parametrize("model", ["Popularity", "Markov"])
def test_counted_models_train_no_epoch_whatever_a_preset_says(model, toy, tmp_path):
    given = {
        **toy,
        "epochs": 50,
        "eval_step": 1,
        "use_gpu": False,
        "run_dir": str(tmp_path / "run"),
    }
    found = run(model, config_dict=given)
    assert found["epochs"] == 0 and found["learning_curve"] == []
    assert found["test"]["recall@10"] > 0
