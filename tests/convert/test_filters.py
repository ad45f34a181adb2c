"""Filters against slow loops over sets and lists."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_jepa4rec.convert.filters import (
    apply,
    in_order,
    k_core,
    read_interactions,
    without_duplicates,
)
from recbole_jepa4rec.convert.settings import Rule

rows_of = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), st.integers(0, 3)), max_size=60
)


def raw(interactions):
    """(user, item, time) of each."""
    return list(interactions.itertuples(index=False, name=None))


@given(rows_of, st.integers(0, 4), st.integers(0, 4))
def test_core(rows, least_user, least_item):
    kept = list(rows)
    while True:
        users, items = Counter(r[0] for r in kept), Counter(r[1] for r in kept)
        fewer = [r for r in kept if users[r[0]] >= least_user and items[r[1]] >= least_item]
        if fewer == kept:
            break
        kept = fewer
    assert raw(k_core(read_interactions(rows), least_user, least_item)) == kept


@given(rows_of)
def test_duplicates(rows):
    exact, seen = [], set()
    for row in rows:
        if row not in seen:
            exact.append(row)
        seen.add(row)
    read = read_interactions(rows)
    assert raw(without_duplicates(read, "exact")) == exact
    earliest = {}
    for place, (user, item, time) in enumerate(rows):
        best = earliest.get((user, item))
        if best is None or time < rows[best][2]:
            earliest[user, item] = place
    assert raw(without_duplicates(read, "pair")) == [rows[p] for p in sorted(earliest.values())]


@given(rows_of)
def test_order_is_by_first_appearance_of_users_then_time_and_stable(rows):
    users = list(dict.fromkeys(row[0] for row in rows))
    expected = sorted(rows, key=lambda row: (users.index(row[0]), row[2]))
    assert raw(in_order(read_interactions(rows))) == expected


def test_ids_in_order_are_those_that_occur():
    rows = read_interactions([("a", "x", 1), ("b", "y", 1), ("c", "z", 1)])
    kept = in_order(rows[1:])
    for column, ids in (("user", ["b", "c"]), ("item", ["y", "z"])):
        assert kept[column].cat.categories.tolist() == ids
        assert kept[column].cat.codes.tolist() == [0, 1]


def test_whole_times_are_kept_to_the_last_digit():
    times = [2**62 + 1, 2**62, -(2**62) - 1]
    assert raw(read_interactions(("u", "i", time) for time in times)) == [
        ("u", "i", time) for time in times
    ]
    mixed = read_interactions(("u", "i", time) for time in (1, 2.5, 3))
    assert mixed["time"].tolist() == [1, 2.5, 3]


def test_cold_users_come_back_with_items_of_the_core():
    core = [(u, i, 0) for u in "ab" for i in "xy"]
    rows = read_interactions([*core, ("c", "x", 0), ("c", "z", 0)])
    assert raw(apply(Rule(core_users=2, core_items=2), rows)[0]) == core
    kept, steps = apply(Rule(core_users=2, core_items=2, cold_users=True), rows)
    assert raw(kept) == [*core, ("c", "x", 0)]
    assert steps[-1] == {
        "step": "core 2, 2 and cold users",
        "users": 3,
        "items": 2,
        "interactions": 5,
    }


def test_a_share_of_users_hangs_on_their_ids_alone():
    rows = [(f"u{n}", "i", n) for n in range(2000)]
    rule = Rule(user_share=0.2)
    drawn = {row[0] for row in raw(apply(rule, read_interactions(rows))[0])}
    assert 320 < len(drawn) < 480
    assert drawn == {row[0] for row in raw(apply(rule, read_interactions(rows[::-1]))[0])}
    other = apply(Rule(user_share=0.2, seed=1), read_interactions(rows))[0]
    assert drawn != {row[0] for row in raw(other)}


def test_nothing_left_says_after_which_step():
    rows = read_interactions([("u", "i", 0)])
    with pytest.raises(ValueError, match="left after step «core 5, 5», where 1 were read"):
        apply(Rule(core_users=5, core_items=5), rows)
    with pytest.raises(ValueError, match="left after step «read»"):
        apply(Rule(), read_interactions([]))
