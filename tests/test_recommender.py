"""load, recommend and add_items, as a user calls them."""

import json
import shutil
from pathlib import Path

import pytest

import recbole_jepa4rec
from recbole_jepa4rec.runner.quick_start import run
from tests.conftest import TINY
from tests.test_contract import TestJEPA4Rec

SETTINGS = {**TestJEPA4Rec.settings, "data_path": "dataset", "use_gpu": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    tiny = {**TINY, "data_path": "dataset", "use_gpu": False, "epochs": 0}
    for model in ("JEPA4Rec", "Markov", "SASRec"):
        given = {"JEPA4Rec": SETTINGS, "SASRec": tiny}.get(model, {"data_path": "dataset"})
        run(model, "toy", config_dict={**given, "run_dir": str(root / model)})
    return root


@pytest.fixture
def recommender(folders):
    return recbole_jepa4rec.load(folders / "JEPA4Rec")


def known_items(recommender, count):
    return recommender.item_ids[1:][:count]


def test_top_k_is_ranked_and_described(recommender):
    history = known_items(recommender, 3)
    found = recommender.recommend([history, history[:1]], k=5)
    assert found["history"].tolist() == [0] * 5 + [1] * 5
    assert found["rank"].tolist() == [1, 2, 3, 4, 5] * 2
    assert found["score"].iloc[:5].is_monotonic_decreasing
    assert set(found["item_id"]) <= set(known_items(recommender, None))
    assert "title" in found.columns


def test_recommendations_agree_with_the_evaluation(recommender, folders):
    """The rank of a user's test item in recommend() is the rank in per_user.parquet."""
    import pandas as pd

    per_user = pd.read_parquet(folders / "JEPA4Rec" / "per_user.parquet")
    histories = {}
    with open("dataset/toy/toy.inter", encoding="utf-8") as file:
        next(file)
        for line in file:
            user, item, *rest = line.rstrip("\n").split("\t")
            histories.setdefault(user, []).append((float(rest[-1]), item))
    checked = 0
    for row in per_user.itertuples():
        items = [item for _, item in sorted(histories[row.user_id], key=lambda pair: pair[0])]
        found = recommender.recommend([items[:-1]], k=1000)
        target = found[found["item_id"] == row.target_item]
        tied = found[found["score"] == target["score"].iloc[0]]
        if items[-1] == row.target_item and len(tied) == 1:
            assert target["rank"].iloc[0] == row.rank
            checked += 1
    assert checked > 10


def test_an_empty_history_and_a_long_one_are_served(recommender):
    items = known_items(recommender, 20)
    found = recommender.recommend([[], items * 3], k=2)
    assert found["history"].tolist() == [0, 0, 1, 1]


def test_k_beyond_the_catalogue_gives_the_catalogue(recommender):
    found = recommender.recommend([known_items(recommender, 1)], k=10_000)
    assert len(found) == len(known_items(recommender, None))


def test_history_can_be_left_out(recommender):
    history = known_items(recommender, 5)
    found = recommender.recommend([history], k=10_000, filter_history=True)
    assert not set(history) & set(found["item_id"])


def test_raw_text_stands_for_an_unknown_item_and_is_never_recommended(recommender):
    size = len(known_items(recommender, None))
    text = {"title": "wooden  train\tset"}
    first = recommender.recommend([[text]], k=10_000)
    again = recommender.recommend([[dict(text)]], k=10_000)
    assert len(first) == size and first.equals(again)
    assert recommender.model.core.sentences.num_items == size + 1  # nothing is kept
    other = recommender.recommend([[{"title": "something else"}]], k=10_000)
    assert not first["score"].equals(other["score"])


def test_text_of_a_known_item_is_that_item(recommender):
    item = known_items(recommender, 1)[0]
    attributes = recommender.item_text.iloc[recommender.row_of_id[item]].to_dict()
    by_id, by_text = (recommender.recommend([[one]], k=5) for one in (item, attributes))
    assert by_id.equals(by_text)


def test_new_items_are_ranked_at_once(recommender):
    known, other = known_items(recommender, 2)
    twin = recommender.item_text.iloc[recommender.row_of_id[known]].to_dict()
    before = recommender.recommend([[other]], k=10_000)
    recommender.add_items({"new-1": twin, "new-2": {"title": "an unseen thing"}})
    found = recommender.recommend([[other]], k=10_000)
    assert len(found) == len(before) + 2
    scores = found.set_index("item_id")["score"]
    assert scores["new-1"] == scores[known]
    assert "an unseen thing" in found["title"].tolist()
    assert recommender.recommend([["new-2"]], k=1)["rank"].tolist() == [1]


def test_bad_input_is_one_clear_line(recommender, folders, tmp_path):
    known = known_items(recommender, 1)[0]
    for call, words in (
        (lambda: recommender.recommend([["no such item"]]), "unknown item 'no such item'"),
        (lambda: recommender.recommend([[known]], k=0), "k is 0"),
        (lambda: recommender.recommend([[{"titel": "x"}]]), "did you mean 'title'"),
        (lambda: recommender.add_items({known: {"title": "x"}}), "already"),
        (lambda: recbole_jepa4rec.load(tmp_path), "no run folder"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_refused_item_leaves_the_catalogue_as_it_was(recommender):
    before = list(recommender.item_ids)
    with pytest.raises(ValueError, match="titel"):
        recommender.add_items({"new-3": {"titel": "x"}})
    assert recommender.item_ids == before and "new-3" not in recommender.row_of_id


def test_a_model_of_ids_recommends_and_refuses_text(folders):
    markov = recbole_jepa4rec.load(folders / "Markov")
    known = known_items(markov, 1)[0]
    assert len(markov.recommend([[known]], k=3)) == 3
    with pytest.raises(ValueError, match="does not read text"):
        markov.recommend([[{"title": "x"}]])
    with pytest.raises(ValueError, match="does not read text"):
        markov.add_items({"new": {"title": "x"}})


def test_no_history_gives_an_empty_frame_with_the_same_columns(recommender, folders):
    for served in (recommender, recbole_jepa4rec.load(folders / "Markov")):
        some = served.recommend([known_items(served, 1)], k=1)
        none = served.recommend([])
        assert len(none) == 0
        assert list(none.columns) == list(some.columns)


def test_an_empty_history_is_refused_where_it_cannot_be_served(folders):
    sasrec = recbole_jepa4rec.load(folders / "SASRec")
    known = known_items(sasrec, 1)
    with pytest.raises(ValueError, match=r"^history 1 is empty; SASRec needs an item"):
        sasrec.recommend([known, []])
    assert len(sasrec.recommend([known], k=2)) == 2


def test_what_is_no_history_or_item_is_refused_and_changes_nothing(recommender):
    known = known_items(recommender, 1)[0]
    before = recommender.recommend([[known]], k=10_000)
    sentences = recommender.model.core.sentences.num_sentences
    for call, words in (
        (lambda: recommender.recommend([known]), "a history is a list of items"),
        (lambda: recommender.recommend([{"title": "x"}]), "a history is a list of items"),
        (lambda: recommender.recommend([5]), "a history is a list of items"),
        (lambda: recommender.recommend([[5]]), r"item 5 is neither .* text \('5'\)"),
        (lambda: recommender.recommend([[known]], k=2.5), "k is 2.5"),
        (lambda: recommender.recommend([[{"title": 5}]]), "'title' is 5; allowed: text"),
        (lambda: recommender.recommend([[{"title": None}]]), "'title' is None"),
        (lambda: recommender.recommend([[{"title": "x"}, "nowhere"]]), "unknown item 'nowhere'"),
        (lambda: recommender.recommend([[{"title": "\ud800"}]]), "lone surrogate"),
        (lambda: recommender.add_items({7: {"title": "x"}}), "item id 7 is no text"),
        (lambda: recommender.add_items({"new-4": "a title"}), "no mapping"),
        (lambda: recommender.add_items(["new-4"]), "allowed: a mapping"),
        (lambda: recommender.add_items({"new-4": {"title": ["x"]}}), "allowed: text"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
        assert recommender.model.core.sentences.num_sentences == sentences
    assert recommender.recommend([[known]], k=10_000).equals(before)


def test_items_whose_vectors_cannot_be_made_are_forgotten(recommender, monkeypatch):
    known = known_items(recommender, 1)[0]
    before = recommender.recommend([[known]], k=10_000)
    core = recommender.model.core

    def fail(item_text):
        core.sentences.append(item_text)
        raise MemoryError

    for call in (
        lambda: recommender.add_items({"new-5": {"title": "never seen before"}}),
        lambda: recommender.recommend([[{"title": "never seen before"}]]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(core, "add_items", fail)
            with pytest.raises(MemoryError):
                call()
        assert core.sentences.num_items == len(recommender.item_ids)
    assert recommender.recommend([[known]], k=10_000).equals(before)


def test_a_model_of_ids_does_not_load_onto_other_numbers(folders, tmp_path):
    """The same interactions, but the lines the other way round."""
    (tmp_path / "toy").mkdir()
    for file in Path("dataset/toy").iterdir():
        shutil.copy(file, tmp_path / "toy" / file.name)
    inter = tmp_path / "toy" / "toy.inter"
    header, *lines = inter.read_text(encoding="utf-8").splitlines()
    inter.write_text("\n".join([header, *reversed(lines)]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="SASRec knows items by their number"):
        recbole_jepa4rec.load(folders / "SASRec", data_path=str(tmp_path))
    recommender = recbole_jepa4rec.load(folders / "JEPA4Rec", data_path=str(tmp_path))
    known = known_items(recommender, 2)
    expected = recbole_jepa4rec.load(folders / "JEPA4Rec").recommend([known], k=1)
    found = recommender.recommend([known], k=1)
    assert found["score"].tolist() == pytest.approx(expected["score"].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"vocab_size": 9, "hid', "is not JSON"),
        ("[]", "not an object"),
        ('{"architectures": ["BertModel"]}', "architectures is unknown"),
        ({"vocab_size": "60"}, "vocab_size '60' must be a whole number from 1"),
        ({"num_heads": 0}, "num_heads 0 must be"),
        ('{"vocab_size": 60}', "hidden_size is missing"),
        ({"vocab_size": 7}, "has ids up to"),
    ],
)
def test_a_foreign_encoder_json_is_refused(folders, tmp_path, content, words):
    for name in ("config.yaml", "model.safetensors", "tokenizer.json", "encoder.json"):
        (tmp_path / name).write_bytes((folders / "JEPA4Rec" / name).read_bytes())
    file = tmp_path / "encoder.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(file.read_text()), **content})
    file.write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        recbole_jepa4rec.load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_damaged_run_folder_is_refused(folders, tmp_path):
    for name in ("config.yaml", "model.safetensors", "tokenizer.json", "encoder.json"):
        (tmp_path / name).write_bytes((folders / "JEPA4Rec" / name).read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="truncated"):
        recbole_jepa4rec.load(tmp_path)


def test_result_json_of_the_runs_is_complete(folders):
    result = json.loads((folders / "JEPA4Rec" / "result.json").read_text())
    assert {"model", "valid", "test", "seconds", "versions", "command"} <= result.keys()


def test_only_changed_texts_are_encoded_again(recommender, monkeypatch):
    changed, other = known_items(recommender, 2)
    recommender.recommend([[other]])
    table = recommender.model.core.item_table
    before, encoded, encode = len(table.vectors), [], table.encode
    monkeypatch.setattr(table, "encode", lambda e, ids: encoded.extend(ids) or encode(e, ids))
    brand = recommender.item_text["title"].iloc[2]
    recommender.update_items({changed: {"title": "a  new\ttitle"}})
    assert encoded == [before] and len(table.vectors) == before + 1
    assert recommender.item_text["title"].iloc[1:3].tolist() == ["a new title", brand]
    found = recommender.recommend([[{"title": "x"}]], k=1000).set_index("item_id")
    assert found["title"][changed] == "a new title"
    table.is_old = True
    again = recommender.recommend([[{"title": "x"}]], k=1000).set_index("item_id")
    assert again["score"].to_dict() == pytest.approx(found["score"].to_dict(), abs=1e-5)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"nobody": {"title": "x"}}, "unknown item 'nobody'"),
        ({"KNOWN": {"colour": "x"}}, "unknown item attribute 'colour'"),
        ({"KNOWN": {"title": 3}}, "attribute 'title' is 3"),
        ([1], "a mapping of ids to attributes"),
    ],
)
def test_an_update_that_cannot_be_made_changes_nothing(recommender, items, message):
    known = known_items(recommender, 1)[0]
    if isinstance(items, dict):
        items = {known if item == "KNOWN" else item: given for item, given in items.items()}
    before = recommender.recommend([[known]], k=20)
    with pytest.raises(ValueError, match=message):
        recommender.update_items(items)
    assert recommender.recommend([[known]], k=20).equals(before)
