"""Corpora larger than memory: tokens are mapped, the store is the same however it was made."""

import errno
import logging
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_jepa4rec.data import item_text as item_text_module
from recbole_jepa4rec.data.item_text import TEXT, read_item_text
from recbole_jepa4rec.text import row_encoder, tensor_cache
from recbole_jepa4rec.text import sentences as sentences_module
from recbole_jepa4rec.text.row_encoder import DIGEST, EncodedRows, SentenceIndex
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.tensor_cache import GrowingTensor
from recbole_jepa4rec.text.tokenizer import train_wordpiece
from tests.conftest import ROOT

WORDS = ["red", "glass", "tape", "blue", "very", "long", "é", "日本", "[CLS]", "\x00"]


def made_up(rows: int, seed: int = 0) -> pd.DataFrame:
    """A catalogue in which sentences repeat, also far from each other, and texts are missing."""
    draw = random.Random(seed)
    titles = [" ".join(draw.choices(WORDS, k=draw.randrange(4))) for _ in range(rows)]
    brands = [draw.choice(["", "3m", "acme"]) for _ in range(rows)]
    return pd.DataFrame({"title": ["", *titles], "brand": ["", *brands]}, dtype=object)


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(WORDS * 3 + ["3m acme title brand"] * 3, 100)


@pytest.fixture
def mapped(monkeypatch):
    """Every tensor is too large to be held in memory, and few rows are tokenised at once."""
    monkeypatch.setattr(tensor_cache, "LARGEST_IN_MEMORY", 8)
    for module in (row_encoder, sentences_module):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)


def tensors(store: ItemSentences) -> dict[str, torch.Tensor]:
    return dict(store.named_buffers())


def assert_same(one: ItemSentences, other: ItemSentences) -> None:
    assert tensors(one).keys() == tensors(other).keys()
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, tensors(other)[name]), name
        assert tensor.dtype == tensors(other)[name].dtype


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory belongs to a file."""
    address = tensor.data_ptr()
    with open("/proc/self/maps", encoding="utf-8") as file:
        for line in file:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if begin <= address < end:
                return line.split()[4] != "0"  # inode
    raise AssertionError("the tensor lies nowhere")


class TestStore:
    @pytest.mark.parametrize("size", [1, 2, 50, 1000])
    def test_some_rows_at_a_time_give_the_same_store(self, tokenizer, monkeypatch, size):
        whole = ItemSentences.build(made_up(300), tokenizer)
        monkeypatch.setattr(row_encoder, "ROWS_AT_ONCE", size)
        assert_same(ItemSentences.build(made_up(300), tokenizer), whole)

    @pytest.mark.usefixtures("mapped")
    def test_a_large_store_is_mapped_and_the_same(self, tokenizer, tmp_path):
        for _ in range(2):  # made, then read
            store = ItemSentences.build(made_up(300), tokenizer, cache_dir=tmp_path)
            assert all(map(is_mapped, tensors(store).values()))
            assert_same(store, ItemSentences.build(made_up(300), tokenizer))
        assert len([*tmp_path.iterdir()]) == 1

    def test_a_small_store_is_not_mapped(self, tokenizer, tmp_path):
        for _ in range(2):
            store = ItemSentences.build(made_up(30), tokenizer, cache_dir=tmp_path)
            assert not any(map(is_mapped, tensors(store).values()))

    @pytest.mark.usefixtures("mapped")
    def test_a_mapped_store_packs_grows_and_shrinks_as_any(self, tokenizer, tmp_path):
        store = ItemSentences.build(made_up(100), tokenizer, cache_dir=tmp_path)
        file = {path: path.read_bytes() for path in tmp_path.iterdir()}
        other = ItemSentences.build(made_up(100), tokenizer)
        items, lengths = torch.tensor([5, 9, 0, 40]), torch.tensor([3, 0, 1])
        for targets in ("random", "all_prefixes"):
            one, two = (s.histories(items, lengths, 12, targets) for s in (store, other))
            assert one.input_ids.tolist() == two.input_ids.tolist()
        new = pd.DataFrame({"title": ["red red red red", "tape"], "brand": ["acme", ""]})
        for each in (store, other):
            each.append(new)
        assert_same(store, other)
        at_once = pd.concat([made_up(100), new], ignore_index=True)
        assert_same(store, ItemSentences.build(at_once, tokenizer))
        for each in (store, other):
            each.truncate(101)
            each.append(new[::-1])
        assert_same(store, other)
        assert file == {path: path.read_bytes() for path in tmp_path.iterdir()}

    @pytest.mark.usefixtures("mapped")
    def test_a_mapped_store_outlives_its_file(self, tokenizer, tmp_path):
        store = ItemSentences.build(made_up(100), tokenizer, cache_dir=tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()
        assert_same(store, ItemSentences.build(made_up(100), tokenizer))

    @pytest.mark.usefixtures("mapped")
    def test_a_full_disk_costs_a_warning(self, tokenizer, tmp_path, monkeypatch, caplog):
        room = [900]

        class Full:
            """A file on a disk with little room."""

            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, data):
                if not room[0]:
                    raise OSError(errno.ENOSPC, "No space left on device")
                part = data[: room[0]]
                room[0] -= len(part)
                return self.file.write(part)

        make = tensor_cache.tempfile.TemporaryFile
        monkeypatch.setattr(
            tensor_cache.tempfile, "TemporaryFile", lambda **words: Full(make(**words))
        )
        store = ItemSentences.build(made_up(300), tokenizer, cache_dir=tmp_path)
        assert_same(store, ItemSentences.build(made_up(300), tokenizer))
        assert f"{tmp_path}: tokens are held in memory: No space left on device" in caplog.text

    @pytest.mark.usefixtures("mapped")
    def test_a_folder_that_cannot_be_made_costs_a_warning(self, tokenizer, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / "cache"
        store = ItemSentences.build(made_up(300), tokenizer, cache_dir=folder)
        assert_same(store, ItemSentences.build(made_up(300), tokenizer))
        assert "tokens are held in memory" in caplog.text and "was not written" in caplog.text

    @pytest.mark.parametrize("spoil", [-1, 300, 9])
    @pytest.mark.usefixtures("mapped")
    def test_a_spoilt_file_is_noticed_though_it_is_mapped(self, tokenizer, tmp_path, caplog, spoil):
        ItemSentences.build(made_up(100), tokenizer, cache_dir=tmp_path)
        (path,) = tmp_path.iterdir()
        data = bytearray(path.read_bytes())
        data[spoil] ^= 1
        path.unlink()  # what is mapped stays as it was
        path.write_bytes(data)
        with caplog.at_level(logging.WARNING):
            store = ItemSentences.build(made_up(100), tokenizer, cache_dir=tmp_path)
        assert f"{path} is rebuilt" in caplog.text
        assert_same(store, ItemSentences.build(made_up(100), tokenizer))


TOKENISE = """
import sys
from pathlib import Path
from recbole_jepa4rec.text import row_encoder, tensor_cache
from recbole_jepa4rec.text.sentences import ItemSentences
from tests.test_out_of_core import made_up, train_wordpiece, WORDS
row_encoder.ROWS_AT_ONCE, tensor_cache.LARGEST_IN_MEMORY = 20, 100
tokenizer = train_wordpiece(WORDS * 3 + ["3m acme title brand"] * 3, 100)
print("ready", flush=True)
ItemSentences.build(made_up(20_000), tokenizer, cache_dir=Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.3, 0.6, 0.9])
def test_a_killed_tokeniser_leaves_nothing_wrong(tokenizer, tmp_path, caplog, delay):
    folder = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", TOKENISE, str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    store = ItemSentences.build(made_up(20_000), tokenizer, cache_dir=folder)
    assert_same(store, ItemSentences.build(made_up(20_000), tokenizer))
    assert not caplog.records
    assert len([*folder.glob("sentences-*")]) == 1


