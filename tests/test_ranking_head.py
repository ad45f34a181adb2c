"""The ranking head against slow loops, and what it may not learn."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import sparse

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.data.histories import Histories, PackedHistories
from recbole_jepa4rec.model.loss import contrastive_loss
from recbole_jepa4rec.model.neighbours import Neighbours
from recbole_jepa4rec.model.ranking_head import (
    SCALES,
    STRETCH,
    Entries,
    ItemIds,
    Queries,
    RankingHead,
    nearest_by_text,
)
from recbole_jepa4rec.runner.quick_start import run
from tests.contract import SMALL, made
from tests.tiny_encoder import tiny_bert  # noqa: F401

ITEMS = [3, 1, 3, 2, 4, 1, 2, 5, 1, 1, 2, 3, 4, 5]
USERS = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
HISTORIES = Histories.of(torch.tensor(USERS), torch.tensor(ITEMS), num_users=4)
ALL = torch.arange(6)
START = [1.0, 6.0, 2.0]


def packed(whole=True, max_items=2):
    return HISTORIES.packed(torch.tensor([5, 9, 13]), max_items, whole)


def head_of(**parts):
    given = {"recencies": 2, "neighbours": None, "nearest": None, "decay": 0.5, "history_items": 3}
    given["first_weights"] = START
    head = RankingHead(**{**given, **parts})
    if head.history_bias is not None:
        head.history_bias.data = torch.tensor([1.0, 2.0, 4.0]) / STRETCH
    return head


def dense(entries, rows, columns):
    of_history, of_neighbours = entries
    return head_of().add_to(torch.zeros(rows, columns), of_history + of_neighbours)


def slow_bias(item_lists):
    """Bias of each item by how long ago it was met last: 1, 2, or more."""
    table = torch.zeros(len(item_lists), len(ALL))
    for row, items in enumerate(item_lists):
        for age, item in reversed([*enumerate(reversed(items), start=1)]):
            table[row, item] = {1: 1.0, 2: 2.0}.get(age, 4.0)
    return table


@pytest.mark.parametrize("whole", [True, False])
def test_bias_of_whole_histories_equals_a_slow_loop(whole):
    lists = [[3, 1, 3, 2, 4], [2, 5, 1], [2, 3, 4]]
    lists = lists if whole else [items[-2:] for items in lists]
    found = head_of().entries(Queries.whole(packed(whole)), ALL)
    torch.testing.assert_close(dense(found, 3, 6), slow_bias(lists))


def test_bias_of_prefixes_equals_a_slow_loop():
    histories = packed()
    queries = Queries.prefixes(histories)
    lists = [[3, 1, 3, 2], [3, 1, 3, 2, 4], [2, 5], [2, 5, 1], [2, 3], [2, 3, 4]]
    assert queries.next_items.tolist() == [4, 1, 1, 1, 4, 5]
    found = head_of().entries(queries, ALL)
    torch.testing.assert_close(dense(found, 6, 6), slow_bias(lists))


def test_candidates_are_columns_in_their_order():
    queries, candidates = Queries.whole(packed()), torch.tensor([4, 9, 1])
    whole = dense(head_of().entries(queries, torch.arange(10)), 3, 10)
    chosen = dense(head_of().entries(queries, candidates), 3, 3)
    assert torch.equal(chosen, whole[:, candidates]) and not chosen[:, 1].any()


def slow_terms(items, user, nearest, leave_out_own):
    """Text, co-occurrence and transitions of a history with every item, ``[3, N]``."""
    trains = HISTORIES.in_training.tolist()
    parts = {}
    for owner, item, is_on in zip(USERS, ITEMS, trains, strict=True):
        if is_on and not (leave_out_own and owner == user):
            parts.setdefault(owner, []).append(item)
    had = [set(items) for items in parts.values()]
    table = np.zeros((3, 6))
    for age, item in enumerate(reversed(items[-3:])):
        weight = 0.5**age
        followers = [b for part in parts.values() for a, b in pairwise(part) if a == item]
        for other in range(1, 6):
            with_each = [sum(x in one for one in had) for x in (item, other)]
            both = sum(item in one and other in one for one in had)
            table[0, other] += weight * nearest[item, other]
            if both and item != other:
                table[1, other] += weight * both / np.sqrt(with_each[0] * with_each[1])
            if followers:
                table[2, other] += weight * followers.count(other) / len(followers)
    return table


@pytest.mark.parametrize("counted", [False, True])
def test_neighbour_terms_equal_a_slow_loop(counted):
    vectors = np.random.default_rng(1).random((6, 4))
    vectors[0] = 0
    vectors[1:] /= np.linalg.norm(vectors[1:], axis=1, keepdims=True)
    nearest = nearest_by_text(sparse.csr_matrix(vectors), 6)
    np.testing.assert_allclose(nearest.toarray(), vectors @ vectors.T)
    neighbours = Neighbours.of(HISTORIES, 6)
    head = head_of(recencies=None, neighbours=neighbours, nearest=nearest)
    queries = Queries.whole(replace(packed(max_items=10), counted=counted))
    found = head.entries(queries, torch.arange(6))
    for row, (user, items) in enumerate([(1, [3, 1, 3, 2, 4]), (2, [2, 5, 1]), (3, [2, 3, 4])]):
        terms = slow_terms(items, user, nearest.toarray(), counted)
        expected = sum(weight * term for weight, term in zip(START, terms, strict=True))
        np.testing.assert_allclose(dense(found, 3, 6)[row].detach(), expected, atol=1e-5)


def test_nearest_texts_are_the_nearest():
    vectors = np.eye(5)[[0, 0, 1, 1, 1]] * 0.8 + np.eye(5)[[2, 2, 3, 3, 4]] * 0.6
    nearest = nearest_by_text(sparse.csr_matrix(vectors), 2).toarray()
    assert (nearest > 0).sum(axis=1).tolist() == [2, 2, 2, 2, 2]
    assert nearest[2, 3] == pytest.approx(1) and nearest[2, 4] == 0


def test_softmax_with_entries_equals_one_of_dense_logits(monkeypatch):
    monkeypatch.setattr("recbole_jepa4rec.model.loss.CHUNK_LOGITS", 12)  # three candidates a chunk
    torch.manual_seed(0)
    sequences, items = torch.randn(4, 3, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    positive, weights = torch.tensor([0, 7, 3, 3]), torch.rand(8)
    value = torch.randn(6, requires_grad=True)
    query, column = torch.tensor([0, 3, 2, 1, 0, 2]), torch.tensor([0, 3, 3, 4, 7, 7])
    other = torch.randn(2, requires_grad=True)
    added = [
        Entries(query, column, value, np.searchsorted(column, np.arange(9))),
        Entries(torch.tensor([0, 0]), torch.tensor([0, 7]), other, np.array([0, *[1] * 7, 2])),
    ]
    loss = contrastive_loss(sequences, items, positive, 0.5, weights, added)
    found = torch.autograd.grad(loss, (sequences, items, value, other))
    logits = torch.nn.functional.normalize(sequences) @ torch.nn.functional.normalize(items).T / 0.5
    logits = logits + weights
    for part in added:
        logits = logits.index_put((part.query, part.column), part.value, accumulate=True)
    expected = torch.nn.functional.cross_entropy(logits, positive)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, (sequences, items, value, other))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


def learned_weights(counted):
    """Weights of the neighbour terms after training on histories that are nothing but chance."""
    generator = torch.Generator().manual_seed(3)
    items = torch.randint(1, 60, (150 * 8,), generator=generator)
    histories = Histories.of(torch.arange(1, 151).repeat_interleave(8), items, num_users=151)
    none = sparse.csr_matrix((60, 60))
    head = head_of(recencies=None, neighbours=Neighbours.of(histories, 60), nearest=none)
    trained = histories.targets[histories.in_training[histories.targets]]
    packed = replace(histories.packed(trained, 5), counted=counted)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    sequences, vectors = torch.ones(len(packed), 2), torch.ones(60, 2)
    for _ in range(25):
        added = head.entries(Queries.whole(packed), torch.arange(60))[1]
        loss = contrastive_loss(sequences, vectors, packed.targets, 1.0, added=added)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (STRETCH * head.neighbour_weights.detach().clamp(min=0))[1:]


def test_a_user_s_own_counts_teach_nothing():
    assert learned_weights(counted=True).max() < 0.5 < 5 < learned_weights(counted=False).max()


MODELS = {
    "JEPA4Rec": {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 300},
    "RecFormer": {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 300},
    "LLMJEPA": {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 300},
    "UniSRec": {"hidden_size": 16, "n_heads": 2, "inner_size": 16, "max_text_tokens": 32},
    "VQRec": {
        **{"hidden_size": 16, "n_heads": 2, "max_text_tokens": 32},
        **{"code_digits": 4, "code_values": 8},
    },
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory, tiny_bert):  # noqa: F811
    """A model whose head says something, in the mode in which it ranks; and its training rows."""
    given = {**SMALL, **MODELS[request.param], "MAX_ITEM_LIST_LENGTH": 4, "epochs": 1}
    given |= {"history_bias": True, "neighbour_prior": True, "train_stage": "finetune"}
    given |= {"item_id_residual": True, "item_id_dropout": 0.0}
    given |= {"cache_dir": str(tmp_path_factory.mktemp("cache")), "items_per_step": 0}
    if request.param in ("UniSRec", "VQRec"):
        given["text_encoder"] = str(tiny_bert)
    config = Config(request.param, "toy", config_dict=given)
    part = find_dataset(config.model_class)(config).build()[0]
    torch.manual_seed(5)
    net = made(config, part)
    net.head.history_bias.data.uniform_(-1, 1).div_(STRETCH)
    net.head.item_ids.vectors.data.uniform_(-1, 1)
    return net, part.inter_feat, part.item_text


def test_training_lowers_the_loss_of_the_ranking_itself(model):
    """Behind each item of a window, by the head's terms for all the items before it."""
    net, rows, _ = model
    net.begin_phase("finetune", 1)
    net.begin_epoch(1)
    histories = rows.histories
    whole = histories.lengths[1:].argmax() + 1
    last = int(histories.train_end[whole]) - 1
    begin = int(histories.offsets[whole])
    assert last - begin > 4  # the window cuts something off
    loss = sum(net.losses(histories.packed(torch.tensor([last]), 4, True)))
    slow = []
    for target in range(last - 3, last + 1):
        window, older = histories.items[last - 4 : target], histories.items[begin : last - 4]
        packed = PackedHistories(
            window,
            torch.tensor([len(window)]),
            torch.tensor([whole]),
            histories.items[target : target + 1],
            older,
            torch.tensor([len(older)]),
            counted=True,
        )
        logits = net.scores(packed)[:, 1:]
        slow.append(torch.nn.functional.cross_entropy(logits, packed.targets - 1))
    torch.testing.assert_close(loss, torch.stack(slow).mean(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_validation_s_choice_multiplies_the_neighbours_weights(model):
    net, rows, _ = model
    packed = rows.histories.packed(rows.target[:6], 4, True)
    weights = net.head.neighbour_weights.clone()
    for number, scores in enumerate(net.scores_of_choices(packed)):
        net.head.neighbour_weights.copy_(weights)
        net.choose(number)
        torch.testing.assert_close(scores, net.scores(packed))
        net.choose(0)
        net.head.neighbour_weights.copy_(SCALES[number] * weights)
        torch.testing.assert_close(scores, net.scores(packed))


@torch.no_grad()
def test_a_new_item_is_ranked_by_its_text_and_has_no_neighbours(model):
    net, rows, item_text = model
    packed = rows.histories.packed(rows.target[:6], 4, True)
    known = packed.items[:1]
    [new] = net.add_items(item_text.iloc[known.numpy()]).tolist()
    scores = net.scores(packed)
    assert scores.shape[1] == new + 1
    assert (scores[0, new] - scores[0, known[0]]).abs() > 0.01
    net.head.item_ids.vectors.zero_()
    torch.testing.assert_close(scores[:, new], net.cosines(packed)[:, known[0]] / net.temperature)


@torch.no_grad()
@pytest.mark.parametrize("part", ["history_bias", "neighbour_prior"])
def test_either_part_ranks_alone(part, tmp_path):
    given = {**SMALL, **MODELS["JEPA4Rec"], part: True, "cache_dir": str(tmp_path)}
    config = Config("JEPA4Rec", "toy", config_dict=given)
    training = find_dataset(config.model_class)(config).build()[0]
    net, rows = made(config, training), training.inter_feat
    packed = rows.histories.packed(rows.target[:6], 4, True)
    assert net.scores(packed).isfinite().all()
    assert bool(net.choices) == (part == "neighbour_prior")


def test_first_weights_are_given(tmp_path):
    given = {**SMALL, **MODELS["JEPA4Rec"], "neighbour_prior": True, "cache_dir": str(tmp_path)}
    config = Config("JEPA4Rec", "toy", config_dict={**given, "neighbour_weights": [0, 3, 1.5]})
    training = find_dataset(config.model_class)(config).build()[0]
    weights = made(config, training).head.neighbour_weights
    torch.testing.assert_close(STRETCH * weights.detach(), torch.tensor([0, 3, 1.5]))
    for wrong in ([-1, 1, 1], [1, 1], "much"):
        with pytest.raises(ValueError, match=r"neighbour_weights.*a list of three numbers from 0"):
            Config("JEPA4Rec", "toy", config_dict={**given, "neighbour_weights": wrong})


def test_own_vectors_are_left_out_at_random_and_shrink():
    torch.manual_seed(0)
    ids, texts = ItemIds(40, 4, dropout=0.5, decay=0.1), torch.ones(40, 4)
    ids.vectors.data += 1.0
    whole = ids.eval().on_top_of(texts, torch.arange(40))
    torch.testing.assert_close(whole, texts / 2 + 1)
    some = ids.train().on_top_of(texts, torch.arange(40))
    left = (some == texts / 2).all(dim=1)
    assert 10 < left.sum() < 30 and torch.equal(some[~left], whole[~left])
    ids.shrink()
    torch.testing.assert_close(ids.vectors.data, torch.full((40, 4), 0.9))


class TestStart:
    """A checkpoint to start from may have another head than the model."""

    SMALL: ClassVar = {**SMALL, **MODELS["JEPA4Rec"], "train_stage": "finetune", "epochs": 0}

    @pytest.fixture
    def trained(self, tmp_path):
        def call(**head):
            where = {
                "cache_dir": str(tmp_path),
                "run_dir": str(tmp_path / "-".join(["run", *head])),
            }
            return str(
                Path(
                    run("JEPA4Rec", "toy", config_dict={**self.SMALL, **where, **head})["path"]
                ).parent
            )

        return call

    def test_a_head_that_it_lacks_begins_anew(self, trained, tmp_path):
        start = trained(history_bias=False)
        assert trained(history_bias=True, neighbour_prior=True, checkpoint=start)

    @pytest.mark.parametrize("key", ["history_bias", "neighbour_prior", "item_id_residual"])
    def test_a_head_that_the_model_lacks_is_refused(self, trained, key):
        start = trained(**{"history_bias": False, key: True})
        with pytest.raises(ValueError, match=f"{key} is False; allowed with this checkpoint"):
            trained(history_bias=False, checkpoint=start)
