"""Item sentences: what one holds, how sequences are packed, when the cache is trusted."""

from __future__ import annotations

import copy
import functools
import logging

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from recbole_jepa4rec.text import row_encoder
from recbole_jepa4rec.text.row_encoder import ATTRIBUTE, CLS, VALUE
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch, ragged_range
from recbole_jepa4rec.text.tokenizer import encode_texts, train_wordpiece

TITLES = ["red glass", "blue glass", "red tape", "blue tape and red glass", "item name title brand"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece(TITLES * 3, 200)


def catalogue(*rows: tuple[str, ...], names: tuple[str, ...] = ("item_name", "brand")):
    return pd.DataFrame([("",) * len(names), *rows], columns=list(names), dtype=object)


@pytest.fixture
def store(tokenizer) -> ItemSentences:
    return ItemSentences.build(
        catalogue(("red glass", "3m"), ("blue tape", ""), ("", ""), ("red glass", "3m")), tokenizer
    )


def expected_sentence(tokenizer, row: dict[str, str], limit: int) -> tuple[list[int], list[int]]:
    """One item's sentence by design.md's words, one attribute after the other."""
    ids, types = [], []
    for name, text in row.items():
        name_ids, value_ids = encode_texts(
            tokenizer, [name.replace("_", " "), " ".join(text.split())]
        )
        if value_ids:
            value_ids = value_ids[: limit - len(name_ids)]
            ids += name_ids + value_ids
            types += [ATTRIBUTE] * len(name_ids) + [VALUE] * len(value_ids)
    return ids, types


def sentence(store: ItemSentences, item: int) -> tuple[list[int], list[int]]:
    begin, end = store.offsets[store.sentence_of_item[item] + torch.tensor([0, 1])].tolist()
    return store.input_ids[begin:end].tolist(), store.token_types[begin:end].tolist()


def test_sentence_is_names_and_values_in_column_order(store, tokenizer):
    ids, types = sentence(store, 1)
    assert tokenizer.decode(ids).startswith("item name red glass brand")
    assert types[:5] == [ATTRIBUTE, ATTRIBUTE, VALUE, VALUE, ATTRIBUTE]
    assert sentence(store, 1) == expected_sentence(
        tokenizer, {"item_name": "red glass", "brand": "3m"}, 32
    )


def test_missing_attribute_is_left_out_with_its_name(store, tokenizer):
    assert sentence(store, 2) == expected_sentence(tokenizer, {"item_name": "blue tape"}, 32)


def slow_recformer_sentence(tokenizer, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Title, brand, category, then the rest; each by name, whether it is empty or not."""
    ids, types = [], []
    for name in ("title", "brand", "categories", "price"):
        text = row[name].replace(", ", " ") if name == "categories" else row[name]
        name = "category" if name == "categories" else name
        name_ids, value_ids = encode_texts(tokenizer, [name, text])
        ids += (name_ids + value_ids)[:8]
        types += ([ATTRIBUTE] * len(name_ids) + [VALUE] * len(value_ids))[:8]
    return ids, types


def test_recformer_s_format(tokenizer):
    names = ("price", "title", "categories", "brand")
    rows = [
        ("9", "red, glass", "tape, blue tape, glass, red glass, blue glass, red", "3m"),
        ("", "blue glass", "", ""),
        ("", "", "", ""),
    ]
    build = functools.partial(
        ItemSentences.build,
        tokenizer=tokenizer,
        max_attribute_tokens=8,
        sentence_format="recformer",
    )
    store = build(catalogue(*rows, names=names))
    for item, row in enumerate(rows[:2], 1):
        expected = slow_recformer_sentence(tokenizer, dict(zip(names, row, strict=True)))
        assert sentence(store, item) == expected
    assert store.sentence_of_item.tolist() == [0, 1, 2, 0]
    grown = build(catalogue(*rows[:1], names=names))
    grown.append(pd.DataFrame({"title": ["blue glass", ""]}))
    assert sentence(grown, 2) == sentence(store, 2)
    assert grown.sentence_of_item.tolist() == [0, 1, 2, 0]


def test_equal_sentences_are_stored_once_and_items_without_text_share_the_empty_one(store):
    assert store.sentence_of_item.tolist() == [0, 1, 2, 0, 1]
    assert (store.num_items, store.num_sentences) == (5, 3)
    assert store.sentence_lengths[0] == 0
    assert store.input_ids[0] == store.special.cls


def test_column_order_is_the_order_of_the_sentence(tokenizer):
    frame = catalogue(("red glass", "tape"))
    ids, _ = sentence(ItemSentences.build(frame[["brand", "item_name"]], tokenizer), 1)
    assert tokenizer.decode(ids) == "brand tape item name red glass"


def test_attribute_has_at_most_its_tokens_name_included(tokenizer):
    store = ItemSentences.build(catalogue(("red " * 50, "blue " * 50)), tokenizer, 8)
    ids, types = sentence(store, 1)
    assert len(ids) == 16
    assert types == [ATTRIBUTE] * 2 + [VALUE] * 6 + [ATTRIBUTE] + [VALUE] * 7


def test_name_without_room_for_a_value_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"max_attribute_tokens is 2; the name 'item_name' alone"):
        ItemSentences.build(catalogue(("red", "blue")), tokenizer, 2)


def test_padding_row_must_be_empty(tokenizer):
    with pytest.raises(ValueError, match="row 0 of the item text"):
        ItemSentences.build(pd.DataFrame({"title": ["red"]}), tokenizer)
    with pytest.raises(ValueError, match="row 0 of the item text"):
        ItemSentences.build(pd.DataFrame({"title": []}), tokenizer)


def test_tokenizer_that_cuts_and_pads_is_not_obeyed_nor_changed(tokenizer):
    limited = Tokenizer.from_str(tokenizer.to_str())
    limited.enable_truncation(2)
    limited.enable_padding(length=6)
    frame = catalogue(("blue tape and red glass", ""))
    store = ItemSentences.build(frame, limited)
    assert sentence(store, 1) == sentence(ItemSentences.build(frame, tokenizer), 1)
    assert limited.truncation["max_length"] == 2


def test_store_adds_nothing_to_a_models_weights(store):
    assert not store.state_dict()
    assert not list(store.parameters())


TEXTS = st.one_of(
    st.just(""),
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            ["red", "glass", "[MASK]", "[CLS]", "שלום", "مرحبا", "🙂👩‍👩‍👧", "\x00", "日本"]
        ),
        max_size=60,
    ).map(" ".join),
)


@settings(max_examples=100)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=6), limit=st.integers(3, 34))
def test_any_text_gives_the_sentence_its_definition_says(tokenizer, rows, limit):
    frame = catalogue(*rows)
    store = ItemSentences.build(frame, tokenizer, limit)
    for item, row in enumerate(frame.to_dict("records")):
        assert sentence(store, item) == expected_sentence(tokenizer, row, limit)
    special = store.special
    assert not {special.cls, special.mask, special.pad} & set(store.input_ids[1:].tolist())
    assert len(set(zip(*distinct(store), strict=True))) == store.num_sentences


def distinct(store: ItemSentences) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    sizes = store.sentence_lengths.tolist()
    ids = [tuple(part.tolist()) for part in store.input_ids[1:].split(sizes)]
    types = [tuple(part.tolist()) for part in store.token_types[1:].split(sizes)]
    return ids, types


def expected_batch(store: ItemSentences, histories: list[list[int]], max_tokens: int) -> TokenBatch:
    """Histories packed token by token."""
    columns: list[list[int]] = [[], [], [], []]
    offsets = [0]
    for items in histories:
        tokens = [(store.special.cls, CLS, 0)]
        for position, item in enumerate(items, start=1):
            tokens += [(i, t, position) for i, t in zip(*sentence(store, item), strict=True)]
        tokens = tokens[:max_tokens]
        for place, (token, kind, position) in enumerate(tokens):
            for column, value in zip(columns, (token, kind, place, position), strict=True):
                column.append(value)
        offsets.append(offsets[-1] + len(tokens))
    columns = [*columns, offsets, offsets[:-1]]
    return TokenBatch(*(torch.tensor(column, dtype=torch.int64) for column in columns))


def assert_equal(batch: TokenBatch, expected: TokenBatch) -> None:
    assert batch.training_targets == expected.training_targets
    for name in set(vars(batch)) - {"training_targets"}:
        tensor = getattr(batch, name)
        if tensor is None:  # the sentences of ``random``
            assert getattr(expected, name) is None, name
            continue
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == getattr(expected, name).tolist(), name


HISTORIES = st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=6)


@settings(max_examples=150)
@given(histories=HISTORIES, max_tokens=st.integers(1, 60))
def test_histories_are_packed_newest_first_and_the_oldest_tokens_cut(
    tokenizer, histories, max_tokens
):
    store = ItemSentences.build(
        catalogue(("red", "3m"), ("blue tape " * 9, ""), ("", ""), ("", "tape"), ("red", "blue")),
        tokenizer,
    )
    items = torch.tensor([i for history in histories for i in history], dtype=torch.int64)
    lengths = torch.tensor([len(history) for history in histories], dtype=torch.int64)
    batch = store.histories(items, lengths, max_tokens)
    assert_equal(batch, expected_batch(store, histories, max_tokens))


def test_single_item_is_cls_and_its_sentence(store):
    ids = store.sentence_of_item[torch.tensor([2, 0, 4])]
    assert_equal(store.single(ids), expected_batch(store, [[2], [0], [4]], 1024))
    assert_equal(store.single(ids, 4), expected_batch(store, [[2], [0], [4]], 4))


def test_no_sequences_give_an_empty_batch(store):
    none = torch.empty(0, dtype=torch.int64)
    for batch in (store.single(none), store.histories(none, none, 8)):
        assert (batch.sequences, batch.num_tokens) == (0, 0)
        assert batch.sequence_of_token.tolist() == []


def test_no_room_for_cls_is_refused(store):
    with pytest.raises(ValueError, match=r"max_tokens is 0; at least 1"):
        store.histories(torch.tensor([1]), torch.tensor([1]), 0)


def test_batch_knows_its_sequences(store):
    batch = store.histories(torch.tensor([1, 2, 2]), torch.tensor([2, 0, 1]), 1024)
    lengths = batch.lengths.tolist()
    assert lengths[1] == 1
    assert batch.sequence_of_token.tolist() == [0] * lengths[0] + [1] + [2] * lengths[2]
    assert batch.input_ids[batch.cls_index].tolist() == [store.special.cls] * 3
    masked = batch.replace(input_ids=torch.full_like(batch.input_ids, store.special.mask))
    assert masked.offsets is batch.offsets
    assert masked.input_ids.unique().tolist() == [store.special.mask]


def test_batches_concatenate(store):
    first = store.histories(torch.tensor([1, 2]), torch.tensor([1, 1]), 1024)
    second = store.histories(torch.tensor([2, 1]), torch.tensor([2]), 1024)
    assert_equal(
        TokenBatch.concat([first, second]), expected_batch(store, [[1], [2], [2, 1]], 1024)
    )


def test_ragged_range():
    starts, sizes = torch.tensor([5, 0, 9]), torch.tensor([2, 0, 3])
    assert ragged_range(starts, sizes).tolist() == [5, 6, 9, 10, 11]


def test_append_equals_building_at_once(tokenizer, store):
    rows = [("red glass", "3m"), ("new tape", "blue"), ("new tape", "blue"), ("", "")]
    ids = store.append(pd.DataFrame(rows, columns=["item_name", "brand"]))
    whole = ItemSentences.build(
        catalogue(("red glass", "3m"), ("blue tape", ""), ("", ""), ("red glass", "3m"), *rows),
        tokenizer,
    )
    assert ids.tolist() == [5, 6, 7, 8]
    assert store.sentence_of_item.tolist() == [0, 1, 2, 0, 1, 1, 3, 3, 0]
    for name, tensor in whole.named_buffers():
        assert torch.equal(getattr(store, name), tensor), name


def test_append_twice_knows_the_first_time(store):
    for _ in range(2):
        (item,) = store.append(pd.DataFrame({"brand": ["blue"]})).tolist()
    assert store.num_sentences == 4
    assert store.sentence_of_item[item] == 3


def test_append_takes_missing_values_and_columns_as_empty(store):
    frame = pd.DataFrame({"item_name": ["blue tape", None, float("nan")]})
    items = store.append(frame)
    assert store.sentence_of_item[items].tolist() == [2, 0, 0]
    assert store.append(pd.DataFrame(index=range(2))).numel() == 2


def test_append_refuses_an_attribute_the_catalogue_does_not_have(store):
    with pytest.raises(ValueError, match=r"'item_nmae' \(did you mean 'item_name'\?\)"):
        store.append(pd.DataFrame({"item_nmae": ["red"]}))
    with pytest.raises(ValueError, match=r"'price'; have item_name, brand"):
        store.append(pd.DataFrame({"price": ["3"]}))


def test_copies_stay_apart_and_read_special_names_as_text(store):
    twin = copy.deepcopy(store)
    items = twin.append(pd.DataFrame({"item_name": ["[MASK] [CLS]"]}))
    assert (store.num_items, twin.num_items) == (5, 6)
    assert not {twin.special.mask, twin.special.cls} & set(sentence(twin, int(items))[0])


FRAME = catalogue(("red glass", "3m"), ("blue tape", ""), ("", ""))


@pytest.fixture
def cached(tokenizer, tmp_path):
    """The tensors of a catalogue and the file they are cached in."""
    store = ItemSentences.build(FRAME, tokenizer, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    return dict(store.named_buffers()), path


def rebuild(tokenizer, path) -> dict[str, torch.Tensor]:
    return dict(ItemSentences.build(FRAME, tokenizer, cache_dir=path.parent).named_buffers())


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name])
        assert tensor.dtype == other[name].dtype


def test_cache_is_read_instead_of_tokenising(tokenizer, cached, monkeypatch, caplog):
    def refuse(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(row_encoder, "encode_values", refuse)
    assert_same(rebuild(tokenizer, cached[1]), cached[0])
    assert not caplog.records


def test_catalogue_from_the_cache_can_grow(tokenizer, cached):
    store = ItemSentences.build(FRAME, tokenizer, cache_dir=cached[1].parent)
    items = store.append(pd.DataFrame({"item_name": ["blue tape", "red"]}))
    assert store.sentence_of_item[items].tolist() == [2, 3]
    assert_same(rebuild(tokenizer, cached[1]), cached[0])


def test_cache_depends_on_text_settings_and_tokenizer(tokenizer, cached):
    folder = cached[1].parent
    frames = [
        FRAME.replace("3m", "3n"),
        FRAME[["brand", "item_name"]],
        FRAME.rename(columns={"brand": "maker"}),
        catalogue(("red glass3", "m"), ("blue tape", ""), ("", "")),
        FRAME.iloc[:3],
    ]
    for frame in frames:
        ItemSentences.build(frame, tokenizer, cache_dir=folder)
    ItemSentences.build(FRAME, tokenizer, 31, cache_dir=folder)
    ItemSentences.build(FRAME, train_wordpiece(TITLES, 150), cache_dir=folder)
    assert len(list(folder.iterdir())) == 1 + len(frames) + 2


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def replace_by_text(path):
    path.write_text("not a cache\n" * 50)


def replace_by_foreign_tensors(path):
    save_file(load_file(path), path)


def replace_by_another_catalogue(path):
    other = FRAME.replace("3m", "3n")
    before = set(path.parent.iterdir())
    ItemSentences.build(other, train_wordpiece(TITLES * 3, 200), cache_dir=path.parent)
    (new,) = set(path.parent.iterdir()) - before
    new.replace(path)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        flip_a_bit,
        empty,
        replace_by_text,
        replace_by_foreign_tensors,
        replace_by_another_catalogue,
        replace_by_folder,
    ],
)
def test_spoilt_cache_is_rebuilt_with_a_warning(tokenizer, cached, caplog, spoil):
    tensors, path = cached
    spoil(path)
    with caplog.at_level(logging.WARNING):
        assert_same(rebuild(tokenizer, path), tensors)
    assert f"{path} is rebuilt" in caplog.text
    if path.is_file():
        caplog.clear()
        assert_same(rebuild(tokenizer, path), tensors)
        assert not caplog.records


def test_cache_that_cannot_be_written_costs_a_warning(tokenizer, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = ItemSentences.build(FRAME, tokenizer, cache_dir=tmp_path / "file" / "cache")
    assert store.num_items == 4
    assert "was not written" in caplog.text