@pytest.mark.usefixtures("mapped")
def test_numbers_are_aligned_in_the_file(tmp_path):
    cache = tensor_cache.TensorCache(tmp_path, "made", "0" * 64)
    written = {"a": torch.arange(9, dtype=torch.uint8), "b": torch.arange(6.0).view(2, 3)}
    written["c"] = torch.arange(3)
    assert cache.write(written)
    read = cache.read()
    assert [*read] and all(torch.equal(read[name], tensor) for name, tensor in written.items())
    assert read["c"].data_ptr() % 8 == 0 and read["b"].data_ptr() % 4 == 0
    assert is_mapped(read["a"])


class TestCacheKey:
    def test_it_is_gone_through_some_texts_at_a_time(self, monkeypatch):
        parts = ["a", ""], ["é", "\ud800", "longer"], []
        whole = tensor_cache.content_key(*parts)
        assert whole.startswith("816690e600e6ff1b")  # as it always was: caches stay valid
        monkeypatch.setattr(tensor_cache, "_TEXTS_AT_ONCE", 1)
        assert tensor_cache.content_key(*parts) == whole

    def test_strings_of_arrow_and_of_python_have_the_same(self, tokenizer, monkeypatch):
        frame = made_up(30)
        key = sentences_module.content_key(frame, tokenizer, 32)
        arrow = frame.astype(pd.ArrowDtype(TEXT))
        assert sentences_module.content_key(arrow, tokenizer, 32) == key
        monkeypatch.setattr(sentences_module, "ROWS_AT_ONCE", 4)
        assert sentences_module.content_key(arrow, tokenizer, 32) == key


