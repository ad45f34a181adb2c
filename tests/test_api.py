"""The Python functions: keyword settings in, objects out that show themselves as tables."""

import inspect
import json
import logging
from pathlib import Path

import pytest

import recbole_jepa4rec
from recbole_jepa4rec.base import progress
from recbole_jepa4rec.runner.run_result import RunResult
from recbole_jepa4rec.study.comparison import compare
from recbole_jepa4rec.study.report import write_report
from recbole_jepa4rec.study.study_result import Comparison, Search
from tests.conftest import TINY
from tests.handmade_runs import row


def test_completion_offers_what_is_public_with_typed_signatures():
    names = dir(recbole_jepa4rec)
    assert {"compare", "load", "run", "search"} <= {*recbole_jepa4rec.__all__} <= {*names}
    for name in ("compare", "load", "run", "search"):
        function = getattr(recbole_jepa4rec, name)
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty and function.__doc__
    assert (Path(recbole_jepa4rec.__file__).parent / "py.typed").is_file()


def test_a_run_is_silent_and_gives_an_object(toy, workplace, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's would show the log
    given = {**TINY, **toy, "epochs": 5}
    done = recbole_jepa4rec.run("SASRec", config_dict=given, epochs=1, run_dir="run", use_gpu=False)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == []
    assert done["epochs"] == 1 and done.folder == Path("run")
    assert json.loads((done.folder / "result.json").read_text()) == {
        key: value for key, value in done.items() if key != "path"
    }
    frame = done.to_frame()
    assert [*frame.columns] == ["valid", "test"] and frame.loc["mrr", "test"] == done["test"]["mrr"]
    assert repr(done).startswith("SASRec-CE on toy, seed 2020\n")
    assert f"{done['test']['mrr']:.4f}" in done._repr_html_() and "1 epochs" in repr(done)
    recommender = done.load()
    of_user = recommender.recommend(users="nan", k=2)
    assert [*of_user.columns] == ["user", "rank", "item_id", "score"]
    of_history = recommender.recommend([recommender.history_of("nan")], k=2)
    assert of_user["item_id"].tolist() == of_history["item_id"].tolist()


def test_bad_keywords_are_refused_by_name(toy, workplace):
    with pytest.raises(ValueError, match="epoch"):
        recbole_jepa4rec.run("SASRec", epoch=1, **toy)
    with pytest.raises(ValueError, match="SASReg"):
        recbole_jepa4rec.compare(["SASReg"], **toy)
    with pytest.raises(ValueError, match="num_sample"):
        recbole_jepa4rec.search("SASRec", num_sample=1, **toy)
    assert not any(workplace.iterdir())


def test_a_comparison_takes_its_keywords(toy, workplace, monkeypatch):
    asked = []

    def stand_in(request):
        print("noise")
        asked.append(request)
        request.folder.mkdir(parents=True)
        rows = [row(workplace / "runs", name, [1, 2, 3]) for name in ("Popularity", "Markov")]
        (request.folder / "comparison.json").write_text(
            json.dumps(compare(rows, "Markov", "toy", {}, "it"))
        )

    monkeypatch.setattr("recbole_jepa4rec.study.group.compare_models", stand_in)
    (limits := workplace / "limits.yaml").write_text("max_train_seconds: 9\n")
    found = recbole_jepa4rec.compare(
        ["Popularity", "Markov"],
        seeds=[1, 2],
        reference="Markov",
        run_dir="here",
        topk=[10, 20],
        use_gpu=False,
        max_train_seconds=None,
        config_files=[limits],
        **toy,
    )
    (request,) = asked
    assert request.keys.seeds == (1, 2) and request.reference == "Markov"
    assert [cell.config["topk"] for cell in request.cells] == [[10, 20]] * 4
    assert [cell.config["max_train_seconds"] for cell in request.cells] == [None] * 4
    assert found.folder == Path("here") and found.to_frame().index.tolist() == ["Model", "Model"]


@pytest.fixture
def comparison(tmp_path):
    ranks = {"JEPA4Rec": [1, 2, 3, 4], "SASRec": [9, 9, 9, 9]}
    rows = [row(tmp_path, name, each, label=name) for name, each in ranks.items()]
    found = json.loads(json.dumps(compare(rows, "JEPA4Rec", "toy", {}, "it")))
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    write_report(found, tmp_path)
    return Comparison(tmp_path)


def test_a_comparison_shows_its_table_and_figures(comparison):
    frame = comparison.to_frame()
    assert frame.index.tolist() == ["JEPA4Rec", "SASRec"]
    assert frame.loc["SASRec", "recall@10"] == 1.0 and frame.loc["SASRec", "mrr"] == 1 / 9
    assert comparison.to_frame("valid").loc["SASRec", "mrr"] == 0.5
    assert "above SASRec" in repr(comparison) and "comparison.html" in repr(comparison)
    assert "0.1111" in repr(comparison) and "0.1111" in comparison._repr_html_()
    assert [run["label"] for run in comparison.runs()] == ["JEPA4Rec", "SASRec"]
    assert comparison.plot().layout.title.text == "NDCG@10"
    assert len(comparison.plot("Cold and warm targets").data) == 2
    with pytest.raises(ValueError, match=r"no figure 'NDGC'; allowed: Recall@10, NDCG@10"):
        comparison.plot("NDGC")


def test_a_search_shows_its_trials_and_its_winner(comparison, tmp_path):
    (tmp_path / "best.yaml").write_text("learning_rate: 0.01\n")
    (tmp_path / "trials.csv").write_text("trial,status,ndcg@10,error\n001,finished,0.5,\n")
    found = Search(tmp_path, comparison.runs()[0])
    assert found.best == {"learning_rate": 0.01} and found.to_frame().index.tolist() == ["001"]
    assert repr(found).startswith("Best of 1 trials on validation: learning_rate=0.01\nJEPA4Rec on")
    assert "error" not in found._repr_html_() and "001" in found._repr_html_()


def test_a_result_is_read_again(comparison):
    (first, _) = comparison.runs()
    assert RunResult.read(first["path"]) == first and first.folder == Path(first["path"]).parent


def test_no_notebook_here():
    assert not progress.in_notebook()
