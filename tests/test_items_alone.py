"""Lower layers that read items by themselves: equal to reading each alone; frozen ones are kept."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch

from recbole_jepa4rec.base.checkpoint import read_weights
from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.sentence_settings import JEPA4RecSettings
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.encoder import SentenceEncoder, depth_below
from recbole_jepa4rec.model.items_alone import FrozenOutputs
from recbole_jepa4rec.model.moving_average import ExponentialMovingAverage
from recbole_jepa4rec.model.pretrained import load_pretrained
from recbole_jepa4rec.model.starting_point import starting_point
from recbole_jepa4rec.model.transformer import EncoderConfig
from recbole_jepa4rec.text.masking import mask_tokens
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch
from recbole_jepa4rec.text.tokenizer import train_wordpiece
from tests.contract import ModelContract
from tests.tiny_encoder import catalogue, tiny_bert  # noqa: F401
from tests.tiny_jepa import SHAPE

TITLES = ["red hose", "blue spade for roses", "can", "red hose", "a long text about many seeds"]
HISTORIES = [[1, 3, 2], [5], [], [2, 2, 4, 1]]  # items 1 and 4 have one text
MAX_TOKENS = 64


@pytest.fixture
def sentences() -> ItemSentences:
    text = catalogue(TITLES)
    return ItemSentences.build(text, train_wordpiece([*TITLES, "brand title"] * 9, 200))


def encoder_of(sentences: ItemSentences, **chosen: object) -> SentenceEncoder:
    """Three layers, of which two read items alone; item positions are not zero."""
    torch.manual_seed(3)
    shape = {**SHAPE, "vocab_size": sentences.vocab_size, "num_layers": 3}
    shape |= {"training_targets": "all_prefixes", "item_local_layers": 2, **chosen}
    encoder = SentenceEncoder(EncoderConfig.of(shape))
    torch.nn.init.normal_(encoder.embedding.item_positions.weight, std=0.3)
    return encoder.eval()


def keeping(encoder: SentenceEncoder, sentences: ItemSentences, folder) -> SentenceEncoder:
    encoder.keep_frozen_outputs(FrozenOutputs(sentences, MAX_TOKENS, folder))
    return encoder


def read(sentences: ItemSentences, histories=HISTORIES) -> TokenBatch:
    newest_first = torch.tensor([item for row in histories for item in row[::-1]])
    lengths = torch.tensor([*map(len, histories)])
    return sentences.histories(newest_first, lengths, MAX_TOKENS, "all_prefixes")


def plain_layer(layer, hidden, sees=None):
    """A Transformer layer on one sequence, ``[T, D]``, in plain words."""
    heads, width = layer.attention.num_heads, hidden.shape[1]
    query, key, value = (
        part.view(len(hidden), heads, -1).transpose(0, 1)
        for part in layer.attention.qkv(hidden).split(width, dim=1)
    )
    scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    if sees is not None:
        scores = scores.masked_fill(~sees, float("-inf"))
    attended = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(hidden), width)
    hidden = layer.attention_norm(hidden + layer.attention.output(attended))
    expanded = torch.nn.functional.gelu(layer.expand(hidden))
    return layer.output_norm(hidden + layer.contract(expanded))


@torch.no_grad()
def slow(encoder: SentenceEncoder, sentences: ItemSentences, history: list[int]) -> torch.Tensor:
    """Hidden states of one history: each item alone, then all of them together."""
    parts, embedding, config = [], encoder.embedding, encoder.config
    for place, item in enumerate(history or [0], start=1):
        one = sentences.single(sentences.sentence_of_item[torch.tensor([item])])
        ids, types = (torch.cat([t[1:], t[:1]]) for t in (one.input_ids, one.token_types))
        total = embedding.tokens(ids) + embedding.token_positions.weight[: len(ids)]
        hidden = embedding.norm(total + embedding.token_types(types))
        for layer in encoder.layers[: config.item_local_layers]:
            hidden = plain_layer(layer, hidden)
        if config.pooling == "mean":
            hidden = torch.cat([hidden[:-1], hidden.mean(0, keepdim=True)])
        parts.append(hidden + embedding.item_positions.weight[place])
    of_token = torch.arange(len(parts)).repeat_interleave(torch.tensor([*map(len, parts)]))
    hidden = torch.cat(parts)
    for layer in encoder.layers[config.item_local_layers :]:
        hidden = plain_layer(layer, hidden, of_token <= of_token[:, None])
    return hidden


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("local", [1, 2, 3])
@pytest.mark.parametrize("frozen", [0, 1])
def test_equals_each_item_read_alone(sentences, pooling, local, frozen, tmp_path):
    encoder = encoder_of(sentences, item_local_layers=local, frozen_layers=frozen, pooling=pooling)
    batch, wanted = read(sentences), [slow(encoder, sentences, row) for row in HISTORIES]
    close = {"atol": 1e-5, "rtol": 1e-4}
    for kept in (False, True) if frozen else (False,):
        if kept:  # in half precision
            close = {"atol": 5e-3, "rtol": 5e-3}
            keeping(encoder, sentences, tmp_path)
        hidden = torch.cat(wanted)
        torch.testing.assert_close(encoder(batch), hidden, **close)
        torch.testing.assert_close(encoder.cls(batch), hidden[batch.cls_index], **close)
        last = torch.stack([row[-1] for row in wanted])
        torch.testing.assert_close(encoder.whole(batch), last, **close)


def test_gradients_of_an_item_that_occurs_often_add_up(sentences):
    encoder = encoder_of(sentences, pooling="mean")
    lists = [[1, 2], [1], [4]]

    def gradients(*batches):
        loss = sum(encoder.cls(batch).square().sum() for batch in batches)
        return torch.autograd.grad(loss, [*encoder.layers[0].parameters()])

    together = gradients(read(sentences, lists))
    apart = gradients(*(read(sentences, [row]) for row in lists))
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_an_item_is_read_once_a_batch(sentences, monkeypatch):
    encoder, seen = encoder_of(sentences), []
    forward = type(encoder.embedding).forward
    monkeypatch.setattr(
        type(encoder.embedding),
        "forward",
        lambda self, batch: seen.append(batch.sequences) or forward(self, batch),
    )
    encoder(read(sentences))
    assert seen == [5]  # four texts and the empty one


# --- masked items


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_masked_items_are_read_anew(sentences, frozen, tmp_path):
    """As a sentence of its own: what is kept for the whole sentence does not stand in for it."""
    encoder = encoder_of(sentences, frozen_layers=frozen)
    batch = read(sentences)
    ordinary = torch.arange(5, sentences.vocab_size)
    keys = derive(7, torch.arange(len(HISTORIES)))
    masked, selected = mask_tokens(batch, 0.5, keys, sentences.special.mask, ordinary)
    assert selected.any()
    assert not torch.equal(masked.input_ids, batch.input_ids)
    unkept = encoder(masked)
    assert not torch.allclose(unkept, encoder(batch), atol=0.05)
    if frozen:
        keeping(encoder, sentences, tmp_path)
        assert torch.equal(encoder(masked), unkept)
        both = TokenBatch.concat([masked, batch])
        found, wanted = encoder(both), torch.cat([unkept, encoder(batch)])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


# --- frozen layers


def test_frozen_layers_have_no_gradient_and_no_dropout(sentences):
    encoder = encoder_of(sentences, frozen_layers=2, dropout=0.5, attention_dropout=0.5).train()
    encoder.cls(read(sentences)).square().sum().backward()
    moving = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    assert "embedding.item_positions.weight" in moving
    others = moving - {"embedding.item_positions.weight"}
    assert others
    assert all(name.startswith("layers.2.") for name in others)
    assert not encoder.frozen_weights.keys() & moving
    assert not any(weight.requires_grad for weight in encoder.frozen_weights.values())
    still = encoder_of(sentences, num_layers=2, frozen_layers=2, dropout=0.5).train()
    assert torch.equal(still(read(sentences)), still.eval()(read(sentences)))
    moving = encoder_of(sentences, frozen_layers=1, dropout=0.5).train()
    assert not torch.equal(moving(read(sentences)), moving.eval()(read(sentences)))


def counting(monkeypatch) -> list[int]:
    """Sequences that pass through the frozen layers, a number each time."""
    frozen, calls = SentenceEncoder._frozen, []

    def counted(self, items):
        calls.append(items.sequences)
        return frozen(self, items)

    monkeypatch.setattr(SentenceEncoder, "_frozen", counted)
    return calls


def test_outputs_are_made_once_for_weights_and_sentences(sentences, tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    batch = read(sentences)
    encoder = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path)
    first = encoder(batch)
    assert calls == [5]
    assert torch.equal(encoder(batch), first)
    assert torch.equal(ExponentialMovingAverage(encoder, 0.9).module(batch), first)
    again = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path)
    again.layers[2].expand.weight.data *= 1.5  # not frozen, so nothing to what is kept
    assert not torch.equal(again(batch), first)
    assert calls == [5]
    assert len(list(tmp_path.iterdir())) == 1
    other = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path)
    other.layers[1].expand.weight.data *= 1.5
    other(batch)
    assert calls == [5, 5]
    assert len(list(tmp_path.iterdir())) == 2
    narrow = encoder_of(sentences, frozen_layers=2, num_heads=4)
    assert torch.equal(narrow.layers[0].expand.weight, encoder.layers[0].expand.weight)
    keeping(narrow, sentences, tmp_path)(batch)
    assert calls == [5, 5, 5]
    shorter = ItemSentences.build(catalogue(TITLES[:3]), sentences.tokenizer)
    keeping(encoder_of(sentences, frozen_layers=2), shorter, tmp_path)(read(shorter, [[1, 2]]))
    assert calls == [5, 5, 5, 4]


def test_outputs_that_bf16_asks_for_are_the_same(sentences, tmp_path):
    kept = []
    for folder, is_bf16 in (("whole", False), ("half", True)):
        encoder = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path / folder)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            encoder.cls(read(sentences))
        (file,) = (tmp_path / folder).iterdir()
        kept.append(read_weights(file)[0]["states"])
    assert torch.equal(*kept)


def test_a_damaged_cache_is_made_again(sentences, tmp_path, monkeypatch, caplog):
    calls, batch = counting(monkeypatch), read(sentences)
    first = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path)(batch)
    [file] = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path)(batch)
    assert torch.equal(found, first)
    assert "is rebuilt: wrong checksum" in caplog.text
    assert calls == [5, 5]


def test_large_outputs_are_mapped_from_the_disk(sentences, tmp_path, monkeypatch):
    batch = read(sentences)
    wanted = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path / "a")(batch)
    monkeypatch.setattr("recbole_jepa4rec.text.tensor_cache.LARGEST_IN_MEMORY", 64)
    monkeypatch.setattr("recbole_jepa4rec.model.items_alone.TOKENS_AT_ONCE", 6)
    for _ in range(2):
        encoder = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path / "b")
        torch.testing.assert_close(encoder(batch), wanted, atol=2e-3, rtol=2e-3)
    assert len(list((tmp_path / "b").iterdir())) == 1


def test_a_folder_that_cannot_be_written_to_costs_a_warning(sentences, tmp_path, caplog):
    (tmp_path / "file").touch()
    encoder = encoder_of(sentences, frozen_layers=2)
    wanted = encoder(read(sentences))
    with caplog.at_level(logging.WARNING):
        found = keeping(encoder, sentences, tmp_path / "file" / "cache")(read(sentences))
    torch.testing.assert_close(found, wanted, atol=5e-3, rtol=5e-3)
    assert "was not written" in caplog.text


def test_other_weights_that_are_loaded_are_read_with(sentences, tmp_path):
    batch = read(sentences)
    encoder = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path)
    average = ExponentialMovingAverage(encoder, 0.9)
    before = encoder(batch)
    other = encoder_of(sentences, frozen_layers=2)
    other.layers[0].expand.weight.data *= 1.5
    for holder in (encoder, average.module):
        holder.load_state_dict(other.state_dict())
    for holder in (encoder, average.module):
        assert not torch.allclose(holder(batch), before, atol=0.02)
        torch.testing.assert_close(holder(batch), other(batch), atol=5e-3, rtol=5e-3)


def test_items_that_come_and_go_are_read_as_they_are(sentences, tmp_path):
    encoder = encoder_of(sentences, frozen_layers=2)
    kept = keeping(encoder_of(sentences, frozen_layers=2), sentences, tmp_path)

    def agree(item):
        batch = read(sentences, [[1, item]])
        torch.testing.assert_close(kept(batch), encoder(batch), atol=5e-3, rtol=5e-3)

    agree(5)
    new = sentences.append(pd.DataFrame({"brand": ["can"], "title": ["roses red"]}))
    agree(int(new))
    sentences.reassign(torch.tensor([5]), new)
    agree(5)
    sentences.reassign(torch.tensor([5]), sentences.append(pd.DataFrame({"brand": ["can"]})))
    sentences.truncate(6)  # the last sentence of the catalogue goes with the appended ones
    kept.forget_sentences()
    agree(int(sentences.append(pd.DataFrame({"brand": ["spade"], "title": ["for a can"]}))))


# --- the map that starts as a whitening


def test_whitened_vectors_vary_alike_in_all_directions(sentences):
    encoder = encoder_of(sentences, whitening=True)
    drawn = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1))
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    vectors = drawn @ mixing + 5.0
    assert torch.equal(encoder.vectors(vectors), vectors)
    encoder.whiten(vectors)
    whitened = encoder.vectors(vectors)
    assert whitened.mean(0).abs().max() < 1e-3
    values = torch.linalg.eigvalsh(torch.cov(whitened.T))
    before = torch.linalg.eigvalsh(torch.cov(vectors.T))
    share = before / (before + 0.01 * before.mean())  # what the floor leaves of each direction
    torch.testing.assert_close(values / values.max(), (share / share.max()).sort().values)
    assert encoder.map.weight.square().sum(1).mean().item() == pytest.approx(1.0)


def test_both_sides_of_a_score_are_mapped(sentences):
    plain, mapped = encoder_of(sentences), encoder_of(sentences, whitening=True)
    mapped.whiten(torch.randn(99, 16))
    batch = read(sentences)
    for of in (SentenceEncoder.cls, SentenceEncoder.whole):
        assert torch.equal(of(mapped, batch), mapped.map(of(plain, batch)))
    assert torch.equal(mapped(batch), plain(batch))  # tokens are not


# --- settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"item_local_layers": 1, "frozen_layers": 2},
            "frozen_layers is 2; allowed with item_local_layers=1: 0 to 1",
        ),
        ({"frozen_layers": 1}, "frozen_layers is 1; allowed with item_local_layers=0: 0"),
        (
            {"item_local_layers": 1, "training_targets": "random"},
            "item_local_layers is 1; allowed with training_targets='random': 0",
        ),
        ({"pooling": "mean"}, "pooling is 'mean'; allowed with item_local_layers=0: 'cls'"),
        ({"pooling": "max"}, "pooling is 'max'; allowed: cls, mean"),
        ({"item_local_layers": -1}, "item_local_layers -1 must be a whole number from 0"),
        ({"layer_decay": 1.5}, "layer_decay 1.5 must be a number from 0 to 1"),
    ],
)
def test_settings_are_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        JEPA4RecSettings.of(Config("JEPA4Rec", "toy", config_dict=given))


def test_more_layers_than_there_are_is_refused(tiny_bert):  # noqa: F811
    line = "^item_local_layers is 2; allowed in an encoder of 1 layers: 0 to 1$"
    chosen = {"item_local_layers": 2, "training_targets": "all_prefixes"}
    with pytest.raises(ValueError, match=line):
        load_pretrained(tiny_bert, attention_window=None, **chosen)
    settings = JEPA4RecSettings.of(Config("JEPA4Rec", "toy", config_dict={"item_local_layers": 2}))
    with pytest.raises(ValueError, match=line):
        starting_point(settings, catalogue(TITLES))


def test_lower_layers_stand_deeper():
    names = ["layers.2.expand.weight", "layers.0.qkv", "embedding.norm.bias"]
    assert [depth_below(name, 3) for name in names] == [1, 3, 4]
    others = ["embedding.item_positions.weight", "map.weight", "core.predictor.unmasked"]
    assert [depth_below(name, 3) for name in others] == [0, 0, 0]


# --- the model


START = {
    "item_local_layers": 1,
    "frozen_layers": 1,
    "pooling": "mean",
    "whitening": True,
    "layer_decay": 0.5,
}


class TestFrozenLanguageModel(ModelContract):
    model = "JEPA4Rec"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def language_model(cls, tiny_bert):  # noqa: F811
        cls.settings = {**START, "encoder_checkpoint": str(tiny_bert), "pretrain_epochs": 1}

    def test_frozen_weights_are_those_of_the_language_model(self, first, net):
        found = read_weights(Path(first["path"]).parent / "model.safetensors")[0]
        started = net.core.encoder
        for name, weight in started.frozen_weights.items():
            assert torch.equal(found[f"core.encoder.{name}"], weight), name
            assert torch.equal(found[f"core.fixed_copy.module.{name}"], weight), name
        assert not torch.equal(found["core.encoder.map.weight"], started.map.weight)

    def test_starts_whitened_and_moves_as_it_should(self, net):
        vectors = net.item_vectors()
        assert vectors.mean(0).abs().max() < 1e-4
        paces = {pace: len(weights) for pace, weights in net.weights_by_pace.items()}
        assert set(paces) == {1.0, 0.5, 0.25}
        assert sum(paces.values()) == len([*net.parameters()])


class TestItemsAloneFromNothing(ModelContract):
    model = "RecFormer"
    settings: ClassVar = {
        "num_layers": 2,
        "hidden_size": 16,
        "item_local_layers": 1,
        "pooling": "mean",
        "pretrain_epochs": 1,
    }


def test_histories_of_nothing_but_padding_are_read(sentences):
    lengths = torch.tensor([0, 0])
    empty = PackedHistories(torch.tensor([], dtype=torch.int64), lengths, lengths, lengths)
    encoder = encoder_of(sentences)
    batch = sentences.histories(empty.newest_first(), empty.lengths, 9, "all_prefixes")
    assert encoder.whole(batch).shape == (2, 16)
    assert encoder.cls(sentences.single(lengths[:0], 9, "all_prefixes")).shape == (0, 16)
