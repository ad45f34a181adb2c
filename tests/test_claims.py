"""The claims of the paper, as tests: what is masked, what is predicted, what gets a gradient."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tokenizers.models import WordPiece

from recbole_jepa4rec.base.keyed_random import Draw, below, derive, uniform
from recbole_jepa4rec.evaluation.metrics import target_ranks
from recbole_jepa4rec.model.item_table import draw_candidates
from recbole_jepa4rec.text.masking import draw_masked_item, mask_tokens
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.tokenizer import train_wordpiece
from tests.tiny_jepa import ITEMS, KEYS, STEP, eight_users, tiny_jepa, tiny_sentences


@pytest.fixture(scope="module")
def sentences():
    return tiny_sentences()


@pytest.fixture
def histories():
    return eight_users()


@pytest.fixture(scope="module")
def many(sentences):
    """A batch large enough for rates: 2,000 histories of 10 items."""
    generator = torch.Generator().manual_seed(9)
    item_ids = torch.randint(1, ITEMS, (20_000,), generator=generator)
    batch = sentences.histories(item_ids, torch.full((2_000,), 10), 1024)
    return batch, derive(2, torch.arange(2_000))


# --- masking (3.3.1)


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.5, 1.0])
def test_tokens_are_selected_at_the_rate_and_cls_never(many, sentences, rate):
    batch, keys = many
    ordinary = torch.arange(5, sentences.vocab_size)
    _, selected = mask_tokens(batch, rate, keys, sentences.special.mask, ordinary)
    is_cls = batch.token_types == 0
    assert not selected[is_cls].any()
    assert selected[~is_cls].float().mean() == pytest.approx(rate, abs=0.005)


def test_selected_tokens_are_replaced_80_10_10(many, sentences):
    batch, keys = many
    mask, ordinary = sentences.special.mask, torch.arange(5, sentences.vocab_size)
    masked, selected = mask_tokens(batch, 0.5, keys, mask, ordinary)
    before, after = batch.input_ids[selected], masked.input_ids[selected]
    by_chance = 0.1 / len(ordinary)  # a random token that happens to be the old one
    assert (after == mask).float().mean() == pytest.approx(0.8, abs=0.01)
    assert (after == before).float().mean() == pytest.approx(0.1 + by_chance, abs=0.01)
    assert torch.equal(masked.input_ids[~selected], batch.input_ids[~selected])
    drawn = after[(after != mask) & (after != before)]
    assert drawn.min() >= 5 and drawn.unique().numel() > 0.5 * len(ordinary)


def test_whole_words_are_selected_together_and_at_the_rate(many, sentences):
    batch, keys = many
    mask, ordinary = sentences.special.mask, torch.arange(5, sentences.vocab_size)
    begins = torch.arange(sentences.vocab_size) % 2 == 0  # as if all others had ##
    _, selected = mask_tokens(batch, 0.15, keys, mask, ordinary, begins)
    parts = (batch.sequence_of_token, batch.item_positions, batch.token_types)
    words, last = [], None
    for token, (piece, *where) in enumerate(
        zip(*(part.tolist() for part in (batch.input_ids, *parts)), strict=True)
    ):
        if where != last or piece % 2 == 0:
            words.append([])
        words[-1].append(token)
        last = where
    assert max(map(len, words)) > 2
    fates = [set(selected[word].tolist()) for word in words]
    assert all(len(fate) == 1 for fate in fates)
    of_words = [fate for fate, word in zip(fates, words, strict=True) if parts[2][word[0]] != 0]
    assert of_words.count({True}) / len(of_words) == pytest.approx(0.15, abs=0.01)
    assert not selected[batch.token_types == 0].any()


def test_a_model_masks_whole_words_where_it_is_told_to(histories):
    text = pd.DataFrame({"title": ["", *["unlike liking"] * (ITEMS - 1)]})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "title", "un", "##like", "lik", "##ing"]
    tokenizer = train_wordpiece(["x"], 10)
    tokenizer.model = WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]")
    store = ItemSentences.build(text, tokenizer)
    for unit in ("token", "word"):
        model = tiny_jepa(store, mask_unit=unit, history_mask_ratio=0.5)
        _, selected = model.masking.of_histories(model._read(histories), KEYS)
        pairs = torch.stack([selected[model._read(histories).input_ids == n] for n in (6, 7)])
        assert bool((pairs[0] == pairs[1]).all()) == (unit == "word")


def test_masking_depends_on_the_key_and_not_on_the_batch(sentences, histories):
    item_ids, lengths = histories.newest_first(), histories.lengths
    ordinary = torch.arange(5, sentences.vocab_size)
    whole = sentences.histories(item_ids, lengths, 256)
    _, together = mask_tokens(whole, 0.3, KEYS, sentences.special.mask, ordinary)
    alone = sentences.histories(item_ids[4:9], lengths[2:3], 256)
    _, single = mask_tokens(alone, 0.3, KEYS[2:3], sentences.special.mask, ordinary)
    assert torch.equal(single, together[whole.offsets[2] : whole.offsets[3]])
    _, other_key = mask_tokens(alone, 0.3, KEYS[3:4], sentences.special.mask, ordinary)
    assert not torch.equal(single, other_key)


def test_the_drawn_item_has_a_masked_token_and_all_such_are_drawn(many, sentences):
    batch, keys = many
    ordinary = torch.arange(5, sentences.vocab_size)
    _, selected = mask_tokens(batch, 0.05, keys, sentences.special.mask, ordinary)
    place, was_masked = draw_masked_item(batch, selected, keys, "uniform")
    masked_items = {
        (s, p)
        for s, p in zip(
            batch.sequence_of_token[selected].tolist(),
            batch.item_positions[selected].tolist(),
            strict=True,
        )
    }
    users_with = {s for s, _ in masked_items}
    for user, (position, masked) in enumerate(
        zip(place.tolist(), was_masked.tolist(), strict=True)
    ):
        assert masked == (user in users_with)
        assert ((user, position) in masked_items) if masked else 1 <= position <= 10
    shares = torch.bincount(place, minlength=11)[1:].float() / len(place)
    assert shares.min() > 0.07 and shares.max() < 0.13  # uniform over ten positions


def test_newest_item_stands_in_when_asked(sentences, histories):
    batch = sentences.histories(histories.newest_first(), histories.lengths, 256)
    nothing = torch.zeros(batch.num_tokens, dtype=torch.bool)
    place, was_masked = draw_masked_item(batch, nothing, KEYS, "newest")
    assert place.tolist() == [1] * 8 and not was_masked.any()


def test_history_without_tokens_has_no_item_to_draw(sentences):
    batch = sentences.histories(torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0]), 256)
    nothing = torch.zeros(2, dtype=torch.bool)
    place, was_masked = draw_masked_item(batch, nothing, derive(1, torch.arange(2)), "uniform")
    assert place.tolist() == [0, 0] and not was_masked.any()


def test_zero_vector_is_used_exactly_when_nothing_was_masked(sentences):
    predictor = tiny_jepa(sentences).predictor
    assert torch.equal(predictor.unmasked, torch.zeros(16))
    sequence, position = torch.randn(2, 16), torch.randn(2, 16)
    was_masked = torch.tensor([True, False])
    out = predictor.predict_history(sequence, position, was_masked)
    torch.testing.assert_close(out[0], predictor.history(torch.cat([sequence[0], position[0]])))
    torch.testing.assert_close(out[1], predictor.history(torch.cat([sequence[1], torch.zeros(16)])))
    out.sum().backward()
    assert predictor.unmasked.grad.abs().sum() > 0  # learnable


# --- sentences (3.1, 3.2)


def test_sequences_read_newest_item_first_with_types_and_positions(sentences):
    batch = sentences.histories(torch.tensor([3, 5]), torch.tensor([2]), 256)
    three, five = (sentences.single(sentences.sentence_of_item[torch.tensor([i])]) for i in (3, 5))
    assert batch.input_ids[0] == sentences.special.cls
    assert batch.input_ids.tolist() == three.input_ids.tolist() + five.input_ids.tolist()[1:]
    cut = three.num_tokens
    assert batch.item_positions.tolist() == [0] + [1] * (cut - 1) + [2] * (five.num_tokens - 1)
    assert batch.token_positions.tolist() == list(range(batch.num_tokens))
    assert batch.token_types[0] == 0 and set(batch.token_types[1:].tolist()) == {1, 2}


def test_item_5_lacks_a_brand_and_leaves_its_name_out(sentences):
    name = sentences.tokenizer.encode("brand name", add_special_tokens=False).ids
    with_brand, without = (
        sentences.single(sentences.sentence_of_item[torch.tensor([i])]) for i in (4, 5)
    )
    assert without.token_types.tolist().count(1) == 1  # "title"
    assert with_brand.token_types.tolist().count(1) == 1 + len(name)


@pytest.mark.parametrize("limit", [1, 2, 17, 1024])
def test_oldest_tokens_are_cut(sentences, limit):
    item_ids, lengths = torch.arange(1, 51), torch.tensor([50])
    whole = sentences.histories(item_ids, lengths, 100_000)
    cut = sentences.histories(item_ids, lengths, limit)
    assert cut.num_tokens == min(limit, whole.num_tokens)
    assert torch.equal(cut.input_ids, whole.input_ids[: cut.num_tokens])


# --- losses and gradients (3.3.2, 3.4)


def test_terms_of_the_pretraining_loss(sentences, histories):
    losses = tiny_jepa(sentences).pretrain_losses(histories, KEYS)
    assert set(losses) == {"sequence_item", "mlm", "mapping"}
    assert all(math.isfinite(loss.item()) and loss.item() >= 0 for loss in losses.values())
    without = tiny_jepa(sentences, mlm_weight=0.0, mapping_weight=0.0).pretrain_losses(
        histories, KEYS
    )
    assert set(without) == {"sequence_item"}
    torch.testing.assert_close(without["sequence_item"], losses["sequence_item"])


@pytest.mark.parametrize("positive_encoder", ["context", "target"])
def test_target_encoder_gets_no_gradient_and_all_else_does(sentences, histories, positive_encoder):
    model = tiny_jepa(sentences, positive_encoder=positive_encoder)
    sum(model.pretrain_losses(histories, KEYS).values()).backward()
    assert all(p.grad is None for p in model.target_encoder.parameters())
    for part in (model.encoder, model.predictor, model.mlm_head):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name


def test_mapping_loss_alone_trains_predictor_and_encoder(sentences, histories):
    model = tiny_jepa(sentences)
    model.pretrain_losses(histories, KEYS)["mapping"].backward()
    assert model.predictor.history[0].weight.grad.abs().sum() > 0
    assert model.predictor.next_item[0].weight.grad.abs().sum() > 0
    assert model.encoder.embedding.item_positions.weight.grad.abs().sum() > 0


def test_sequence_item_loss_equals_a_slow_batch(sentences, histories):
    """Users 1 and 2 share next item 9, users 0 and 7 share item 4: one candidate each."""
    model = tiny_jepa(sentences, history_mask_ratio=0.0)
    next_items = histories.targets
    loss = model.pretrain_losses(histories, KEYS)["sequence_item"]
    candidates = sorted(set(next_items.tolist()))
    sequences = model.encode_histories(histories)
    single = sentences.single(sentences.sentence_of_item[torch.tensor(candidates)])
    vectors = model.encoder(single)[single.cls_index]
    total = 0.0
    for row, target in zip(sequences, next_items.tolist(), strict=True):
        similar = torch.cosine_similarity(row[None], vectors) / 0.05
        total -= torch.log_softmax(similar, 0)[candidates.index(target)].item()
    assert loss.item() == pytest.approx(total / 8, rel=1e-4)


def test_the_same_item_twice_in_a_batch_is_no_negative(sentences, histories):
    model = tiny_jepa(sentences)
    same = replace(histories, targets=torch.full_like(histories.targets, 9))
    assert model.pretrain_losses(same, KEYS)["sequence_item"].item() == 0.0


def finetune_by_hand(model, sentences, histories):
    every = sentences.single(torch.arange(sentences.num_sentences))
    table = model.encoder(every)[every.cls_index][1:]  # the padding item's is no candidate
    similarity = torch.cosine_similarity(
        model.encode_histories(histories)[:, None], table[None], dim=2
    )
    wanted = sentences.sentence_of_item[histories.targets] - 1
    total = 0.0
    for row, right in zip((similarity / 0.05).tolist(), wanted.tolist(), strict=True):
        total -= math.log(math.exp(row[right]) / sum(map(math.exp, row)))
    return total / len(histories)


@pytest.mark.parametrize("items_per_step", [0, 1000])
def test_finetuning_is_a_softmax_over_all_sentences(sentences, histories, items_per_step):
    model = tiny_jepa(sentences, items_per_step=items_per_step)
    model.item_vectors()
    loss = model.finetune_losses(histories, KEYS, STEP)["finetune"]
    assert loss.item() == pytest.approx(finetune_by_hand(model, sentences, histories), rel=1e-4)
    loss.backward()
    positions = model.encoder.embedding.item_positions.weight.grad
    assert (positions[2:].abs().sum() > 0) and torch.isfinite(positions).all()


def test_a_sample_of_the_items_estimates_the_softmax_over_all(sentences, histories):
    def loss(items, step):
        model = tiny_jepa(sentences, items_per_step=items)
        return model.finetune_losses(histories, KEYS, step)["finetune"].item()

    exact = loss(1000, STEP)
    estimates = torch.tensor([loss(20, derive(STEP, n)) for n in range(200)])
    assert estimates.std() > 0
    assert estimates.mean().item() == pytest.approx(exact, rel=0.02)


def test_candidates_hold_every_wanted_sentence_once():
    wanted = torch.tensor([7, 3, 3, 90])
    candidates, positive, log_weights = draw_candidates(wanted, range(100), 10, derive(1, 2))
    assert len(candidates) == len(set(candidates.tolist())) == 10
    assert torch.equal(candidates[positive], wanted)
    assert log_weights[positive].tolist() == [0, 0, 0, 0]
    assert log_weights.exp().sum().item() == pytest.approx(100, rel=1e-5)
    for size in (100, 5000):
        everything, positive, log_weights = draw_candidates(wanted, range(100), size, derive(1, 2))
        assert sorted(everything.tolist()) == list(range(100)) and not log_weights.any()
        assert torch.equal(everything[positive], wanted)
    offset, positive, _ = draw_candidates(wanted, range(3, 100), 5000, derive(1, 2))
    assert sorted(offset.tolist()) == list(range(3, 100))
    assert torch.equal(offset[positive], wanted)
    few, positive, _ = draw_candidates(wanted, range(100), 1, derive(1, 2))
    assert len(few) == 4 and torch.equal(few[positive], wanted)


def test_frozen_items_keep_their_vectors_while_the_sequence_side_learns(sentences, histories):
    model = tiny_jepa(sentences)
    model.begin_phase(10, items_frozen=True)
    before = model.item_vectors().clone()
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.5)
    model.finetune_losses(histories, KEYS, STEP)["finetune"].backward()
    optimizer.step()
    model.weights_moved()
    assert torch.equal(model.item_vectors(), before)
    model.begin_phase(10, items_frozen=False)
    assert not torch.equal(model.item_vectors(), before)


def test_other_weights_age_the_item_table(sentences):
    model, other = tiny_jepa(sentences), tiny_jepa(sentences)
    with torch.no_grad():
        other.encoder.embedding.tokens.weight.add_(1)
    stale = model.item_vectors().clone()
    model.load_state_dict(other.state_dict())
    assert not torch.equal(model.item_vectors(), stale)
    assert torch.equal(model.item_vectors(), other.item_vectors())


@pytest.mark.parametrize("mlm_reduction", ["pooled", "separate"])
def test_mapping_and_mlm_losses_equal_slow_loops_over_users(sentences, histories, mlm_reduction):
    """Each user alone: masked passes, FFN1 and FFN2, targets, and every masked token's label."""
    model = tiny_jepa(sentences, mlm_reduction=mlm_reduction)
    with torch.no_grad():  # tell the encoders apart, and D_n from zero
        for parameter in model.target_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.encoder.embedding.item_positions.weight.normal_()
    item_ids, lengths, next_items = histories.newest_first(), histories.lengths, histories.targets
    losses = model.pretrain_losses(histories, KEYS)

    def target(item):
        one = sentences.single(sentences.sentence_of_item[torch.tensor([item])])
        return model.target_encoder.module(one)[0]

    def masked(batch, rate, key, purpose):
        ids = model.masking.ordinary_ids
        return mask_tokens(batch, rate, derive(key, purpose), sentences.special.mask, ids)

    history_terms, next_terms, mlm_terms = [], [], ([], [])
    start = 0
    for user, length in enumerate(lengths.tolist()):
        items, key = item_ids[start : start + length], KEYS[user : user + 1]
        start += length
        clean = sentences.histories(items, torch.tensor([length]), 256)
        next_clean = sentences.single(sentences.sentence_of_item[next_items[user : user + 1]])
        seen, chosen = masked(clean, 0.15, key, Draw.HISTORY_MASK)
        hidden_next, next_chosen = masked(next_clean, 0.5, key, Draw.NEXT_ITEM_MASK)
        hidden, next_hidden = model.encoder(seen), model.encoder(hidden_next)
        place, was = draw_masked_item(clean, chosen, derive(key, Draw.MASKED_ITEM), "uniform")
        place = int(place)
        d_n = model.encoder.embedding.item_positions.weight[place]
        stand_in = d_n if was else model.predictor.unmasked
        guess = model.predictor.history(torch.cat([hidden[0], stand_in]))
        history_terms.append((guess - target(items[place - 1].item())).square().sum())
        guess = model.predictor.next_item(torch.cat([hidden[0], next_hidden[0]]))
        next_terms.append((guess - target(next_items[user].item())).square().sum())
        for terms, states, picked, batch in (
            (mlm_terms[0], hidden, chosen, clean),
            (mlm_terms[1], next_hidden, next_chosen, next_clean),
        ):
            for token in picked.nonzero()[:, 0].tolist():
                asked = model.mlm_head.asked(states[token : token + 1])
                logits = asked @ model.encoder.embedding.tokens.weight.T + model.mlm_head.bias
                terms.append(-logits.log_softmax(1)[0, batch.input_ids[token]])
    mapping = torch.stack(history_terms).mean() + torch.stack(next_terms).mean()
    assert losses["mapping"].item() == pytest.approx(mapping.item(), rel=1e-4)
    of_history, of_next = map(torch.stack, mlm_terms)
    pooled = torch.cat([of_history, of_next]).mean()
    mlm = pooled if mlm_reduction == "pooled" else of_history.mean() + of_next.mean()
    assert losses["mlm"].item() == pytest.approx(mlm.item(), rel=1e-4)


