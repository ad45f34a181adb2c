"""The ranking head against slow loops, and what it may not learn."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse

from recbole_jepa4rec.data.histories import Histories
from recbole_jepa4rec.model.loss import contrastive_loss
from recbole_jepa4rec.model.neighbours import Neighbours
from recbole_jepa4rec.model.ranking_head import (
    START,
    STRETCH,
    Entries,
    Queries,
    RankingHead,
    nearest_by_text,
)

ITEMS = [3, 1, 3, 2, 4, 1, 2, 5, 1, 1, 2, 3, 4, 5]
USERS = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
HISTORIES = Histories.of(torch.tensor(USERS), torch.tensor(ITEMS), num_users=4)
ALL = torch.arange(6)


def packed(whole=True, max_items=2):
    return HISTORIES.packed(torch.tensor([5, 9, 13]), max_items, whole)


def head_of(**parts):
    given = {"recencies": 2, "neighbours": None, "nearest": None, "decay": 0.5, "history_items": 3}
    head = RankingHead(**{**given, **parts})
    if head.history_bias is not None:
        head.history_bias.data = torch.tensor([1.0, 2.0, 4.0]) / STRETCH
    return head


def dense(entries, rows, columns):
    return head_of().add_to(torch.zeros(rows, columns), entries)


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
        Entries(query, column, value),
        Entries(torch.tensor([0, 0]), torch.tensor([0, 7]), other),
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
        added = head.entries(Queries.whole(packed), torch.arange(60))
        loss = contrastive_loss(sequences, vectors, packed.targets, 1.0, added=added)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (STRETCH * head.neighbour_weights.detach().clamp(min=0))[1:]


def test_a_user_s_own_counts_teach_nothing():
    assert learned_weights(counted=True).max() < 0.5 < 5 < learned_weights(counted=False).max()
