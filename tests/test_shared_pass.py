"""Windows of a step: every target once, behind the items that RecBole's row of it has."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.histories import Histories
from recbole_jepa4rec.runner.quick_start import main, run
from recbole_jepa4rec.training.shared_pass import window_order, windows
from tests.conftest import ROOT, TINY

lengths = st.lists(st.integers(0, 12), min_size=1, max_size=8)


def histories_of(counts):
    """Users with so many interactions each, every one with an item of its own."""
    users = torch.repeat_interleave(torch.arange(1, len(counts) + 1), torch.tensor(counts))
    return Histories.of(users, 100 + torch.arange(len(users)), len(counts) + 1)


devices = st.sampled_from([torch.device("cpu"), torch.device("cuda")])  # by name alone


@given(lengths, st.integers(1, 7), st.integers(1, 20), st.integers(0, 3), devices)
def test_windows_hold_what_rows_hold(counts, max_items, step, seed, device):
    histories = histories_of(counts)
    targets = histories.targets
    if not len(targets):
        return
    generator = torch.Generator().manual_seed(seed)
    order = window_order(histories, targets, max_items, generator)
    assert sorted(order.tolist()) == targets.tolist()
    read = 0
    for chunk in order.split(step):
        found = {}
        for items, sizes, places, positions in windows(histories, chunk, max_items, device):
            assert items.shape == (len(sizes), sizes.max()) and sizes.max() <= max_items
            inside = torch.arange(items.shape[1]) < sizes[:, None]
            assert torch.equal(items > 0, inside)
            read += int(inside.sum())
            row, last = places // items.shape[1], places % items.shape[1]
            for target, r, k in zip(positions.tolist(), row.tolist(), last.tolist(), strict=True):
                found[target] = items[r, : k + 1]
        assert sorted(found) == sorted(chunk.tolist())
        packed = histories.packed(chunk, max_items)
        for target, expected in zip(
            chunk.tolist(), packed.items.split(packed.lengths.tolist()), strict=True
        ):
            assert torch.equal(found[target], expected)
    if step >= len(order):
        assert read <= histories.lengths.sum() + sum(
            max_items * max(0, count - 1 - max_items) for count in counts
        )


@given(lengths, st.integers(0, 3))
def test_targets_that_share_a_window_stay_together(counts, seed):
    histories = histories_of(counts)
    if not len(histories.targets):
        return
    generator = torch.Generator().manual_seed(seed)
    order = window_order(histories, histories.targets, 5, generator)
    starts = torch.maximum(histories.offsets[histories.users[order]], order - 5)
    assert len(torch.unique_consecutive(starts)) == len(torch.unique(starts))
    unshuffled = window_order(histories, histories.targets.flip(0), 5, None)
    assert torch.equal(unshuffled, histories.targets)


class TestRuns:
    @pytest.fixture
    def result(self, toy, tmp_path):
        def call(name, model="SASRec", **settings):
            given = {**toy, **TINY, "use_gpu": False, "epochs": 3, **settings}
            return run(model, config_dict={**given, "run_dir": str(tmp_path / name)})

        return call

    def test_both_ways_of_training_learn(self, result):
        ways = {way: result(way, training_targets=way) for way in ("all_prefixes", "rows")}
        assert ways["all_prefixes"]["test"] == result("default")["test"]
        assert ways["rows"]["test"] != ways["all_prefixes"]["test"]
        for found in ways.values():
            assert found["test"]["recall@10"] > 0.5 and found["epochs"] == 3

    def test_negatives_that_the_model_ranks_need_rows(self, result):
        dynamic = {"distribution": "uniform", "sample_num": 1, "dynamic": True, "candidate_num": 2}
        settings = {"loss_type": "BPR", "train_neg_sample_args": dynamic}
        found = result("dynamic", **settings)
        assert found["test"] == result("rows", training_targets="rows", **settings)["test"]

    def test_an_unshuffled_epoch_repeats_to_the_bit(self, result):
        first, second = (result(name, shuffle=False) for name in ("first", "second"))
        assert first["test"] == second["test"]

    @pytest.mark.parametrize(
        ("model", "value", "allowed"),
        [
            ("BERT4Rec", "all_prefixes", "for BERT4Rec: rows"),
            ("SASRec", "random", ": all_prefixes, rows"),
            ("UniSRec", "rows", "for UniSRec: all_prefixes"),
            ("Markov", "rows", "for Markov: none, nothing is trained"),
        ],
    )
    def test_targets_that_a_model_cannot_have_are_refused(self, model, value, allowed, capsys):
        words = [f"--model={model}", "--dataset=toy", f"--data_path={ROOT / 'dataset'}"]
        assert main([*words, f"--training_targets={value}"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert (
            error
            == f"error: training_targets is {value!r}; allowed{' ' * (allowed[0] != ':')}{allowed}"
        )

    def test_rows_are_allowed_of_any_model_of_recbole_s(self):
        given = {"data_path": str(ROOT / "dataset"), "training_targets": "rows"}
        assert Config("NARM", "toy", config_dict=given)["training_targets"] == "rows"