def test_bf16_autocast_moves_the_losses_by_less_than_two_percent(sentences, histories):
    exact = tiny_jepa(sentences).pretrain_losses(histories, KEYS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tiny_jepa(sentences).pretrain_losses(histories, KEYS)
    for name, loss in exact.items():
        assert rounded[name].item() == pytest.approx(loss.item(), rel=0.02)


# --- ranking (4.1)


def test_tied_ranks_are_mean_ranks():
    scores = torch.tensor([[-9.0, 1.0, 1.0, 1.0, 0.0], [-9.0, 0.0, 3.0, 2.0, 2.0]])
    assert target_ranks(scores, torch.tensor([2, 3])).tolist() == [2.0, 2.5]


def test_items_of_one_sentence_tie_exactly(histories):
    text = pd.DataFrame({"title": ["", *[f"thing {i % 30}" for i in range(1, ITEMS)]]})
    twins = ItemSentences.build(text, train_wordpiece(text["title"], 200))
    scores = tiny_jepa(twins).eval().cosines(histories)
    assert torch.equal(scores[:, 1:30], scores[:, 31:60])


# --- random numbers


def test_keyed_numbers_are_uniform_and_independent_of_neighbours():
    keys = derive(2020, 3, torch.arange(50_000))
    values = uniform(keys)
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, bins=20, min=0, max=1)
    assert (counts - 2500).abs().max() < 5 * math.sqrt(2500)
    assert abs(torch.corrcoef(torch.stack([values[1:], values[:-1]]))[0, 1].item()) < 0.02
    drawn = below(keys, 7)
    assert drawn.min() == 0 and drawn.max() == 6
    assert torch.equal(uniform(keys[100:200]), values[100:200])
    assert not torch.equal(uniform(derive(2021, 3, torch.arange(50_000))), values)
