"""Packed histories hold what RecBole's windows hold, without the padding."""

import torch

from recbole_jepa4rec.data.histories import Histories, PackedHistories

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
