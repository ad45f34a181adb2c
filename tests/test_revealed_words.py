"""Words of the next item, shown behind the history when a model ranks."""

from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from recbole_jepa4rec.evaluation import revealed_words
from recbole_jepa4rec.evaluation.revealed_words import revealed_text
from recbole_jepa4rec.runner.quick_start import main, run
from recbole_jepa4rec.training import protocol

TINY = {
    "epochs": 1,
    "frozen_items_epochs": 0,
    "hidden_size": 8,
    "intermediate_size": 16,
    "show_progress": False,
}
TEXT = pd.DataFrame(
    {"title": ["", "Red Bow and Arrow", "One", ""], "brand": ["", "Acme Tools", "", ""]}
)


def shown(ratio, seed=1, users=(1, 2, 3)):
    items = torch.tensor([1] * len(users))
    return revealed_text(TEXT, torch.tensor(users), items, ratio, seed)


class TestText:
    def test_words_keep_their_order_and_attribute(self):
        wanted = [*TEXT.iloc[1]]
        for title, brand in shown(0.6, users=range(50)).itertuples(index=False):
            for words, whole in zip((title, brand), wanted, strict=True):
                left = iter(whole.split())
                assert all(word in left for word in words.split())

    def test_a_smaller_share_lies_within_a_larger_one(self):
        fewer, more = (shown(ratio, users=range(200)) for ratio in (0.2, 0.6))
        counts = []
        for small, large in zip(fewer.to_numpy(), more.to_numpy(), strict=True):
            assert all({*a.split()} <= {*b.split()} for a, b in zip(small, large, strict=True))
            counts.append([sum(len(text.split()) for text in each) for each in (small, large)])
        small, large = torch.tensor(counts).sum(0) / (200 * 6)
        assert abs(small - 0.2) < 0.03 and abs(large - 0.6) < 0.03

    def test_the_draw_is_keyed(self):
        assert shown(0.5).equals(shown(0.5)) and not shown(0.5).equals(shown(0.5, seed=2))
        assert shown(0.5, users=(3,)).iloc[0].equals(shown(0.5).iloc[2].rename(0))

    def test_all_and_none(self):
        assert shown(0.0).eq("").all(axis=None)
        items = torch.tensor([1, 2, 3])
        whole = revealed_text(TEXT, items, items, 0.999999, 1)
        assert whole.equals(TEXT.iloc[1:].reset_index(drop=True))


class TestRuns:
    @pytest.mark.parametrize("model", ["JEPA4Rec", "RecFormer"])
    def test_what_is_shown_helps(self, model, toy, workplace):
        run(model, config_dict={**TINY, **toy, "run_dir": "first"})
        again = {**TINY, **toy, "checkpoint": "first", "epochs": 0}
        found = [
            run(model, config_dict={**again, "reveal_ratio": r, "run_dir": f"r{r}"})
            for r in (0.0, 0.9)
        ]
        assert found[1]["test"]["mrr"] > 1.4 * found[0]["test"]["mrr"]
        assert found[1]["protocol"]["reveal_ratio"] == 0.9
        assert "reveal_ratio" not in found[0]["protocol"]

    def test_nothing_shown_is_the_plain_run_to_the_bit(self, toy, workplace, monkeypatch):
        plain = run("JEPA4Rec", config_dict={**TINY, **toy, "run_dir": "plain"})

        @contextmanager
        def none_of_them(model, item_text, rows, ratio, seed):
            with revealed_words.words_revealed(model, item_text, rows, 0.0, seed) as scores:
                yield scores

        monkeypatch.setattr(protocol, "words_revealed", none_of_them)
        shown = run(
            "JEPA4Rec", config_dict={**TINY, **toy, "run_dir": "shown", "reveal_ratio": 0.5}
        )
        for key in ("valid", "test"):
            assert plain[key] == shown[key]
        ranks = [pd.read_parquet(f"{name}/per_user.parquet")["rank"] for name in ("plain", "shown")]
        assert ranks[0].equals(ranks[1])

    @pytest.mark.parametrize("model", ["JEPA4Rec", "SASRec", "STAR"])
    def test_a_fraction_of_the_users_trains_any_model(self, model, toy, workplace):
        settings = {**toy, "epochs": 1, "show_progress": False, "run_dir": "out"}
        found = run(model, config_dict={**settings, "train_fraction": 0.1})
        assert found["protocol"]["train_fraction"] == 0.1
        assert found["statistics"]["interactions"] == 430

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--model=SASRec", "--reveal_ratio=0.5"], "reveal_ratio 0.5 has no effect: SASRec"),
            (["--model=JEPA4Rec", "--reveal_ratio=1"], "reveal_ratio 1 must be a number from 0 to"),
            (["--model=SASRec", "--train_fraction=0"], "train_fraction 0 must be a number above 0"),
            (["--model=STAR", "--train_fraction=1.5"], "train_fraction 1.5 must be a number above"),
            (
                ["--model=UniSRec", "--reveal_ratio=0.5", "--finetune_mode=transductive"],
                "reveal_ratio is 0.5; allowed for UniSRec",
            ),
        ],
    )
    def test_refusals(self, words, message, toy, workplace, capsys):
        status = main([*words, *(f"--{key}={value}" for key, value in toy.items())])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert status == 2 and message in error
