"""Runs on a split that stands in files: rows, histories, what trains, refusals."""

import json
import random
import re

import pandas as pd
import pytest
import torch

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.convert.command_line import main as convert
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from recbole_jepa4rec.data.histories import Histories, HistoryRows
from recbole_jepa4rec.model.counting import Markov, Popularity
from recbole_jepa4rec.runner.quick_start import run
from recbole_jepa4rec.runner.recommender import load as load_run
from recbole_jepa4rec.runner.result import per_user
from recbole_jepa4rec.training.phases import target_positions, trainable_users, window_ends
from tests.conftest import ROOT, TINY

INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
NAMES = ("train", "valid", "test")
SPLIT = {"benchmark_filename": list(NAMES)}
TINY_TEXT = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 16,
    "MAX_ITEM_LIST_LENGTH": 5,
    "vocab_size": 300,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made").mkdir()
    return tmp_path


@pytest.fixture
def write(folder):
    """Write rows of (user, item, time) of each part, and load them."""

    def write(*parts, item=None, **settings):
        for name, rows in zip(NAMES, parts, strict=False):
            lines = ["\t".join(map(str, row)) + "\n" for row in rows]
            path = folder / "made" / f"made.{name}.inter"
            path.write_text(INTER + "".join(lines), encoding="utf-8")
        if item is not None:
            (folder / "made" / "made.item").write_text(item, encoding="utf-8")
        given = {"data_path": str(folder), **SPLIT, **settings}
        return SequentialTextDataset(Config("Markov", "made", config_dict=given))

    return write


HAND = (
    [("u", "a", 1), ("u", "b", 2), ("u", "c", 9), ("v", "a", 1), ("w", "b", 5)],
    [("u", "d", 3), ("u", "e", 4)],
    [("u", "f", 5), ("v", "e", 3)],
)
"""As of held-out items: user u trains after what is held out of training."""


def rows_of(dataset, rows):
    """Raw (user, history, target) of fetched rows."""
    return [
        (
            dataset.id2token("user_id", int(user)),
            "".join(dataset.id2token("item_id", items[:length])),
            dataset.id2token("item_id", int(target)),
        )
        for user, items, length, target in zip(
            rows["user_id"], rows["item_id_list"], rows["item_length"], rows["item_id"], strict=True
        )
    ]


def slow_rows(parts, number):
    """The same, looked up one by one in lists."""
    rows = []
    for user in sorted({row[0] for part in parts for row in part}):
        known = [
            (time, place, item)
            for place, part in enumerate(parts[: number + 1])
            for owner, item, time in part
            if owner == user
        ]
        known.sort(key=lambda row: row[:2])  # stable: the file's order decides last
        places = [n for n, row in enumerate(known) if row[1] == number]
        places = [n for n in places if n] if number == 0 else places[-1:]
        rows += [(user, "".join(row[2] for row in known[:n]), known[n][2]) for n in places]
    return rows


