"""The sentence encoder adds four embeddings, keeps sequences apart and can stop at [CLS]."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.transformer import EncoderConfig, MLMHead
from recbole_jepa4rec.text.token_batch import TokenBatch

CONFIG = EncoderConfig(
    vocab_size=50,
    hidden_size=12,
    num_layers=2,
    num_heads=3,
    intermediate_size=20,
    max_token_positions=90,
    max_item_positions=11,
    attention_window=4,
)
LENGTHS = [1, 30, 2, 9, 8, 70, 31]


def changed(**changes: object) -> EncoderConfig:
    return EncoderConfig.of({**CONFIG.model_dump(), **changes})


def encoder(**changes: object) -> SentenceEncoder:
    torch.manual_seed(0)
    built = SentenceEncoder(changed(**changes)).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return built


def batch(lengths: list[int], shift: int = 0) -> TokenBatch:
    """Sequences whose tokens depend on their length only."""
    length = torch.tensor(lengths, dtype=torch.long)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)])
    positions = torch.arange(sum(lengths)) - offsets[:-1].repeat_interleave(length)
    return TokenBatch(
        input_ids=(positions * 7 + length.repeat_interleave(length) + shift) % 50,
        token_types=(positions > 0) + (positions % 3 == 2).long(),
        token_positions=positions,
        item_positions=(positions + 7) // 8,
        offsets=offsets,
        cls_index=offsets[:-1],
    )


def test_embedding_is_the_normalised_sum_of_four():
    built = encoder()
    tables, tokens = built.embedding, batch([6])
    total = (
        tables.tokens.weight[tokens.input_ids]
        + tables.token_positions.weight[tokens.token_positions]
        + tables.token_types.weight[tokens.token_types]
        + tables.item_positions.weight[tokens.item_positions]
    )
    mean, variance = total.mean(1, keepdim=True), total.var(1, correction=0, keepdim=True)
    expected = (total - mean) / variance.sqrt() * tables.norm.weight + tables.norm.bias
    torch.testing.assert_close(tables(tokens), expected)


@pytest.mark.parametrize("window", [None, 4])
def test_a_sequence_is_the_same_alone_and_in_a_batch(window):
    built = encoder(attention_window=window)
    hidden = built(batch(LENGTHS)).split(LENGTHS)
    for length, together in zip(LENGTHS, hidden, strict=True):
        torch.testing.assert_close(together, built(batch([length])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_chosen_tokens_and_cls_equal_all_tokens(window):
    built, tokens = encoder(attention_window=window), batch(LENGTHS)
    hidden = built(tokens)
    chosen = torch.tensor([3, 140, 0, 3])
    torch.testing.assert_close(built(tokens, chosen), hidden[chosen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(built.cls(tokens), hidden[tokens.cls_index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_gradients_at_cls_equal_those_through_all_tokens(window):
    built, tokens = encoder(attention_window=window), batch(LENGTHS)
    weight = torch.randn(len(LENGTHS), 12, generator=torch.Generator().manual_seed(0))

    def gradients(cls: Tensor) -> list[Tensor]:
        loss = (cls * weight).sum()
        return torch.autograd.grad(loss, built.parameters(), materialize_grads=True)

    fast, slow = gradients(built.cls(tokens)), gradients(built(tokens)[tokens.cls_index])
    for ours, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changed", ["input_ids", "token_types", "token_positions", "item_positions"]
)
def test_every_input_matters(changed):
    built, tokens = encoder(), batch([20])
    values = getattr(tokens, changed).clone()
    values[5] = (values[5] + 1) % 3
    assert not torch.allclose(built.cls(tokens), built.cls(tokens.replace(**{changed: values})))


def test_token_types_can_be_left_out():
    built, tokens = encoder(use_token_type=False), batch([20])
    assert "embedding.token_types.weight" not in built.state_dict()
    other = tokens.replace(token_types=torch.zeros_like(tokens.token_types))
    assert torch.equal(built(tokens), built(other))


def test_an_empty_batch_gives_no_vectors():
    built, tokens = encoder(), batch([])
    assert built(tokens).shape == built.cls(tokens).shape == (0, 12)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("token_positions", "token position 90 is beyond the encoder's 90 positions"),
        ("item_positions", "item position 90 is beyond the encoder's 11 positions"),
    ],
)
def test_positions_beyond_the_tables_are_refused(field, message):
    tokens = batch([5])
    values = getattr(tokens, field).clone()
    values[-1] = 90
    with pytest.raises(ValueError, match=message):
        encoder()(tokens.replace(**{field: values}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "hidden_size=12 is no multiple of num_heads=5"),
        ({"attention_window": 7}, "attention_window 7 must be null or an even whole number from 2"),
        ({"attention_window": 0}, "attention_window 0 must be null or an even whole number from 2"),
        ({"num_layers": 0}, "num_layers 0 must be a whole number from 1"),
        ({"activation": "swish"}, "activation is 'swish'; allowed: gelu, gelu_new, relu"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SentenceEncoder(changed(**changes))


@pytest.mark.parametrize("window", [None, 4])
def test_bf16_autocast_stays_close(window):
    built, tokens = encoder(attention_window=window), batch(LENGTHS)
    expected = built(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, cls = built(tokens), built.cls(tokens)
    assert (hidden - expected).norm() < 0.05 * expected.norm()
    assert (cls - expected[tokens.cls_index]).norm() < 0.05 * cls.norm()


def test_it_learns_masked_tokens():
    torch.manual_seed(0)
    built, head = SentenceEncoder(changed(dropout=0.0)), MLMHead(CONFIG)
    optimizer = torch.optim.AdamW([*built.parameters(), *head.parameters()], lr=1e-2)
    tokens = batch([9, 30, 12])
    wanted = tokens.cls_index + 4
    masked = tokens.input_ids.clone()
    masked[wanted] = 49
    losses = []
    for _ in range(25):
        hidden = built(tokens.replace(input_ids=masked), wanted)
        logits = head.asked(hidden) @ built.embedding.tokens.weight.T + head.bias
        loss = torch.nn.functional.cross_entropy(logits, tokens.input_ids[wanted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
