"""A report over runs made apart, and the list of runs."""

import json
import os
from pathlib import Path

import pytest

from recbole_jepa4rec.__main__ import main
from tests.handmade_runs import write_run

RANKS = [1, 2, 30, 4, 5, 60]


@pytest.fixture
def apart(tmp_path):
    """Two seeds of one model in one place, a variant of it and another model elsewhere."""
    write_run(tmp_path / "a" / "one", RANKS, label="Tree", seed=1, valid=0.4)
    write_run(tmp_path / "a" / "two", RANKS[::-1], label="Tree", seed=2, valid=0.4)
    deep = tmp_path / "b" / "deep" / "one"  # as a folder of the other place is called
    write_run(deep, [1] * 6, label="Tree", seed=1, settings={"depth": 9})
    write_run(tmp_path / "b" / "bush", [3] * 6, label="Bush", seed=1, valid=0.3)
    return tmp_path


def told(words, capsys, status=2):
    assert main([*map(str, words)]) == status
    return capsys.readouterr()


def compared(folder):
    return json.loads((folder / "comparison.json").read_text())


def test_runs_that_differ_in_the_seed_alone_are_one_row(apart, capsys):
    told(["report", apart / "a", apart / "b", "--out", apart / "page"], capsys, 0)
    found = compared(apart / "page")
    rows = {row["entry"]: row["seeds"] for row in found["rows"]}
    assert rows == {"Tree [a/one]": [1, 2], "Bush": [1], "Tree [b/deep/one]": [1]}
    assert found["reference"] == "Tree [b/deep/one]"  # the best on validation
    assert found["seeds"] == [1, 2] and {row["status"] for row in found["rows"]} == {"finished"}
    assert "Tree [b/deep/one]" in (apart / "page" / "comparison.md").read_text().replace("\\", "")


def test_a_row_may_be_named_by_its_label_s_beginning(apart, capsys):
    write_run(apart / "c", RANKS, label="Oak", **{"settings": {"model": "Oak"}})
    told(["report", apart, "--out", apart / "page", "--reference=Bush"], capsys, 0)
    assert compared(apart / "page")["reference"] == "Bush"
    error = told(["report", apart, "--out", apart / "page", "--reference=Tree"], capsys).err
    assert "--reference=Tree is no row" in error and "Tree [b/deep/one]" in error


def test_a_comparison_is_drawn_again_from_its_file(apart, capsys):
    told(["report", apart, "--out", apart / "page"], capsys, 0)
    file = apart / "page" / "comparison.json"
    told(["report", file, "--out", apart / "again"], capsys, 0)
    for name in ("comparison.md", "comparison.html", "comparison.tex", "comparison.json"):
        assert (apart / "again" / name).read_bytes() == (file.parent / name).read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "is no comparison.json"), ("{", "is no json"), ('{"rows": []}', "has no 'conditions'")],
)
def test_another_file_is_refused(content, message, tmp_path, capsys):
    file = tmp_path / "x.json"
    file.write_text(content)
    error = told(["report", file, "--out", tmp_path / "page"], capsys).err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_what_cannot_be_compared_is_refused_by_name(apart, capsys):
    write_run(apart / "c", RANKS, label="Oak", data_fingerprint="other")
    error = told(["report", apart, "--out", apart / "page"], capsys).err
    assert "cannot be compared" in error and "data_fingerprint" in error
    write_run(apart / "d", RANKS, label="Tree", seed=1)
    error = told(["report", apart / "a", apart / "d", "--out", apart / "page"], capsys).err
    assert "are the same run with the same seed 1" in error
    (apart / "empty").mkdir()
    error = told(["report", apart / "empty", "--out", apart / "page"], capsys).err
    assert "has no finished run" in error
    assert not (apart / "page").exists()


def test_runs_are_listed_newest_first(apart, capsys):
    places = ["b/bush", "a/two", "b/deep/one", "a/one"]
    for hour, place in enumerate(places):
        os.utime(apart / place / "result.json", (3600 * (99 - hour),) * 2)
    data, head, *listed = told(["runs", apart], capsys, 0).out.splitlines()
    assert data == "toy, test"
    assert head.split() == ["ended", "recall@10", "ndcg@10", "mrr", "seed", "model"]
    assert [line.strip() for line in listed[1::2]] == [str(apart / place) for place in places]
    assert [line.split()[2:] for line in listed[:4:2]] == [
        ["1.0000", "0.5000", "0.3333", "1", "Bush"],
        ["0.6667", "0.4081", "0.3333", "2", "Tree"],
    ]


def test_the_list_reads_no_ranks_and_passes_over_what_it_cannot_read(apart, capsys):
    (apart / "a" / "one" / "result.json").write_text("{")
    for file in apart.rglob("per_user.parquet"):
        file.unlink()
    listed = told(["runs", apart], capsys, 0)
    assert len(listed.out.splitlines()) == 2 + 2 * 3
    assert (
        listed.err.count("\n") == 1 and "not listed" in listed.err and "is not json" in listed.err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=Bushes"], "no run has --model=Bushes; there are Bush on toy, Tree on toy"),
        (["--dataset=x", "--model=Tree"], "no run has --dataset=x, --model=Tree"),
        (["--metrics=ndgc@10"], "'ndgc@10' is in no run (did you mean 'ndcg@10'?)"),
    ],
)
def test_a_filter_that_leaves_no_run_says_what_there_is(words, message, apart, capsys):
    assert message in told(["runs", apart, *words], capsys).err


def test_the_list_is_filtered(apart, capsys):
    words = ["runs", apart, "--model=Bush", "--split=valid", "--metrics=ndcg@10"]
    *_, measured, folder = told(words, capsys, 0).out.splitlines()
    assert measured.split()[2:] == ["0.3000", "1", "Bush"]
    assert folder.strip() == str(apart / "b" / "bush")


def test_the_list_as_a_page(apart, capsys):
    words = ["runs", apart, f"--out={apart / 'new' / 'runs.html'}"]
    (path,) = told(words, capsys, 0).out.splitlines()
    text = Path(path).read_text()
    assert text.count('<th scope="row"') == 4 and 'href="../b/deep/one/"' in text
    assert "Recall@10, valid" in text and "0.4081" in text and len(text) < 50_000