class TestRows:
    def test_by_hand(self, write):
        dataset = write(*HAND)
        train, valid, test = dataset.build()
        assert rows_of(dataset, train[:]) == [("u", "a", "b"), ("u", "ab", "c")]
        assert rows_of(dataset, valid[:]) == [("u", "abd", "e")]
        assert rows_of(dataset, test[:]) == [("u", "abde", "f"), ("v", "a", "e")]
        assert dataset.statistics()["interactions"] == 9

    @pytest.mark.parametrize("seed", range(8))
    def test_against_slow_lists(self, write, seed):
        draw = random.Random(seed)
        parts = [
            [(u, draw.choice(letters), draw.randint(5, 20)) for u in "uvwxyz" for _ in range(4)]
            for letters in ("abcd", "efg", "hij")
        ]
        parts[0] += [(user, "a", 0) for user in "uvwxyz"]
        parts = [draw.sample(part, len(part)) for part in parts]
        dataset = write(*parts)
        for number, part in enumerate(dataset.build()):
            assert sorted(rows_of(dataset, part[:])) == sorted(slow_rows(parts, number))

    def test_leaving_one_out_in_files_is_leaving_one_out(self, write, toy):
        whole = SequentialTextDataset(Config("Markov", config_dict=toy))
        histories, ids = whole.histories, whole.field2id_token
        test = set(histories.leave_one_out()[2].tolist())
        valid = set(histories.leave_one_out()[1].tolist())
        parts = [[], [], []]
        for place, (user, item) in enumerate(
            zip(histories.users.tolist(), histories.items.tolist(), strict=True)
        ):
            number = 2 if place in test else 1 if place in valid else 0
            parts[number].append((ids["user_id"][user], ids["item_id"][item], place))
        again = write(*parts)
        for one, other in zip(whole.build(), again.build(), strict=True):
            assert sorted(rows_of(whole, one[:])) == sorted(rows_of(again, other[:]))
        assert whole.fingerprint != again.fingerprint

    def test_a_second_build_gives_the_same(self, write):
        dataset = write(*HAND)
        first, second = dataset.build(), dataset.build()
        assert all(
            rows_of(dataset, a[:]) == rows_of(dataset, b[:])
            for a, b in zip(first, second, strict=True)
        )

    def test_other_columns_come_along(self, write, folder):
        write(*HAND)
        for path in (folder / "made").iterdir():
            head, *rows = path.read_text().splitlines()
            rows = [f"{row}\t{n}" for n, row in enumerate(rows)]
            path.write_text("\n".join([f"{head}\trating:float", *rows]) + "\n")
        columns = ["user_id", "item_id", "rating", "timestamp"]
        given = {"data_path": str(folder), "load_col": {"inter": columns}, **SPLIT}
        _, valid, test = SequentialTextDataset(Config("GRU4Rec", "made", config_dict=given)).build()
        assert valid[:]["rating_list"][0, :3].tolist() == [0, 1, 0]
        assert test[:]["rating"].tolist() == [0, 1]


