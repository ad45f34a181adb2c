"""Item vectors are the encoder's, made once, and a file that brings others must fit."""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from recbole_jepa4rec.base import weight_files
from recbole_jepa4rec.base.weight_files import MINILM
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.text import text_encoder
from recbole_jepa4rec.text.item_vectors import ItemVectors, drop_words
from recbole_jepa4rec.text.text_encoder import TextEncoder
from tests.tiny_encoder import (  # noqa: F401
    TEXTS,
    catalogue,
    pool_by,
    save_tiny_bert,
    tiny_bert,
    write_data_sets,
)


@pytest.fixture
def encoder(tiny_bert, tmp_path):  # noqa: F811
    return TextEncoder.of(str(tiny_bert), max_tokens=32, cache_dir=tmp_path)


def slow_vectors(folder: Path, texts: list[str], pooling: str, max_tokens: int) -> torch.Tensor:
    """One text at a time, without padding."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        ids = ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], tokenizer.sep_token_id]
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        vectors.append(hidden.mean(dim=0) if pooling == "mean" else hidden[0])
    return torch.stack(vectors)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("max_tokens", [5, 40])
def test_vectors_are_those_of_one_text_at_a_time(tiny_bert, pooling, max_tokens, monkeypatch):  # noqa: F811
    monkeypatch.setattr(text_encoder, "TOKENS_PER_BATCH", 2 * max_tokens)  # several batches
    encoder = TextEncoder.of(str(tiny_bert), pooling, max_tokens)
    expected = slow_vectors(tiny_bert, TEXTS, pooling, max_tokens)
    torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=1e-5, rtol=1e-5)
    assert expected.std(dim=0).max() > 0.1


def test_a_folder_says_how_it_pools_and_a_key_overrides_it(tmp_path):
    for mode in ("mean", "cls", "max"):
        save_tiny_bert(tmp_path / mode)
        pool_by(tmp_path / mode, mode)
    assert TextEncoder.of(str(tmp_path / "mean")).pooling == "mean"
    assert TextEncoder.of(str(tmp_path / "cls")).pooling == "cls"
    assert TextEncoder.of(str(tmp_path / "mean"), "cls").pooling == "cls"
    with pytest.raises(ValueError, match=r"max.*set text_pooling"):
        TextEncoder.of(str(tmp_path / "max"))


def test_the_encoder_s_own_limit_holds(tiny_bert):  # noqa: F811
    assert TextEncoder.of(str(tiny_bert), max_tokens=1000).max_tokens == 64


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="do not exist"):
        TextEncoder.of(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        TextEncoder.of(str(tmp_path)).encode(["a"])
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r'pip install "recbole_jepa4rec\[minilm\]"'):
        TextEncoder.of(str(tmp_path)).encode(["a"])
    monkeypatch.setattr(weight_files, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "recbole_jepa4rec\[minilm\]"'):
        TextEncoder.of(MINILM)


def test_an_item_has_the_vector_of_its_joined_values(encoder, tiny_bert):  # noqa: F811
    texts = ["garden hose", "", "garden", "garden hose"]
    items = ItemVectors.encoded(catalogue(texts), encoder)
    expected = slow_vectors(tiny_bert, ["garden hose", "garden"], "cls", 32)
    vectors = items.table[items.row_of_item]
    torch.testing.assert_close(vectors[[1, 3]], expected, atol=1e-5, rtol=1e-5)
    assert not vectors[0].any() and not vectors[2].any()
    assert items.row_of_item.tolist() == [0, 1, 0, 2, 1]
    other = pd.DataFrame({"brand": ["", "a", "a b"], "title": ["", "b c", "c"]})
    assert ItemVectors.encoded(other, encoder).texts == ["", "a b c"]


class TestCache:
    @pytest.fixture
    def made(self, encoder, tmp_path, monkeypatch):
        """Makes vectors; counts how often something is encoded."""
        calls = []
        encode = TextEncoder.encode

        def counted(self, texts, *args):
            calls.append(list(texts))
            return encode(self, texts, *args)

        monkeypatch.setattr(TextEncoder, "encode", counted)

        def make(texts=TEXTS, encoder=encoder):
            before = len(calls)
            table = ItemVectors.encoded(catalogue(texts), encoder).table
            return table, len(calls) - before

        return make

    def test_a_hit_encodes_nothing(self, made):
        (first, made_once), (again, made_twice) = made(), made()
        assert (made_once, made_twice) == (1, 0)
        assert torch.equal(first, again)

    def test_text_pooling_length_and_weights_are_part_of_the_key(self, made, tiny_bert, tmp_path):  # noqa: F811
        made()
        assert made([*TEXTS[:-1], "another text"])[1] == 1
        assert made(encoder=TextEncoder.of(str(tiny_bert), "mean", 32, tmp_path))[1] == 1
        assert made(encoder=TextEncoder.of(str(tiny_bert), "cls", 31, tmp_path))[1] == 1
        other = tmp_path / "tiny-bert"
        save_tiny_bert(other, seed=1)
        assert made(encoder=TextEncoder.of(str(other), "cls", 32, tmp_path))[1] == 1
        shutil.copytree(tiny_bert, tmp_path / "copy")
        assert made(encoder=TextEncoder.of(str(tmp_path / "copy"), "cls", 32, tmp_path))[1] == 0

    @pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
    def test_a_damaged_file_is_made_again_with_a_warning(self, made, tmp_path, damage, caplog):
        first = made()[0]
        (file,) = tmp_path.glob("vectors-*.safetensors")
        whole = file.read_bytes()
        flipped = whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:]
        file.write_bytes({"cut": whole[:-20], "flip": flipped, "empty": b""}[damage])
        with caplog.at_level(logging.WARNING):
            again, encoded = made()
        assert encoded == 1 and torch.equal(first, again)
        assert f"vectors cache {file} is rebuilt" in caplog.text
        assert made()[1] == 0

    def test_a_folder_that_cannot_be_written_costs_a_warning(self, encoder, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        table = ItemVectors.encoded(
            catalogue(TEXTS), replace(encoder, cache_dir=tmp_path / "file")
        ).table
        assert len(table) == len(TEXTS) + 1
        assert "was not written" in caplog.text


def test_word_drop_takes_words_away_that_the_text_decides(encoder):
    text = " ".join(f"w{i}" for i in range(2000))
    kept = drop_words(text, 0.15).split()
    assert kept == [word for word in text.split() if word in set(kept)]
    assert 0.82 < len(kept) / 2000 < 0.88
    assert drop_words(text, 0.15) == " ".join(kept) and drop_words(text, 0.0) == text
    assert len(drop_words(text, 0.999999).split()) == 1 and drop_words("", 0.5) == ""
    items = ItemVectors.encoded(catalogue(TEXTS), encoder)
    dropped = items.word_dropped(0.5)
    expected = encoder.encode([drop_words(text, 0.5) for text in TEXTS])
    torch.testing.assert_close(dropped[1:], expected, atol=1e-5, rtol=1e-5)
    assert not dropped[0].any() and not torch.equal(dropped, items.table)


def test_items_come_and_go(encoder):
    items = ItemVectors.encoded(catalogue(TEXTS), encoder)
    before = items.table.clone()
    added = catalogue(["red garden hose", "something new"])[1:]
    assert items.append(added).tolist() == [8, 9]
    assert items.row_of_item[8] == items.row_of_item[1] and items.row_of_item[9] == 8
    expected = encoder.encode(["something new"])
    torch.testing.assert_close(items.table[8:], expected, atol=1e-5, rtol=1e-5)
    items.reassign(torch.tensor([2]), items.append(pd.DataFrame({"brand": ["can"]})))
    assert items.row_of_item[2] == items.row_of_item[4] and items.num_items == 10
    items.truncate(8)
    assert torch.equal(items.table, before) and items.num_items == 8
    with pytest.raises(ValueError, match=r"unknown item attribute 'titel' \(did you mean 'title'"):
        items.append(pd.DataFrame({"titel": ["x"]}))


class TestFile:
    @pytest.fixture
    def of(self, tmp_path):
        def make(array, **settings):
            path = tmp_path / "own.npy"
            if array is not None:
                np.save(path, array, allow_pickle=True)
            given = {"data_path": "dataset", "text_encoder": str(path), **settings}
            config = Config("UniSRec", "toy", config_dict={**given, "use_gpu": False})
            dataset = find_dataset(config.model_class)(config)
            return ItemVectors.of(config, dataset), dataset

        return make

    def lines(self) -> list[str]:
        rows = Path("dataset/toy/toy.item").read_text(encoding="utf-8").rstrip("\n").split("\n")
        return [row.split("\t")[0] for row in rows[1:]]

    def test_rows_are_those_of_the_item_file(self, of):
        lines = self.lines()
        array = np.random.default_rng(0).normal(size=(len(lines), 6)).astype(np.float16)
        array[3] = array[4]
        items, dataset = of(array)
        number = {token: item for item, token in enumerate(dataset.field2id_token["item_id"])}
        known = [(line, number[token]) for line, token in enumerate(lines) if token in number]
        assert 20 < len(known) < len(lines)
        for line, item in known:
            assert np.array_equal(items.table[items.row_of_item[item]].numpy(), array[line])
        assert not items.table[items.row_of_item[0]].any()
        assert items.word_dropped(0.5) is None and items.source == "own.npy"
        with pytest.raises(ValueError, match=r"own\.npy holds no vectors of new items"):
            items.append(pd.DataFrame({"title": ["x"]}))

    def test_rows_of_several_data_sets_follow_each_other(self, tmp_path):
        titles = {"one": ["red can", "knife", "spade"], "two": ["hose", "blue can", "rose", "pot"]}
        write_data_sets(tmp_path, **titles)
        array = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
        np.save(tmp_path / "own.npy", array)
        given = {"data_path": str(tmp_path), "text_encoder": str(tmp_path / "own.npy")}
        given |= {"use_gpu": False, "train_stage": "pretrain"}
        config = Config("UniSRec", "one,two", config_dict=given)
        dataset = find_dataset(config.model_class)(config)
        items = ItemVectors.of(config, dataset)
        tokens = [f"{name}/i{n}" for name, texts in titles.items() for n in range(len(texts))]
        assert sorted(tokens) == sorted(dataset.field2id_token["item_id"][1:])
        for line, token in enumerate(tokens):
            row = items.row_of_item[dataset.token2id("item_id", token)]
            assert np.array_equal(items.table[row].numpy(), array[line])

    def test_what_does_not_fit_is_refused(self, of):
        good = np.ones((len(self.lines()), 4), dtype=np.float32)
        bad = good.copy()
        bad[2, 1] = np.nan
        for array, message in (
            (good[:-1], f"has {len(good) - 1} rows; the .item file has {len(good)} lines"),
            (good.astype(int), "int64"),
            (good[:, 0], "allowed: float"),
            (bad, "NaN or infinity in row 2"),
            (np.array([{"a": 1}]), "no .npy file of numbers"),
        ):
            with pytest.raises(ValueError, match=message) as error:
                of(array)
            assert "\n" not in str(error.value)

    def test_a_missing_file_is_named(self, of):
        with pytest.raises(ValueError, match=r"own\.npy' does not exist"):
            of(None)


def test_a_data_set_without_text_is_refused(tiny_bert, tmp_path):  # noqa: F811
    (tmp_path / "bare").mkdir()
    shutil.copy("dataset/toy/toy.inter", tmp_path / "bare" / "bare.inter")
    given = {"data_path": str(tmp_path), "text_encoder": str(tiny_bert), "use_gpu": False}
    config = Config("UniSRec", "bare", config_dict=given)
    with pytest.raises(ValueError, match=r"bare\.item") as error:
        ItemVectors.of(config, find_dataset(config.model_class)(config))
    assert "\n" not in str(error.value)