def test_a_growing_tensor_is_all_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_cache, "LARGEST_IN_MEMORY", 40)
    parts = [np.arange(n, dtype=np.int32) for n in (3, 0, 4, 9, 0, 1)]
    for folder in (None, tmp_path):
        grown = GrowingTensor(torch.tensor([7], dtype=torch.int32), folder)
        for part in parts:
            grown.append(part)
        assert grown.tensor().tolist() == [7, *np.concatenate(parts)]
        assert grown.is_mapped == (folder is not None) == is_mapped(grown.tensor())
    assert not [*tmp_path.iterdir()]  # the file has no name


def test_the_index_numbers_digests_as_a_dictionary_would():
    draw = np.random.default_rng(0)
    some = draw.integers(0, 3, size=(400, DIGEST.itemsize), dtype=np.uint8)  # zeros at any end
    some[:, 2:-2] = 0
    index, known = SentenceIndex(), {}
    for rows in np.split(some, [5, 6, 90, 300]):
        numbers, new = index.intern(np.ascontiguousarray(rows).view(DIGEST).ravel())
        before = len(known)
        expected = [known.setdefault(row.tobytes(), len(known)) for row in rows]
        assert numbers.tolist() == expected
        assert [expected[row] for row in new] == [*range(before, len(known))]
        if len(known) > 20:
            index.truncate(20)
            known = {key: number for key, number in known.items() if number < 20}
    assert len(known) == 20


def test_digests_tell_tokens_types_and_bounds_apart():
    def digests(ids, types, sizes):
        arrays = np.array(ids, np.int32), np.array(types, np.uint8), np.array(sizes)
        return EncodedRows.of(*arrays).digests

    same = digests([5, 6, 5, 6], [1, 2, 1, 2], [2, 2])
    assert same[0] == same[1]
    different = digests([5, 6, 5, 6, 5, 6, 0], [1, 2, 1, 1, 1, 2, 0], [2, 2, 3, 0])
    assert len({*different}) == 4 and different[0] == same[0]


class TestItemText:
    def read(self, path, items, **words):
        return read_item_text([(path, "")], "item_id", None, items, **words)

    def test_it_is_aligned_over_many_blocks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(item_text_module, "_ROWS_AT_ONCE", 3)
        lines = [f"i{n}\tword {n}  \u2003 x\t\n" for n in range(20)]
        path = tmp_path / "x.item"
        path.write_text("item_id:token\ttitle:token_seq\tbrand:token\n" + "".join(lines))
        items = np.array(["i7", "gone", "i0", "i19", "i3"], dtype=object)
        text = self.read(path, items)
        assert text["title"].tolist() == ["", "word 7 x", "", "word 0 x", "word 19 x", "word 3 x"]
        assert text["brand"].tolist() == [""] * 6

    def test_a_file_of_another_system_is_read_the_same(self, tmp_path):
        rows = "item_id:token\ttitle:token_seq\na\tone\nb\ttwo words\n"
        items, texts = np.array(["b", "a"]), []
        for end in ("\n", "\r\n"):
            path = tmp_path / "x.item"
            path.write_bytes(rows.replace("\n", end).encode())
            texts.append(self.read(path, items)["title"].tolist())
        assert texts == [["", "two words", "one"]] * 2

    def test_a_repeated_id_is_named_with_its_lines(self, tmp_path):
        path = tmp_path / "x.item"
        path.write_text("item_id:token\ttitle:token_seq\na\tone\nb\ttwo\na\tthree\n")
        with pytest.raises(ValueError, match=r"lines 2 and 4: both have item_id 'a'$"):
            self.read(path, ["a"])


class TestRay:
    @pytest.mark.parametrize(
        ("address", "reason"),
        [
            ("nonsense", "allowed: auto, HOST:PORT, ray://HOST:PORT"),
            ("127.0.0.1:x", "Port could not be cast"),
            ("127.0.0.1:9", "Connection refused"),
            ("no.such.host.invalid:80", ""),
        ],
    )
    def test_an_address_without_a_cluster_is_refused(self, tokenizer, address, reason):
        pytest.importorskip("ray")
        with pytest.raises(ValueError, match=rf"^address '{address}': no Ray.*{reason}"):
            ItemSentences.build(made_up(3), tokenizer, address=address)

    @pytest.mark.ray
    def test_a_cluster_gives_the_same_store_and_is_left_as_it_was(
        self, tokenizer, tmp_path, monkeypatch
    ):
        import ray
        from ray.cluster_utils import Cluster

        monkeypatch.setattr(row_encoder, "ROWS_AT_ONCE", 20)
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        try:
            cluster.add_node(num_cpus=1)
            address = cluster.address
            store = ItemSentences.build(made_up(300), tokenizer, 32, tmp_path, address)
            assert_same(store, ItemSentences.build(made_up(300), tokenizer))
            assert not ray.is_initialized()
            broken = made_up(300)
            broken.loc[250, "title"] = "not \ud800"
            with pytest.raises(ValueError, match=r"^item text holds a lone surrogate"):
                ItemSentences.build(broken, tokenizer, address=address)
            assert not ray.is_initialized()
        finally:
            ray.shutdown()
            cluster.shutdown()