class TestTraining:
    def test_only_the_training_file_is_read(self, write):
        dataset = write(*HAND)
        train = dataset.build()[0]
        assert train.histories is train.inter_feat.histories
        assert train.histories.in_training.all()
        ids = dataset.id2token("item_id", train.histories.items.numpy())
        assert sorted(ids) == sorted(item for _, item, _ in HAND[0])
        assert trainable_users(train.histories).tolist() == [dataset.token2id("user_id", "u")]
        users = trainable_users(train.histories)
        drawn = {int(target_positions(train.histories, users, 1, epoch)) for epoch in range(20)}
        assert drawn == {1, 2} == set(train.inter_feat.target.tolist())
        assert window_ends(train.histories, users, 1, 0, 10).tolist() == [2]

    def test_popularity_and_markov_count_the_training_file(self, write):
        dataset = write(*HAND)
        train = dataset.build()[0]
        popularity = Popularity(dataset.config, train).counts
        number = {item: int(dataset.token2id("item_id", item)) for item in "abcdef"}
        assert {i: popularity[n].item() for i, n in number.items()} == {
            "a": 2, "b": 2, "c": 1, "d": 0, "e": 0, "f": 0,
        }  # fmt: skip
        pairs = {(p // dataset.item_num, p % dataset.item_num) for p in
                 Markov(dataset.config, train).pairs.tolist()}  # fmt: skip
        assert pairs == {(number["a"], number["b"]), (number["b"], number["c"])}

    def test_a_target_counts_what_trained_on_it(self, write):
        train, valid, test = HAND
        dataset = write(train, valid, [*test, ("w", "a", 6)])
        table = per_user(dataset.build()[2], torch.ones(3))
        assert table.set_index("user_id")["target_train_count"].to_dict() == {
            "u": 0, "v": 0, "w": 2,
        }  # fmt: skip
        assert table.set_index("user_id")["history_length"].to_dict() == {"u": 4, "v": 1, "w": 1}

    def test_ends_are_not_asked_of_several_parts(self):
        users, items = torch.tensor([1, 1]), torch.tensor([1, 2])
        histories = Histories.of(users, items, 2, torch.tensor([0, 1]))
        with pytest.raises(RuntimeError, match="need not be a prefix"):
            _ = histories.train_end
        whole = Histories.of(users, items, 2)
        rows = HistoryRows(whole, {}, whole.targets, {}, "length", 5)
        with pytest.raises(RuntimeError, match="no parts"):
            rows.by_part()


class TestFingerprint:
    def test_it_tells_splits_of_the_same_interactions_apart(self, write):
        train, valid, test = HAND
        mark = write(*HAND).fingerprint
        assert write(train[::-1], valid[::-1], test).fingerprint == mark
        assert write([*train, valid[0]], valid[1:], test).fingerprint != mark
        assert write(train, [test[0]], [*valid, test[1]]).fingerprint != mark

    def test_the_title_is_the_kind_only_of_the_files_that_were_converted(self, write, folder):
        dataset = write(*HAND)
        stats = folder / "made" / "made.stats.json"
        settings = {"data_path": str(folder), "runs_path": str(folder / "runs"), **SPLIT}

        def title():
            done = run("Markov", "made", config_dict={**settings, "epochs": 0, "use_gpu": False})
            return done["protocol"]["split"], done["protocol"]["users"]

        assert title()[0] == "files train, valid, test"
        split = {"kind": "temporal", "fingerprint": dataset.fingerprint}
        stats.write_text(json.dumps({"split": split}))
        assert title() == (
            "temporal files train, valid, test",
            "last row of each in the part's file",
        )
        stats.write_text(json.dumps({"split": {**split, "fingerprint": "0" * 16}}))
        assert title()[0] == "files train, valid, test"


class TestRuns:
    @pytest.fixture(scope="class")
    @classmethod
    def cold(cls, tmp_path_factory):
        """The toy set with held-out items."""
        folder = tmp_path_factory.mktemp("cold")
        words = ["from-recbole", str(ROOT / "dataset" / "toy"), "--split", "cold_items"]
        assert convert([*words, "--out", str(folder / "toy")]) == 0
        return folder

    @pytest.mark.parametrize(
        ("model", "settings"),
        [
            ("Popularity", {}),
            ("Markov", {}),
            ("SASRec", {**TINY, "epochs": 1}),
            ("SASRec", {**TINY, "epochs": 1, "loss_type": "BPR"}),
            ("BERT4Rec", {**TINY, "epochs": 1}),
            ("JEPA4Rec", {**TINY_TEXT, "epochs": 1, "pretrain_epochs": 1}),
        ],
    )
    def test_every_kind_of_model(self, cold, tmp_path, model, settings):
        given = {
            "data_path": str(cold), "run_dir": str(tmp_path / "run"), "use_gpu": False,
            "show_progress": False, "cache_dir": str(tmp_path / "cache"), "filter_history": True,
            **SPLIT, **settings,
        }  # fmt: skip
        done = run(model, "toy", config_dict=given)
        stats = json.loads((cold / "toy" / "toy.stats.json").read_text())["split"]
        assert done["protocol"]["split"] == "cold_items files train, valid, test"
        assert done["data_fingerprint"] == stats["fingerprint"]
        users = pd.read_parquet(tmp_path / "run" / "per_user.parquet")
        assert len(users) == stats["parts"]["test"]["targets"] == users["user_id"].nunique()
        assert (users["target_train_count"] == 0).all()
        again = load_run(tmp_path / "run", use_gpu=False)
        assert again.recommend([again.item_ids[1:3]], k=3)["rank"].tolist() == [1, 2, 3]

    def test_a_run_that_leaves_one_out_says_that_it_does_not_read_the_split(
        self, cold, tmp_path, caplog
    ):
        given = {"data_path": str(cold), "run_dir": str(tmp_path / "run"), "use_gpu": False}
        run("Popularity", "toy", config_dict=given)
        (warning,) = (record.getMessage() for record in caplog.records if "split" in record.msg)
        assert warning == (
            f"{cold / 'toy' / 'toy.stats.json'} has the split 'cold_items', but this run leaves "
            "one out; --benchmark_filename=train,valid,test reads it"
        )
        run("Popularity", "toy", config_dict={**given, **SPLIT, "run_dir": str(tmp_path / "split")})
        given |= {"run_dir": str(tmp_path / "both"), "train_stage": "pretrain", **TINY_TEXT}
        (cold / "other").mkdir()
        for kind in ("inter", "item"):
            text = (cold / "toy" / f"toy.{kind}").read_text()
            (cold / "other" / f"other.{kind}").write_text(text)
        run("JEPA4Rec", ["toy", "other"], config_dict={**given, "pretrain_epochs": 1})
        assert caplog.text.count("has the split") == 1  # of several none could be read

    def test_counts_know_nothing_of_held_out_items(self, cold, tmp_path):
        for model in ("Popularity", "Markov"):
            given = {"data_path": str(cold), "run_dir": str(tmp_path / model), "use_gpu": False}
            done = run(model, "toy", config_dict={**given, **SPLIT})
            ranks = pd.read_parquet(tmp_path / model / "per_user.parquet")["rank"]
            items = done["statistics"]["items"]
            if model == "Popularity":  # all after all others, in one tie
                stats = json.loads((cold / "toy" / "toy.stats.json").read_text())["split"]
                known = stats["parts"]["train"]["items"]
                assert (ranks == known + (items - known + 1) / 2).all()
            else:  # in a tie with everything that never followed
                assert (ranks >= (items + 1) / 2).all()


class TestRefusals:
    def refusal(self, write, *parts, **settings):
        with pytest.raises(ValueError, match=r"made|benchmark_filename") as caught:
            write(*parts, **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_missing_file(self, write):
        assert "made.test.inter: No such file" in self.refusal(write, *HAND[:2])

    def test_a_row_of_two_parts(self, write):
        train, valid, test = HAND
        message = self.refusal(write, train, valid, [*test, ("u", "b", 2)])
        assert message.endswith(
            "made.test.inter, line 4: expected no row that made.train.inter holds as well"
        )
        again = [*train, ("u", "d", 77)]  # the same item at another time
        assert write(again, valid, test).fingerprint

    def test_a_target_without_training_before(self, write):
        train, valid, test = HAND
        for stray in (("new", "a", 9), ("w", "a", 4)):
            message = self.refusal(write, train, [stray, *valid], test)
            assert message.endswith(
                "made.valid.inter, line 2: expected an earlier row of the user in "
                "made.train.inter, found none"
            )

    def test_an_item_that_nobody_knows(self, write):
        item = "item_id:token\ttitle:token_seq\nd\tx\ne\tx\n"
        assert self.refusal(write, *HAND, item=item).endswith(
            "made.test.inter, line 2: expected an item that made.train.inter or made.item holds"
        )
        assert write(*HAND, item=item + "f\t\n").fingerprint

    def test_an_empty_file(self, write):
        assert "made.valid.inter: no row below" in self.refusal(write, HAND[0], [], HAND[2])

    def test_files_of_other_columns(self, write, folder):
        write(*HAND)
        path = folder / "made" / "made.valid.inter"
        path.write_text("item_id:token\tuser_id:token\ttimestamp:float\nd\tu\t3\n")
        with pytest.raises(ValueError, match=r"made.valid.inter: expected the columns user_id"):
            write()

    @pytest.mark.parametrize(
        "filters",
        [{"user_inter_num_interval": "[3,inf)"}, {"val_interval": {"timestamp": "[2,9]"}}],
    )
    def test_filters_that_would_drop_rows(self, write, filters):
        message = self.refusal(write, *HAND, **filters)
        assert message.startswith("benchmark_filename: val_interval, user_inter_num_interval")

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("train,test", "benchmark_filename 'train,test' must be three different names"),
            ("[a,a,b]", "benchmark_filename ['a', 'a', 'b'] must be three different names"),
            ("[1,2,3]", "benchmark_filename [1, 2, 3] must be three different names"),
            ("a,../b,c", "benchmark_filename: '../b' cannot be part of a file's name"),
            ("5", "benchmark_filename 5 must be three different names"),
        ],
    )
    def test_names(self, word, message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            Config("Markov", "toy", command_line=[f"--benchmark_filename={word}"])

    def test_several_data_sets(self):
        with pytest.raises(ValueError, match="needs one data set, and A, B are named"):
            Config("JEPA4Rec", "A,B", command_line=["--benchmark_filename=train,valid,test"])

    def test_the_command_line_and_yaml_name_the_same(self, folder, write):
        write(*HAND)
        words = [f"--data_path={folder}", "--benchmark_filename=train,valid,test"]
        config = Config("Markov", "made", command_line=words)
        assert config["benchmark_filename"] == list(NAMES)
        config.save(folder / "c.yaml")
        again = Config(config_file_list=[folder / "c.yaml"])
        assert again["benchmark_filename"] == list(NAMES)
