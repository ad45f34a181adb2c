"""Packed histories hold what RecBole's windows hold, without the padding."""

from itertools import pairwise

import torch

from recbole_jepa4rec.data.histories import Histories, PackedHistories
from recbole_jepa4rec.training.phases import trainable_users

HISTORIES = Histories.of(
    torch.tensor([1, 1, 1, 1, 2, 3, 3]), torch.tensor([5, 6, 7, 8, 9, 4, 3]), num_users=4
)


def test_packed_histories_end_before_their_targets():
    packed = HISTORIES.packed(torch.tensor([3, 0, 6]), max_items=2)
    assert packed.items.tolist() == [6, 7, 4]
    assert packed.lengths.tolist() == [2, 0, 1]
    assert packed.users.tolist() == [1, 1, 3]
    assert packed.targets.tolist() == [8, 5, 3]
    assert packed.newest_first().tolist() == [7, 6, 4]
    assert packed.padded().tolist() == [[6, 7], [0, 0], [4, 0]]


def test_padded_windows_are_packed_again():
    packed = HISTORIES.packed(torch.tensor([3, 0, 6]), max_items=5)
    again = PackedHistories.of_padded(packed.padded(), packed.lengths, packed.users, packed.targets)
    assert torch.equal(again.items, packed.items)


def test_older_items_are_left_out():
    targets = torch.tensor([3, 0, 6])
    packed, fewer = (HISTORIES.packed(targets, max_items=most) for most in (5, 2))
    for kept, wanted in ((packed.newest(2), fewer), (packed.newest(9), packed)):
        for name in ("items", "lengths", "users", "targets"):
            assert torch.equal(getattr(kept, name), getattr(wanted, name))


def test_no_history_at_all():
    packed = HISTORIES.packed(torch.tensor([], dtype=torch.int64), max_items=5)
    assert packed.items.tolist() == packed.newest_first().tolist() == []
    assert packed.newest(1).items.tolist() == []
    assert packed.padded().shape == (0, 1)


def test_one_item_more_stands_behind_a_history():
    targets = torch.tensor([3, 0, 6])
    packed = HISTORIES.packed(targets, max_items=2, whole=True)
    longer = packed.followed_by(torch.tensor([20, 21, 0]), 2)
    assert longer.items.tolist() == [7, 20, 21, 4] and longer.lengths.tolist() == [2, 1, 1]
    assert longer.older.tolist() == [5, 6] and longer.older_lengths.tolist() == [2, 0, 0]
    for same in (packed.followed_by(torch.zeros(3).long(), 2), packed):
        assert same.items.tolist() == [6, 7, 4] and same.older.tolist() == [5]
        assert same.lengths.tolist() == [2, 0, 1] and same.older_lengths.tolist() == [1, 0, 0]
    assert HISTORIES.packed(targets, max_items=2).followed_by(torch.ones(3).long(), 2).older is None


class TestTrainFraction:
    MANY = Histories.of(torch.arange(1, 101).repeat_interleave(4), torch.arange(400), 101)

    def test_smaller_shares_lie_within_larger_ones(self):
        shares = [self.MANY.trained_on(f, seed=3).trains for f in (0.001, 0.05, 0.1, 0.5)]
        assert [int(trains.sum()) for trains in shares] == [1, 5, 10, 50]
        for fewer, more in pairwise(shares):
            assert bool((more | ~fewer).all())
        assert not torch.equal(shares[-1], self.MANY.trained_on(0.5, seed=4).trains)
        assert self.MANY.trained_on(0.5, seed=3).trained_on(1.0, seed=3).trains is None

    def test_only_the_training_part_shrinks(self):
        some = self.MANY.trained_on(0.1, seed=3)
        train, valid, test = some.leave_one_out()
        whole = self.MANY.leave_one_out()
        assert len(train) == len(whole[0]) / 10 and set(train.tolist()) <= set(whole[0].tolist())
        assert torch.equal(valid, whole[1]) and torch.equal(test, whole[2])
        assert trainable_users(some).tolist() == torch.nonzero(some.trains)[:, 0].tolist()
        assert int(some.in_training.sum()) == 20 and int(some.in_training_part.sum()) == 200

    def test_of_a_split_in_files(self):
        split = Histories(self.MANY.items, self.MANY.offsets, torch.tensor([0, 0, 1, 2] * 100))
        some = split.trained_on(0.1, seed=3)
        trained = some.where(some.part == 0)
        assert int(some.in_training.sum()) == int(trained.in_training.sum()) == 20
        assert torch.equal(some.trains, self.MANY.trained_on(0.1, seed=3).trains)
