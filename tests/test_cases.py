"""Small data sets that went wrong once, each with its right value; ``tests/cases/`` holds them."""

import importlib
import re
from pathlib import Path

import pytest

from recbole_jepa4rec import load as load_recommender
from recbole_jepa4rec.base.yaml_files import as_yaml
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.convert.checks import problems
from recbole_jepa4rec.data.atomic_files import read_atomic
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from recbole_jepa4rec.runner.quick_start import run
from recbole_jepa4rec.study.search.request import read_request
from tests.conftest import TINY

CASES = Path(__file__).parent / "cases"
SPLIT = {"34-lists-with-time": {"benchmark_filename": "train,valid,test"}}


def load(case, **settings):
    given = {"data_path": str(CASES / case), **SPLIT.get(case, {}), **settings}
    return SequentialTextDataset(Config("Markov", "shop", config_dict=given))


def histories(dataset):
    """Raw ids of each user's items in order."""
    ids = dataset.field2id_token
    found = {}
    for user, item in zip(dataset.histories.users, dataset.histories.items, strict=True):
        found.setdefault(str(ids["user_id"][user]), []).append(str(ids["item_id"][item]))
    return found


def refused(case):
    """What a run that reads item text says of a case that it refuses."""
    try:
        dataset = load(case)
        return (CASES / case / "shop" / "shop.item").exists() and dataset.item_text.empty
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "37-trailing-tab",
            "shop.inter, line 2: expected 4 columns (user_id, item_id, rating, timestamp), found 5",
        ),
        (
            "41-unknown-type",
            "shop.inter, line 1: type 'int' of 'rating' is not in token, token_seq, float, "
            "float_seq",
        ),
        (
            "54-item-id-other-name",
            "shop.item, line 1: no column 'item_id' (there are: artist_id, name, brand)",
        ),
        (
            "55-user-id-float",
            "shop.inter, line 1: expected column 'user_id' of type token, found float",
        ),
        (
            "56-item-id-float",
            "shop.inter, line 1: expected column 'item_id' of type token, found float",
        ),
        (
            "56c-user-id-token-seq",
            "shop.inter, line 1: expected column 'user_id' of type token, found token_seq",
        ),
    ],
)
def test_one_line_names_file_line_and_what_was_expected(case, expected):
    assert refused(case) == f"{CASES / case / 'shop'}/{expected}"


@pytest.mark.parametrize("case", sorted(path.parent.name for path in CASES.glob("*/shop")))
def test_check_finds_an_error_where_a_run_does(case):
    listed = problems(CASES / case / "shop")
    fatal = [problem for problem in listed if problem.fatal]
    if error := refused(case):
        assert error == str(fatal[0]).replace("error: ", "")
        assert {problem.what for problem in listed} == {fatal[0].what}  # and nothing due to it
    else:
        assert fatal == []


def test_lists_of_items_are_read_whole():
    dataset = load("34-lists-with-time")
    expected = {"0": ["1", "2", "3", "4", "5"], "1": ["4", "5", "6", "1"], "2": ["1", "5", "6"]}
    assert histories(dataset) == expected
    assert dataset.statistics()["interactions"] == 12
    assert dataset.histories.part.tolist() == [0, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0, 0]
    aliased = load("34-lists-with-time", alias_of_item_id=["item_id_list"])
    assert aliased.fingerprint == dataset.fingerprint


def test_a_split_that_is_read_as_no_split():
    case = "34-lists-with-time"
    names = ", ".join(f"shop.{part}.inter" for part in ("test", "train", "valid"))
    expected = f"shop.inter (benchmark_filename reads a split such as {names})"
    with pytest.raises(ValueError, match=re.escape(expected)):
        load(case, benchmark_filename=None)


def test_an_alias_that_no_column_has():
    with pytest.raises(ValueError, match="alias_of_item_id 'artist_id': no such column is loaded"):
        load("27-dup-inter", alias_of_item_id=["artist_id"])


@pytest.mark.parametrize(
    ("path", "line", "new", "expected"),
    [
        ("train", "0\t1\t2\t2", "0\t7\t2\t2", "train.inter, line 2: expected item_id_list to go "),
        ("test", "0\t1 2 3 4", "0\t1 2 3 5", "test.inter, line 2: expected item_id_list to go on"),
    ],
)
def test_lists_that_contradict_each_other(tmp_path, monkeypatch, path, line, new, expected):
    (tmp_path / "case" / "shop").mkdir(parents=True)
    for source in (CASES / "34-lists-with-time" / "shop").iterdir():
        text = source.read_text().replace(line, new) if path in source.name else source.read_text()
        (tmp_path / "case" / "shop" / source.name).write_text(text)
    monkeypatch.setitem(SPLIT, tmp_path / "case", SPLIT["34-lists-with-time"])
    with pytest.raises(ValueError, match=expected):
        load(tmp_path / "case")
    (problem,) = problems(tmp_path / "case" / "shop")
    assert problem.fatal and expected in f"{problem.path}, line {problem.line}: {problem.what}"


