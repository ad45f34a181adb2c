"""Tokenizers: training is deterministic, published formats load, any text can be encoded."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

import recbole_jepa4rec
from recbole_jepa4rec.text.tokenizer import (
    SpecialIds,
    encode_texts,
    encode_values,
    load_tokenizer,
    save_tokenizer,
    train_wordpiece,
    word_beginnings,
)

TITLES = [
    "3M Safety Glasses, Clear Lens",
    "Glass beaker 250 ml (pack of 12)",
    "Safety gloves – nitrile, blue",
    "Café crème 日本語 🙂 שלום مرحبا",
    "Clear packing tape, 6 rolls",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TRAIN_AND_PRINT = """
import hashlib, json, sys, types
package = types.ModuleType("recbole_jepa4rec")  # in place of the real one, which imports RecBole
package.__path__ = [sys.argv[1]]
sys.modules["recbole_jepa4rec"] = package
from recbole_jepa4rec.text.tokenizer import train_wordpiece
tokenizer = train_wordpiece(json.loads(sys.argv[2]), 200)
print(hashlib.sha256(tokenizer.to_str().encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece(TITLES * 3, 300)


def test_training_is_the_same_in_every_process():
    digests = {hashlib.sha256(train_wordpiece(TITLES * 3, 200).to_str().encode()).hexdigest()}
    for hash_seed, threads in [("1", "1"), ("2", "2"), ("3", "4")]:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads}
        folder = Path(recbole_jepa4rec.__file__).parent
        command = [sys.executable, "-c", TRAIN_AND_PRINT, str(folder), json.dumps(TITLES * 3)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_training_does_not_depend_on_how_text_is_split_into_lines():
    assert (
        train_wordpiece([" ".join(TITLES)], 200).to_str() == train_wordpiece(TITLES, 200).to_str()
    )


def test_special_tokens_come_first_and_alone_are_special(tokenizer):
    assert [tokenizer.id_to_token(i) for i in range(5)] == SPECIAL
    assert SpecialIds.of(tokenizer) == SpecialIds(
        cls=2, mask=4, pad=0, unk=1, all=frozenset(range(5))
    )


def test_frequent_words_become_one_token_and_known_text_has_no_unknown_token(tokenizer):
    assert tokenizer.encode("Safety GLASSES").tokens == ["safety", "glasses"]
    unknown = SpecialIds.of(tokenizer).unk
    assert all(unknown not in ids for ids in encode_texts(tokenizer, TITLES))


def test_vocabulary_of_many_characters_stays_within_its_size():
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 500)]
    texts = [" ".join(characters), characters[7] * 3, "zebra zebra"]
    tokenizer = train_wordpiece(texts, 25)
    assert tokenizer.get_vocab_size() <= 25
    kept = {token.removeprefix("##") for token in tokenizer.get_vocab()} - set(SPECIAL)
    assert characters[7] in kept  # frequent
    assert set("zebra") <= kept  # frequent
    assert {characters[0], characters[1]} <= kept  # as rare as the others; smaller code points
    assert characters[-1] not in kept
    assert tokenizer.encode(characters[-1]).tokens == ["[UNK]"]


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"^vocab_size is 6; at least 7 is needed$"):
        train_wordpiece(TITLES, 6)


def test_training_without_text_gives_the_special_tokens():
    assert sorted(train_wordpiece(["", " "], 100).get_vocab()) == sorted(SPECIAL)


@settings(max_examples=60)
@given(st.lists(st.text(max_size=40), max_size=8), st.integers(7, 120))
def test_any_text_can_be_learned_from(texts, vocab_size):
    tokenizer = train_wordpiece(texts, vocab_size)
    assert tokenizer.get_vocab_size() <= vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))
    assert tokenizer.to_str() == train_wordpiece(texts, vocab_size).to_str()


WORDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["safety", "[MASK]", "[CLS]", "\u200f\u200e", "\x00", "🙂👩‍👩‍👧", "שלום", "x" * 300]
    ),
)


