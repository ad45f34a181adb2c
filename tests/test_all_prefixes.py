"""Training on all prefixes: order and cuts, no prefix sees its future, losses, windows, modes."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.data.histories import Histories, PackedHistories
from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.model.transformer import EncoderConfig
from recbole_jepa4rec.text.masking import draw_masked_item
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import fill_batches
from recbole_jepa4rec.text.tokenizer import train_wordpiece
from recbole_jepa4rec.training.phases import history_tokens, window_ends
from tests.tiny_jepa import ITEMS, KEYS, MAX_TOKENS, SHAPE, STEP, eight_users, tiny_jepa


@pytest.fixture(scope="module")
def sentences() -> ItemSentences:
    """Items 1 to 59; the titles of 2k and 2k + 1 differ but have as many tokens."""
    words = [f"w{i}x" for i in range(40)]
    titles = [
        " ".join(words[(7 * i + j) % 40] for j in range(1 + i // 2 % 9)) for i in range(1, ITEMS)
    ]
    text = pd.DataFrame({"title": ["", *titles]})
    return ItemSentences.build(text, train_wordpiece([*titles, *["title"] * 50], 400))


def build(sentences: ItemSentences, layers: int = 2, **aims: object) -> JointEmbeddingModel:
    return tiny_jepa(sentences, "all_prefixes", layers, **aims)


@pytest.fixture
def histories() -> PackedHistories:
    return eight_users()


def alone(items: list[int], target: int = 0) -> PackedHistories:
    """One history, oldest item first."""
    lengths, targets = torch.tensor([len(items)]), torch.tensor([target])
    return PackedHistories(torch.tensor(items, dtype=torch.int64), lengths, targets, targets)


def prefixes(histories: PackedHistories) -> list[tuple[list[int], int]]:
    """Every prefix of every history, oldest first, and the item after it."""
    rows = []
    per_user = histories.items.split(histories.lengths.tolist())
    for history, target in zip(per_user, histories.targets.tolist(), strict=True):
        items = [*history.tolist(), target]
        rows += [(items[:k], items[k]) for k in range(1, len(items))]
    return rows


# --- order


@settings(max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(1, ITEMS - 1), max_size=7), min_size=1, max_size=5),
    max_tokens=st.integers(2, 40),
)
def test_sequences_read_oldest_first_and_whole_oldest_items_are_left_out(
    sentences, rows, max_tokens
):
    newest_first = torch.tensor([item for row in rows for item in row[::-1]], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    batch = sentences.histories(newest_first, lengths, max_tokens, "all_prefixes")
    ids, positions, places, cls, offsets = [], [], [], [], [0]
    for row in rows:
        parts, room = [], max_tokens
        for item in reversed(row or [0]):
            one = sentences.single(sentences.sentence_of_item[torch.tensor([item])])
            tokens = one.input_ids.tolist()[1:]
            tokens = tokens if parts else tokens[: max_tokens - 1]
            room -= len(tokens) + 1
            if room < 0:
                break
            parts.insert(0, [*tokens, sentences.special.cls])
        for place, part in enumerate(parts, start=1):
            ids += part
            positions += [place] * len(part)
            places += range(len(part))
            cls.append(len(ids) - 1)
        offsets.append(len(ids))
    assert batch.input_ids.tolist() == ids and batch.item_positions.tolist() == positions
    assert batch.cls_index.tolist() == cls and batch.offsets.tolist() == offsets
    assert batch.token_positions.tolist() == places
    assert batch.all_prefixes and batch.lengths.max() <= max_tokens
    assert torch.equal(batch.token_types == 0, batch.input_ids == sentences.special.cls)


# --- causality


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("changed", range(6))
def test_no_prefix_sees_its_future(sentences, layers, changed):
    """Another text of as many tokens for one item: all earlier outputs stay, to the bit."""
    model = build(sentences, layers)
    items, other = torch.tensor([2, 14, 26, 38, 8, 20]), torch.tensor([3, 15, 27, 39, 9, 21])
    swapped = torch.where(torch.arange(6) == changed, other, items)
    before, after = (model._read(alone(ids.tolist())) for ids in (items, swapped))
    assert torch.equal(before.offsets, after.offsets)
    assert not torch.equal(before.input_ids, after.input_ids)
    earlier = before.item_positions <= changed
    for outputs in (model.encoder, lambda batch: model.encoder.cls(batch)):
        one, two = outputs(before), outputs(after)
        kept = earlier if len(one) == before.num_tokens else earlier[before.cls_index]
        assert torch.equal(one[kept], two[kept])
        assert not torch.isclose(one[~kept], two[~kept]).all(1).any()


@pytest.mark.parametrize("layers", [1, 2])
def test_each_summary_equals_its_prefix_read_alone(sentences, histories, layers):
    model = build(sentences, layers)
    together = model.encoder.cls(model._read(histories))
    rows = prefixes(histories)
    assert len(rows) == len(together) == int(histories.lengths.sum())
    for vector, (items, _) in zip(together, rows, strict=True):
        one = model.encode_histories(alone(items))
        torch.testing.assert_close(vector, one[0], atol=2e-5, rtol=1e-4)


def test_summaries_alone_equal_those_of_the_whole_pass(sentences, histories):
    model = build(sentences)
    batch = model._read(histories)
    hidden = model.encoder(batch)
    torch.testing.assert_close(model.encoder.cls(batch), hidden[batch.cls_index])
    last = batch.offsets[1:] - 1
    torch.testing.assert_close(model.encoder.whole(batch), hidden[last])


def test_an_encoder_refuses_the_other_order(sentences, histories):
    batch = sentences.histories(histories.newest_first(), histories.lengths, MAX_TOKENS)
    with pytest.raises(ValueError, match=r"sequences for .*'random' in an .*'all_prefixes'"):
        build(sentences).encoder(batch)


def test_local_attention_is_refused():
    with pytest.raises(ValueError, match=r"^attention_window is 64; allowed .*: null$"):
        EncoderConfig.of({**SHAPE, "attention_window": 64, "training_targets": "all_prefixes"})


# --- losses


def test_finetuning_is_a_softmax_for_every_prefix(sentences, histories):
    model = build(sentences, items_per_step=1000)
    every = torch.arange(1, sentences.num_sentences)
    table = model.encoder.cls(model._single(every))
    total, rows = 0.0, prefixes(histories)
    for items, target in rows:
        one = model.encode_histories(alone(items))
        logits = torch.cosine_similarity(one, table) / 0.05
        total -= logits.log_softmax(0)[sentences.sentence_of_item[target] - 1].item()
    loss = model.finetune_losses(histories, KEYS, STEP)["finetune"]
    assert loss.item() == pytest.approx(total / len(rows), rel=1e-4)


def test_pretraining_compares_every_prefix_and_maps_the_whole_history(sentences, histories):
    """L_S-I over prefixes; L_map and L_MLM as with one target, from the newest [CLS]."""
    model = build(sentences, history_mask_ratio=0.0, next_item_mask_ratio=0.0, mlm_weight=0.0)
    with torch.no_grad():
        for parameter in model.target_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    losses = model.pretrain_losses(histories, KEYS)
    rows = prefixes(histories)
    wanted = sorted({int(sentences.sentence_of_item[target]) for _, target in rows})
    table = model.encoder.cls(model._single(torch.tensor(wanted)))
    total = 0.0
    for items, target in rows:
        one = model.encode_histories(alone(items))
        logits = torch.cosine_similarity(one, table) / 0.05
        right = wanted.index(int(sentences.sentence_of_item[target]))
        total -= logits.log_softmax(0)[right].item()
    assert losses["sequence_item"].item() == pytest.approx(total / len(rows), rel=1e-4)

    whole = model.encode_histories(histories)
    next_sentences = sentences.sentence_of_item[histories.targets]
    guess = model.predictor.predict_next(whole, model.encoder.cls(model._single(next_sentences)))
    target = model.target_encoder.module.cls(model._single(next_sentences))
    next_term = (guess - target).square().sum(1).mean()
    history_term = losses["mapping"] - next_term
    of_history = model._single(sentences.sentence_of_item[histories.items])
    of_items = model.target_encoder.module.cls(of_history)
    guesses = model.predictor.predict_history(whole, whole, torch.zeros(8, dtype=torch.bool))
    per_user = [
        (guess - choices).square().sum(1)
        for guess, choices in zip(guesses, of_items.split(histories.lengths.tolist()), strict=True)
    ]
    low, high = (sum(f(d).item() for d in per_user) / 8 for f in (torch.min, torch.max))
    assert low - 1e-4 <= history_term.item() <= high + 1e-4


@pytest.mark.parametrize("position", [1, 2, 3])
def test_item_positions_count_from_the_oldest(sentences, position):
    batch = sentences.histories(torch.tensor([7, 5, 3]), torch.tensor([3]), 256, "all_prefixes")
    back = batch.items_back(torch.tensor([0]), torch.tensor([position]))
    assert [7, 5, 3][int(back)] == {1: 3, 2: 5, 3: 7}[position]


def test_an_empty_history_is_an_item_without_text(sentences):
    batch = sentences.histories(
        torch.tensor([], dtype=torch.int64), torch.tensor([0]), 256, "all_prefixes"
    )
    assert batch.input_ids.tolist() == [sentences.special.cls]
    nothing = build(sentences).encode_histories(alone([]))
    assert nothing.shape == (1, 16) and nothing.isfinite().all()


# --- which targets, which batches


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(4, 40), min_size=1, max_size=6),
    window=st.integers(1, 12),
    epoch=st.integers(0, 3),
)
def test_windows_hold_every_training_target_and_none_beyond(lengths, window, epoch):
    users = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
    histories = Histories.of(users, torch.ones_like(users), len(lengths) + 1)
    ends = window_ends(histories, torch.arange(1, len(lengths) + 1), 7, epoch, window)
    assert len(ends) == len(set(ends.tolist()))
    seen = set()
    for end in ends.tolist():
        first = int(histories.offsets[histories.users[end]])
        seen |= set(range(max(first + 1, end - window + 1), end + 1))
    assert seen == set(histories.leave_one_out()[0].tolist())
    most = sum(1 + math.ceil(max(0, length - 3) / window) for length in lengths)
    assert len(ends) <= most


def test_windows_move_between_epochs_and_do_not_depend_on_other_users():
    users = torch.arange(1, 5).repeat_interleave(50)
    histories = Histories.of(users, torch.ones_like(users), 5)
    every = torch.arange(1, 5)
    first, second = (set(window_ends(histories, every, 7, e, 10).tolist()) for e in (0, 1))
    assert first != second
    alone = set(window_ends(histories, torch.tensor([3]), 7, 0, 10).tolist())
    assert alone == {end for end in first if histories.users[end] == 3}


@given(
    tokens=st.lists(st.integers(1, 50), max_size=40),
    max_tokens=st.integers(1, 120),
    max_sequences=st.integers(1, 9),
)
def test_batches_are_filled_up_to_the_budget(tokens, max_tokens, max_sequences):
    sizes = fill_batches(torch.tensor(tokens, dtype=torch.int64), max_tokens, max_sequences)
    assert sum(sizes) == len(tokens) and all(1 <= size <= max_sequences for size in sizes)
    first = 0
    for size in sizes:
        used = sum(tokens[first : first + size])
        assert used <= max_tokens or size == 1
        following = tokens[first + size : first + size + 1]
        assert not following or size == max_sequences or used + following[0] > max_tokens
        first += size


def test_history_tokens_are_those_of_the_sequences(sentences):
    items = torch.randint(1, ITEMS, (30,), generator=torch.Generator().manual_seed(1))
    users = torch.arange(1, 4).repeat_interleave(10)
    histories, targets = Histories.of(users, items, 4), torch.tensor([5, 9, 13, 29])
    item_tokens = sentences.sentence_lengths[sentences.sentence_of_item] + 1
    counted = history_tokens(histories, targets, item_tokens, 4, 10_000)
    for target, count in zip(targets.tolist(), counted.tolist(), strict=True):
        first = max(target - 4, 10 * (target // 10))
        history = items[first:target].flip(0)
        batch = sentences.histories(history, torch.tensor([len(history)]), 10_000, "all_prefixes")
        assert batch.num_tokens == count


def test_long_batches_are_encoded_in_parts_of_bounded_tokens(sentences, histories, monkeypatch):
    model = build(sentences)
    expected, seen = model.encode_histories(histories), []
    model.tokens_per_batch = 40
    encode = model.encoder.whole
    monkeypatch.setattr(
        model.encoder, "whole", lambda part, _: seen.append(part.num_tokens) or encode(part)
    )
    torch.testing.assert_close(model.encode_histories(histories), expected)
    longest = int(model._read(histories).lengths.max())
    assert len(seen) > 2 and max(seen) <= max(40, longest)


def test_bf16_autocast_moves_the_losses_by_less_than_two_percent(sentences, histories):
    exact = build(sentences).pretrain_losses(histories, KEYS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = build(sentences).pretrain_losses(histories, KEYS)
    for name, loss in exact.items():
        assert rounded[name].item() == pytest.approx(loss.item(), rel=0.02)


def test_the_newest_item_stands_in_and_items_without_text_never(sentences):
    ids, lengths = torch.tensor([7, 5, 3, 0, 9]), torch.tensor([3, 2, 0])
    batch = sentences.histories(ids, lengths, 256, "all_prefixes")
    nothing = torch.zeros(batch.num_tokens, dtype=torch.bool)
    place, _ = draw_masked_item(batch, nothing, derive(1, torch.arange(3)), "newest")
    assert place.tolist() == [3, 1, 0]  # item 0 has no text, the last history no item