def test_lists_cut_to_a_length_and_lists_without_a_split(tmp_path):
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n"
    rows = "u\tc d\te\t5\nu\ta\tb\t2\nu\ta b\tc\t3\nu\tb c\td\t4\nv\tx y\tx\t1\n"
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "shop.inter").write_text(head + rows)
    assert histories(load(tmp_path)) == {"u": list("abcde"), "v": list("xyx")}


def test_nanoseconds_are_compared_as_whole_numbers():
    inter = read_atomic(CASES / "61-ns-ties" / "shop" / "shop.inter", as_text=True)
    in_time = inter.assign(time=inter["timestamp"].map(int)).sort_values("time", kind="stable")
    expected = in_time.groupby("user_id")["item_id"].agg(list).to_dict()
    dataset = load("61-ns-ties")
    assert histories(dataset) == expected
    assert {items[-1] for items in expected.values()} == {"i1"}  # the first in the file
    test = dataset.build()[2]
    assert {dataset.id2token("item_id", int(item)) for item in test[:]["item_id"]} == {"i1"}


def test_nanoseconds_of_several_data_sets(tmp_path):
    for name, first in (("a", 1_700_000_000_000_000_000), ("b", 0.5)):
        rows = "".join(f"u\ti{n}\t{first - 10 * n}\n" for n in range(4))
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"{name}.inter"
        path.write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{rows}")
    dataset = SequentialTextDataset(
        Config("JEPA4Rec", "a,b", config_dict={"data_path": str(tmp_path)})
    )
    assert histories(dataset) == {
        f"{name}/u": [f"{name}/i{n}" for n in (3, 2, 1, 0)] for name in "ab"
    }


@pytest.mark.parametrize("where", ["one file", "a split"])
def test_whole_numbers_that_decimals_would_round(tmp_path, where):
    large, decimal = "u\ta\t1700000000000000050\n", "u\tb\t1.5\n"
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    (tmp_path / "shop").mkdir()
    settings = {}
    if where == "one file":
        (tmp_path / "shop" / "shop.inter").write_text(head + decimal + large)
        name, line = "shop.inter", 3
    else:
        settings = SPLIT["34-lists-with-time"]
        for part, rows in (("train", decimal), ("valid", large), ("test", decimal)):
            (tmp_path / "shop" / f"shop.{part}.inter").write_text(head + rows)
        name, line = "shop.valid.inter", 2
    expected = f"{name}, line {line}: expected a timestamp up to 2^53, or whole numbers below 2^63"
    with pytest.raises(ValueError, match=expected.replace("^", r"\^")):
        load(tmp_path, **settings)
    assert any(expected.split(": ")[1] in p.what for p in problems(tmp_path / "shop") if p.fatal)


def test_of_repeated_interactions_the_first_or_the_last_can_stay():
    assert load("27-dup-inter", rm_dup_inter="first").statistics()["interactions"] == 40
    with pytest.raises(ValueError, match="rm_dup_inter 'both' must be null or first or last"):
        load("27-dup-inter", rm_dup_inter="both")


def train(case, folder, **settings):
    """What a short run leaves in ``result.json``."""
    where = {"dataset": "shop", "data_path": str(CASES / case), "run_dir": str(folder)}
    return run(config_dict={**TINY, **where, "epochs": 1, **settings})


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_a_history_that_holds_every_item_leaves_any_of_them_as_negative(tmp_path, loss_type):
    settings = {"model": "BERT4Rec", "loss_type": loss_type, "MAX_ITEM_LIST_LENGTH": 50}
    found = train("33-history-holds-all-items", tmp_path, **settings)
    assert found["epochs"] == 1 and found["test"]["recall@10"] == 1.0  # of ten items


@pytest.mark.parametrize(
    ("distribution", "what"), [("uniform", "item"), ("popularity", "item with interactions")]
)
@pytest.mark.parametrize("model", ["SASRec-BPR", "FPMC"])
def test_one_item_has_no_negative(tmp_path, model, distribution, what):
    settings = {"model": model, "train_neg_sample_args.distribution": distribution}
    with pytest.raises(ValueError, match=f"'shop' has one {what}; train_neg_sample_args needs "):
        train("25-one-item", tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "Markov"])
def test_one_item_is_always_first(tmp_path, model):
    assert train("25-one-item", tmp_path, model=model)["test"]["mrr"] == 1.0