@settings(max_examples=150)
@given(
    texts=st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=6), room=st.integers(1, 9)
)
def test_values_are_the_first_tokens_of_the_whole_text(tokenizer, texts, room):
    whole = encode_texts(tokenizer, [" ".join(text.split()) for text in texts])
    assert encode_values(tokenizer, texts, room) == [ids[:room] for ids in whole]
    special = SpecialIds.of(tokenizer)
    assert special.all.intersection(token for ids in whole for token in ids) <= {special.unk}


def test_very_long_text_is_cut_quickly_and_right(tokenizer):
    assert encode_values(tokenizer, ["safety " * 200_000], 4) == encode_values(
        tokenizer, ["safety safety safety safety"], 9
    )


def test_words_begin_where_a_vocabulary_says_so():
    pieces = {"[UNK]": 0, "glass": 1, "##es": 2, "#": 3}
    wordpiece = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    assert word_beginnings(wordpiece) == [True, True, False, True]
    pieces = {"<unk>": 0, "Ġglass": 1, "es": 2, ",": 3, "'s": 4, "glass": 6}
    byte_level = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    assert word_beginnings(byte_level) == [True, True, False, True, True, True, False]


def test_lone_surrogate_is_refused_in_one_line(tokenizer):
    with pytest.raises(ValueError, match=r"^item text holds a lone surrogate"):
        encode_texts(tokenizer, ["fine", "not \ud800"])


def test_saved_tokenizer_loads_from_file_and_folder(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    for source in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert load_tokenizer(source).to_str() == tokenizer.to_str()


def test_bert_folder_with_vocab_txt_only(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "glass", "##es"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = load_tokenizer(tmp_path)
    assert encode_texts(tokenizer, ["Glasses tape"]) == [[5, 6, 1]]
    assert SpecialIds.of(tokenizer).mask == 4


@pytest.mark.parametrize("model_type", ["roberta", "longformer"])
def test_byte_level_folder_with_vocabulary_and_merges(tmp_path, model_type):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "h", "e", "Ġ", "he", "Ġhe", "<mask>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nĠ he\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = load_tokenizer(tmp_path)
    assert SpecialIds.of(tokenizer) == SpecialIds(
        cls=0, mask=9, pad=1, unk=3, all=frozenset({0, 1, 2, 3, 9})
    )
    assert encode_texts(tokenizer, ["he he"]) == [[7, 8]]


def test_unreadable_tokenizers_are_refused_in_one_line(tmp_path):
    broken = tmp_path / "tokenizer.json"
    broken.write_text('{"version": "1.0", "model"')
    for source, message in [
        (broken, "not a tokenizer.json"),
        (tmp_path / "missing", "no fast tokenizer at"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            load_tokenizer(source)
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [(), ("vocab.json",), ("tokenizer_config.json",)])
def test_a_folder_without_tokenizer_is_refused(tmp_path, names):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="holds no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_special_tokens_alone_is_refused(tmp_path):
    save_tokenizer(train_wordpiece([], 100), tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="no tokens besides the special ones"):
        load_tokenizer(tmp_path)


def test_tokenizer_without_a_mask_token_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"[CLS]": 0, "[PAD]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"no mask token: none of \[MASK\], <mask>"):
        SpecialIds.of(tokenizer)


def test_a_tokenizer_of_the_hub_brings_no_code(monkeypatch):
    import transformers

    asked = {}

    def from_pretrained(name, **options):
        asked[name] = options
        raise OSError("no such name")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match="no fast tokenizer at 'some/name'"):
        load_tokenizer("some/name")
    assert asked["some/name"]["trust_remote_code"] is False


def test_a_word_that_no_one_can_read_is_not_learnt_from():
    texts = [*TITLES, "clear " + "a" * 200_000]  # would take minutes
    tokenizer = train_wordpiece(texts, 200)
    assert tokenizer.to_str() == train_wordpiece([*TITLES, "clear "], 200).to_str()
    assert tokenizer.encode("a" * 200_000, add_special_tokens=False).tokens == ["[UNK]"]


def test_words_up_to_a_thousand_letters_count():
    with_word = train_wordpiece([*TITLES, *["ab" * 500] * 3], 200)
    assert with_word.to_str() != train_wordpiece(TITLES, 200).to_str()
