"""Any text survives conversion, loading and tokenising, but for folded white space."""

import json

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.convert.command_line import main
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.tokenizer import train_wordpiece
from tests.convert.conftest import reviews, write_json_lines

NASTY = [
    "NA", "null", "None", "nan", "", " ", "\t", "a\tb", "a\nb\r\nc", '"', '""', '"open', "12\" pan",
    "\\", "🔪 größe 日本", "שלום עולם", "\u202eabc", "a\u2028b\x85c\x1cd", "&amp; <b>",
    "é" * 100_000, "word, " * 20_000, "'", "{'a': 1}", "\ufeffx", "a\u0301", "\U0010ffff",
    "a:b,c|d::e",
]  # fmt: skip
text = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)


def write_amazon(folder, titles, descriptions):
    metadata = [
        {"asin": f"B{n}", "title": title, "description": [description]}
        for n, (title, description) in enumerate(zip(titles, descriptions, strict=True))
    ]
    rows = reviews([("u", f"B{n}", n) for n in range(len(titles))])
    return (
        "amazon2018",
        str(write_json_lines(folder / "r.json.gz", rows)),
        str(write_json_lines(folder / "m.json.gz", metadata)),
    )


def write_amazon_literals(folder, titles, descriptions):
    metadata = [
        repr({"asin": f"B{n}", "title": title, "description": description})
        for n, (title, description) in enumerate(zip(titles, descriptions, strict=True))
    ]
    rows = reviews([("u", f"B{n}", n) for n in range(len(titles))])
    return (
        "amazon2014",
        str(write_json_lines(folder / "r.json.gz", rows)),
        str(write_json_lines(folder / "m.json.gz", metadata)),
    )


def write_csv(folder, titles, descriptions):
    path = folder / "x.csv"
    ids = [f"B{n}" for n in range(len(titles))]
    table = {"user_id": "u", "item_id": ids, "timestamp": range(len(ids))}
    table |= {"title": titles, "description": descriptions}
    pd.DataFrame(table).to_csv(path, index=False, quoting=1, lineterminator="\n")
    return "generic", str(path), "--attributes", "title,description"


def write_parquet(folder, titles, descriptions):
    *_, words, names = write_csv(folder, titles, descriptions)
    ids = [f"B{n}" for n in range(len(titles))]
    table = {"user_id": "u", "item_id": ids, "timestamp": range(len(ids))}
    path = folder / "x.parquet"
    pd.DataFrame({**table, "title": titles, "description": descriptions}).to_parquet(path)
    return "generic", str(path), words, names


@pytest.mark.parametrize("write", [write_amazon, write_amazon_literals, write_csv, write_parquet])
@settings(max_examples=6)
@given(rows=st.lists(st.tuples(text, text), min_size=3, max_size=8))
@example(rows=[(title, title) for title in NASTY])
def test_text_survives(tmp_path_factory, write, rows):
    folder = tmp_path_factory.mktemp("trip")
    rows = [*rows, ("a title", "a description")]  # an item with text, so that there is some
    titles, descriptions = zip(*rows, strict=True)
    assert main([*write(folder, titles, descriptions), "--out", str(folder / "made")]) == 0
    config = Config("Markov", "made", config_dict={"data_path": str(folder)})
    loaded = SequentialTextDataset(config)
    table = loaded.item_text.set_index(loaded.field2id_token["item_id"])
    folded = [[" ".join(value.split()) for value in row] for row in rows]
    ids = [f"B{n}" for n in range(len(rows))]
    assert table.loc[ids, ["title", "description"]].to_numpy().tolist() == folded
    assert_equal_tokens(loaded, folded)
    content = json.loads((folder / "made" / "made.stats.json").read_text(encoding="utf-8"))
    assert content["fingerprint"] == loaded.fingerprint


def assert_equal_tokens(loaded, folded):
    """The sentences of the loaded text are those of the text that was written."""
    tokenizer = train_wordpiece(["abc title description"], 100)
    by_id = dict(zip((f"B{n}" for n in range(len(folded))), folded, strict=True))
    rows = [by_id[i] for i in loaded.field2id_token["item_id"][1:]]
    written = pd.DataFrame([["", ""], *rows], columns=["title", "description"])
    ours = ItemSentences.build(loaded.item_text[["title", "description"]], tokenizer)
    theirs = ItemSentences.build(written, tokenizer)
    assert ours.input_ids.tolist() == theirs.input_ids.tolist()
    assert ours.sentence_of_item.tolist() == theirs.sentence_of_item.tolist()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"a\\ud83d\\ude00b"', "a😀b"),  # a pair is a character
        ('"a\\ud83db"', "a\ufffdb"),  # half a pair is none
        ('"a\\u0000b"', "a b"),  # the atomic files hold no NUL
        ('["a", null, ["b", "a"], 1.5]', "a b 1.5"),
        ("12", "12"),
        ('{"k": "v"}', "k: v"),
        ("null", ""),
    ],
)
def test_what_is_no_plain_text(tmp_path, made, written, read):
    metadata = [f'{{"asin": "B0", "brand": "x", "title": {written}}}']
    files = (
        write_json_lines(tmp_path / "r.json", reviews([("u", "B0", 1)])),
        write_json_lines(tmp_path / "m.json", metadata),
    )
    assert made("amazon2018", *files)[1] == [["B0", read, "", "x", ""]]


@pytest.mark.parametrize("item", ["NA", "null", '"', "a b", " ", "é", "0012", "1.0", "😀"])
def test_ids_stay_as_they_are(tmp_path, made, item):
    rows = reviews([(item, item, 1), ("u", "i", 1)])
    inter, _, _ = made("amazon2018", write_json_lines(tmp_path / "r.json", rows))
    assert inter[0] == [item, item, "1"]
    loaded = SequentialTextDataset(
        Config("Markov", "made", config_dict={"data_path": str(tmp_path)})
    )
    assert item in loaded.field2id_token["item_id"] and item in loaded.field2id_token["user_id"]
