"""Attention over packed sequences equals the definition, written slowly; layouts waste little."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_jepa4rec.model.attention import SelfAttention, attend
from recbole_jepa4rec.model.attention_layout import MIN_FILL, AttentionLayout


def module(window: int | None, hidden_size: int = 12, num_heads: int = 3) -> SelfAttention:
    """Attention with weights large enough that errors show."""
    torch.manual_seed(0)
    attention = SelfAttention(hidden_size, num_heads, window)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention.eval()


def attend_slowly(qkv: Tensor, may_see: Tensor, num_heads: int) -> Tensor:
    """``[L, 3 D]`` and ``[L, L]`` to ``[L, D]``, one head after the other."""
    query, key, value = qkv.chunk(3, -1)
    heads = zip(*(x.chunk(num_heads, -1) for x in (query, key, value)), strict=True)
    scores = [(q @ k.T / q.shape[1] ** 0.5, v) for q, k, v in heads]
    return torch.cat([torch.where(may_see, s, -torch.inf).softmax(-1) @ v for s, v in scores], -1)


def slow_attention(attention: SelfAttention, hidden: Tensor, window: int | None) -> Tensor:
    """One sequence ``[L, D]`` by the definition."""
    position = torch.arange(len(hidden))
    distance = (position[:, None] - position).abs()
    may_see = (distance <= (window or len(hidden) * 2) // 2) | (position == 0)
    attended = attend_slowly(attention.qkv(hidden), may_see, attention.num_heads)
    if window:
        of_cls = attend_slowly(attention.global_qkv(hidden), distance >= 0, attention.num_heads)
        attended = torch.cat([of_cls[:1], attended[1:]])
    return attention.output(attended)


def pack(lengths: list[int], hidden_size: int = 12) -> Tensor:
    """Random packed tokens, ``[T, D]``."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(sum(lengths), hidden_size, generator=generator)


@pytest.mark.parametrize("window", [None, 2, 8])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6))
@settings(max_examples=15)
def test_equals_the_definition(window, lengths):
    attention, hidden = module(window), pack(lengths)
    attended = attention(hidden, AttentionLayout.of(torch.tensor(lengths), window))
    slow = [slow_attention(attention, part, window) for part in hidden.split(lengths)]
    torch.testing.assert_close(attended, torch.cat(slow), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_some_tokens_only(window):
    attention, lengths = module(window), [1, 30, 2, 9, 8, 13, 40]
    hidden, layout = pack(lengths), AttentionLayout.of(torch.tensor(lengths), window)
    expected = attention(hidden, layout)
    tokens = torch.tensor([50, 3, 0, 1, 3])
    torch.testing.assert_close(attention(hidden, layout, tokens), expected[tokens])
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    torch.testing.assert_close(
        attention.at_cls(hidden, layout, layout.queries_at(starts)), expected[starts]
    )
    some = starts[[1, 3]]
    torch.testing.assert_close(
        attention.at_cls(hidden, layout, layout.queries_at(some)), expected[some]
    )
    if window is None:  # any token may ask, several in a sequence too
        tokens = tokens.sort().values
        attended = attention.at_cls(hidden, layout, layout.queries_at(tokens))
        torch.testing.assert_close(attended, expected[tokens])


@pytest.mark.parametrize("window", [None, 4])
def test_gradients_equal_those_of_the_definition(window):
    lengths, gradients = [1, 30, 2, 9, 8, 13, 40], []
    attention, hidden = module(window), pack(lengths).requires_grad_()
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    layout = AttentionLayout.of(torch.tensor(lengths), window)
    slow = [slow_attention(attention, part, window) for part in hidden.split(lengths)]
    for attended in (attention(hidden, layout), torch.cat(slow)):
        loss = (attended * weight).sum()
        gradients.append(torch.autograd.grad(loss, [hidden, *attention.parameters()]))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("window", [None, 4, 64])
def test_sequences_do_not_see_each_other(window):
    attention, lengths = module(window), [7, 300, 25, 26]
    layout = AttentionLayout.of(torch.tensor(lengths), window)
    hidden = pack(lengths)
    changed = hidden.clone()
    changed[7:307] += 1
    before, after = attention(hidden, layout), attention(changed, layout)
    assert torch.equal(before[:7], after[:7])
    assert torch.equal(before[307:], after[307:])
    assert not torch.equal(before[7:307], after[7:307])


def test_window_limits_what_a_token_sees():
    attention, hidden = module(8), pack([200])
    layout = AttentionLayout.of(torch.tensor([200]), 8)
    changed = hidden.clone()
    changed[100] += 1
    moved = (attention(hidden, layout) != attention(changed, layout)).any(1).nonzero().flatten()
    assert moved.tolist() == [0, *range(96, 105)]


@pytest.mark.parametrize("window", [None, 64])
def test_layout_places_every_token_once_and_pads_little(window):
    lengths = torch.randint(1, 600, (200,), generator=torch.Generator().manual_seed(0))
    layout = AttentionLayout.of(lengths, window)
    tokens = int(lengths.sum())
    slots = torch.cat([group.seen.flatten() for group in layout.groups])
    assert layout.token_of_slot[slots].sort().values.equal(torch.arange(tokens))
    assert len(layout.slot_of_token.unique()) == tokens
    assert len(slots) <= tokens / MIN_FILL


@pytest.mark.parametrize("window", [None, 4])
def test_dropout_keeps_the_mean(window):
    attention, draws = module(window), 400
    hidden = pack([9, 31]).repeat(draws, 1)
    layout = AttentionLayout.of(torch.tensor([9, 31] * draws), window)
    expected = attention(hidden, layout)
    attention.dropout = 0.2
    assert torch.equal(attention(hidden, layout), expected)
    attended = attention.train()(hidden, layout).view(draws, 40, -1)
    assert attended.std(0).min() > 0
    torch.testing.assert_close(attended.mean(0), expected[:40], atol=0.4, rtol=0)


@pytest.mark.parametrize("window", [None, 4])
def test_autocast_stays_close(window):
    attention, lengths = module(window), [9, 31, 100]
    hidden, layout = pack(lengths), AttentionLayout.of(torch.tensor(lengths), window)
    expected = attention(hidden, layout)
    with torch.autocast("cpu", torch.bfloat16):
        attended = attention(hidden, layout)
    assert attended.dtype == torch.bfloat16
    assert (attended - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_equals_the_fused_kernel(masked):
    """On a CPU it is made of plain products; value and gradients agree to bfloat16's rounding."""
    generator = torch.Generator().manual_seed(3)
    tensors = torch.randn(3, 2, 3, 20, 8, generator=generator).bfloat16()
    mask = torch.ones(20, 20, dtype=torch.bool).tril() if masked else None
    gradients = []
    for function in (attend, F.scaled_dot_product_attention):
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        attended = function(*leaves, mask, 0.0)
        attended.float().square().sum().backward()
        gradients.append([attended, *(leaf.grad for leaf in leaves)])
    for ours, fused in zip(*gradients, strict=True):
        assert (ours - fused).float().norm() < 0.02 * fused.float().norm()
