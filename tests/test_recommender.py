"""load, recommend and add_items, as a user calls them."""

import json

import pytest

import recbole_jepa4rec
from recbole_jepa4rec.quick_start import run
from tests.test_contract import TestJEPA4Rec

SETTINGS = {**TestJEPA4Rec.settings, "data_path": "dataset", "use_gpu": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for model in ("JEPA4Rec", "Markov"):
        given = SETTINGS if model == "JEPA4Rec" else {"data_path": "dataset"}
        run(model, "toy", config_dict={**given, "run_dir": str(root / model)})
    return root


@pytest.fixture
def recommender(folders):
    return recbole_jepa4rec.load(folders / "JEPA4Rec")


def known_items(recommender, count):
    return [item for item in recommender.item_ids if item is not None][:count]


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
    other = recommender.recommend([[{"title": "something else"}]], k=10_000)
    assert not first["score"].equals(other["score"])


def test_text_of_a_known_item_is_that_item(recommender):
    item = known_items(recommender, 1)[0]
    attributes = recommender.item_text.iloc[recommender.row_of_id[item]].to_dict()
    by_id, by_text = (recommender.recommend([[one]], k=5) for one in (item, attributes))
    assert by_id.equals(by_text)


def test_new_items_are_ranked_at_once(recommender):
    known = known_items(recommender, 1)[0]
    twin = recommender.item_text.iloc[recommender.row_of_id[known]].to_dict()
    before = recommender.recommend([[known]], k=10_000)
    recommender.add_items({"new-1": twin, "new-2": {"title": "an unseen thing"}})
    found = recommender.recommend([[known]], k=10_000)
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