def test_users_with_three_interactions_leave_no_pair_to_count(tmp_path):
    found = train("62-three-each", tmp_path, model="Markov")
    assert found["statistics"] == {
        "users": 50, "items": 20, "interactions": 150, "average_length": 3.0, "density": 0.15,
    }  # fmt: skip
    assert found["test"]["mrr"] == pytest.approx(1 / 10.5)  # all 20 items tie


class TestOwnModel:
    """A class of a user's, with a setting of its own."""

    @pytest.fixture
    def own_class(self, monkeypatch):
        monkeypatch.syspath_prepend(str(CASES / "51-own-model"))
        return importlib.import_module("mean_sequence").MeanSequence

    @pytest.mark.parametrize("how", ["config_dict", "yaml", "command line"])
    def test_it_is_trained_and_found_again(self, own_class, tmp_path, toy, how):
        asked = {**toy, **TINY, "epochs": 1, "run_dir": str(tmp_path / "run"), "my_width": 4}
        asked["loss_type"] = "CE"
        (tmp_path / "own.yaml").write_text(as_yaml({"my_width": asked["my_width"]}))
        words, files = [], []
        if how != "config_dict":
            del asked["my_width"]
            files = [tmp_path / "own.yaml"] if how == "yaml" else []
            words = [] if files else ["--my_width=4"]
        found = run(own_class, config_files=files, config_dict=asked, command_line=words)
        assert found["parameters"] == 4 * (found["statistics"]["items"] + 1)
        with pytest.raises(
            ValueError, match=r"hand in the class of 'MeanSequence': load\(run_dir, "
        ):
            load_recommender(tmp_path / "run")
        recommender = load_recommender(tmp_path / "run", model=own_class)
        assert recommender.model.items.weight.shape[1] == 4

    def test_without_a_loss_it_is_refused(self, own_class, toy):
        expected = "model 'MeanSequence' has no input_type: loss_type must be CE or BPR"
        with pytest.raises(ValueError, match=expected):
            Config(own_class, config_dict={**toy, "my_width": 4})

    def test_a_key_that_it_does_not_read_is_refused(self, own_class, toy):
        with pytest.raises(ValueError, match=r"unknown key 'my_widht' .did you mean 'my_width'"):
            Config(own_class, config_dict={**toy, "my_widht": 4})


class TestDependentChoices:
    """Settings of which each alone would be refused."""

    SPACE = "53-dependent-choices.hyper"
    WORDS = ("--model=SASRec", "--dataset=ml-100k")

    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_they_are_tried_together(self, tmp_path, mark):
        (tmp_path / "a.hyper").write_text(mark + (CASES / self.SPACE).read_text(), encoding="utf-8")
        request = read_request([*self.WORDS, f"--search={tmp_path / 'a.hyper'}"])
        assert [*request.points.values()] == [
            {
                "loss_type": "BPR",
                "train_neg_sample_args": {
                    "distribution": "uniform",
                    "sample_num": 1,
                    "alpha": 1.0,
                    "dynamic": False,
                    "candidate_num": 0,
                },
            }
        ]

    def test_those_that_do_not_fit_are_named(self, tmp_path):
        text = (CASES / self.SPACE).read_text().replace("['BPR']", "['BPR', 'CE']")
        (tmp_path / "a.hyper").write_text(text)
        message = r"a.hyper: train_neg_sample_args \{.*\}: train_neg_sample_args .* must be null"
        with pytest.raises(ValueError, match=message):
            read_request([*self.WORDS, f"--search={tmp_path / 'a.hyper'}"])

    def test_a_combination_is_named_where_neither_alone_is_at_fault(self, tmp_path):
        space = {
            "MAX_ITEM_LIST_LENGTH": {"choice": [50, 4]},
            "mask_ratio": {"choice": [0.2, 0.3]},
        }
        (tmp_path / "a.yaml").write_text(as_yaml(space))
        words = ["--model=BERT4Rec", "--dataset=ml-100k", f"--search={tmp_path / 'a.yaml'}"]
        with pytest.raises(ValueError, match="MAX_ITEM_LIST_LENGTH 4: mask_ratio"):
            read_request(words)
        space = {"MAX_ITEM_LIST_LENGTH": {"choice": [50, 9]}, "mask_ratio": {"choice": [0.2, 0.1]}}
        (tmp_path / "a.yaml").write_text(as_yaml(space))
        named = "MAX_ITEM_LIST_LENGTH 9 with mask_ratio 0.1: mask_ratio 0.1 of MAX_ITEM_LIST_LENGTH"
        with pytest.raises(ValueError, match=named):
            read_request(words)
