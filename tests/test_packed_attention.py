"""One attention call a layer gives what the buckets give, forward and backward, of few shapes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention

from recbole_jepa4rec.config.sentence_settings import JEPA4RecSettings
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.packed_attention import (
    BLOCK,
    PackedMask,
    _kernel,
    attend_packed,
    padded_size,
    refuse_where_not_possible,
)
from recbole_jepa4rec.model.transformer import EncoderConfig, EncoderLayer
from recbole_jepa4rec.text.token_batch import TokenBatch

CONFIG = EncoderConfig(
    vocab_size=50,
    hidden_size=32,
    num_layers=3,
    num_heads=2,
    intermediate_size=40,
    max_token_positions=300,
    max_item_positions=60,
    attention_window=None,
)
READINGS = {
    "dense": {},
    "window": {"attention_window": 8},
    "item-causal": {"training_targets": "all_prefixes"},
    "items alone": {"training_targets": "all_prefixes", "item_local_layers": 2, "pooling": "mean"},
}
COMPILED = {"compile_layers": True}
LENGTHS = [1, 30, 2, 9, 260, 8, 70, 31]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


def encoders(reading: str) -> list[SentenceEncoder]:
    """The same weights, with buckets and with one call."""
    made = []
    for attention in ("buckets", "flex"):
        torch.manual_seed(0)
        config = {**CONFIG.model_dump(), **READINGS[reading], "attention": attention}
        made.append(SentenceEncoder(EncoderConfig.of(config)).eval())
        for parameter in made[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch(reading: str) -> TokenBatch:
    """Sequences of items of five tokens, and of what is left."""
    lengths = torch.tensor(LENGTHS)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    positions = torch.arange(sum(LENGTHS)) - offsets[:-1].repeat_interleave(lengths)
    ids = (positions * 7 + lengths.repeat_interleave(lengths)) % 50
    if "training_targets" not in READINGS[reading]:
        items = (positions + 4) // 5
        return TokenBatch(ids, (positions > 0).long(), positions, items, offsets, offsets[:-1])
    last = positions == (lengths - 1).repeat_interleave(lengths)
    cls = ((positions % 5 == 4) | last).nonzero()[:, 0]
    nothing_stored = torch.full_like(cls, -1)
    return TokenBatch(
        *(ids, (positions % 5 < 4).long(), positions % 5, positions // 5 + 1, offsets, cls),
        "all_prefixes",
        nothing_stored,
    )


def outputs(encoder: SentenceEncoder, tokens: TokenBatch) -> Iterator[Tensor]:
    """Of every token, of some, and of [CLS] alone."""
    yield encoder(tokens)
    yield encoder(tokens, torch.tensor([5, 200, 0, 5, 33]))
    yield encoder.cls(tokens)
    yield encoder.whole(tokens)


@pytest.mark.parametrize("reading", READINGS)
def test_one_call_equals_buckets(reading):
    buckets, flex = encoders(reading)
    with torch.no_grad():
        pairs = zip(*(outputs(each, batch(reading)) for each in (buckets, flex)), strict=True)
        for expected, found in pairs:
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def gradients(encoder: SentenceEncoder, reading: str) -> tuple[Tensor, ...]:
    """Of every parameter, by a loss of all outputs."""
    draws = torch.Generator().manual_seed(1)
    made = outputs(encoder, batch(reading))
    loss = sum((out.cpu() * torch.randn(out.shape, generator=draws)).sum() for out in made)
    return torch.autograd.grad(loss, encoder.parameters(), materialize_grads=True)


@pytest.fixture
def backward(monkeypatch):
    """Torch refuses the backward pass on a CPU, for which it has no kernel but the definition."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


@pytest.mark.parametrize("reading", READINGS)
def test_gradients_equal_those_of_buckets(reading, backward):
    pairs = zip(*(gradients(each, reading) for each in encoders(reading)), strict=True)
    for expected, found in pairs:
        torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["window", "item-causal"])
def test_a_layer_is_one_graph_and_gives_the_same(reading, backward, monkeypatch):
    """The compiler sees a whole layer, without a break; the operators are run one by one here."""
    layer = torch.compile(EncoderLayer.forward, backend="aot_eager", dynamic=True, fullgraph=True)
    monkeypatch.setattr("recbole_jepa4rec.model.encoder._compiled_layer", lambda: layer)
    buckets, flex = encoders(reading)
    flex.config = flex.config.model_copy(update=COMPILED)
    expected, found = (gradients(each, reading) for each in (buckets, flex))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4 * one.abs().max(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["window", "item-causal"])
def test_compiled_for_a_cpu_it_equals_buckets(reading, monkeypatch):
    """The mask goes through the compiler, which a GPU needs too."""
    compiled = torch.compile(flex_attention.flex_attention, dynamic=False)
    monkeypatch.setattr("recbole_jepa4rec.model.packed_attention._kernel", lambda _: compiled)
    test_one_call_equals_buckets(reading)


def test_compiled_code_serves_every_size(monkeypatch):
    """Of which torch keeps eight; a run needs as many without gradient as with it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = _kernel.__wrapped__("cuda")
    monkeypatch.setattr("recbole_jepa4rec.model.packed_attention._kernel", lambda _: compiled)
    torch.compiler.reset()
    counters.clear()
    with torch.no_grad():
        for tokens in (900, 1500, 2300, 4000):
            lengths = torch.tensor([tokens - 100, 100])
            for asking in (None, torch.arange(0, tokens, 2)):
                mask = PackedMask.of(lengths, None, torch.arange(tokens) % 50 + 1, asking)
                heads = (
                    torch.randn(size, 2, 16) for size in (len(mask.queries[0]), *2 * [mask.size])
                )
                attend_packed(*heads, mask)
    assert counters["stats"]["unique_graphs"] <= 2
    torch.compiler.reset()


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    window=st.sampled_from([None, 2, 64]),
    item_tokens=st.sampled_from([None, 7]),
    share=st.sampled_from([None, 0.1]),
)
@settings(max_examples=40, deadline=None)
def test_no_block_that_is_left_out_holds_a_pair(lengths, window, item_tokens, share):
    sizes = torch.tensor(lengths)
    position = torch.cat([torch.arange(length) for length in lengths])
    items = None if item_tokens is None or window else position // item_tokens + 1
    tokens = None if share is None else torch.arange(0, len(position), round(1 / share))
    mask = PackedMask.of(sizes, window, items, tokens)
    block_mask = mask.block_mask
    queries, keys = (torch.arange(size) for size in block_mask.shape[2:])
    sees = block_mask.mask_mod(None, None, queries[:, None], keys)
    assert sees.any(1).all()
    shape = (-1, BLOCK, len(keys) // BLOCK, BLOCK)
    needed = sees.view(shape).any(dim=3).any(dim=1)
    assert (mask.blocks | ~needed).all()
    assert torch.equal(block_mask.to_dense()[0, 0].bool(), mask.blocks)


def test_blocks_grow_with_tokens_and_not_with_their_square():
    for window in (None, 64):
        counts = [
            int(PackedMask.of(torch.full((number,), 60), window).blocks.sum())
            for number in (100, 1000)
        ]
        assert counts[1] < 12 * counts[0]
    long = PackedMask.of(torch.tensor([8192]), 64).blocks
    assert long.sum() < 0.1 * long.numel()


def test_batches_are_padded_to_few_sizes():
    sizes = [padded_size(tokens) for tokens in range(1, 70_000)]
    pairs = [*enumerate(sizes, start=1)]
    assert all(tokens <= size and size % BLOCK == 0 for tokens, size in pairs)
    assert all(size <= 1.125 * tokens for tokens, size in pairs if tokens > 1024)
    assert len({*sizes[1024:]}) <= 50


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"attention_dropout": 0.1},
            "attention is 'flex'; allowed with attention_dropout=0.1: buckets",
        ),
        (
            {"num_heads": 4},
            "attention is 'flex'; allowed with hidden_size=32 and num_heads=4, heads of less than "
            "16 dimensions: buckets",
        ),
    ],
)
def test_what_flex_attention_cannot_do_is_refused(keys, message):
    with pytest.raises(ValueError, match="attention") as refused:
        EncoderConfig.of({**CONFIG.model_dump(), "attention": "flex", **keys})
    assert str(refused.value) == message


def test_where_it_cannot_be_compiled_it_is_refused(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    flex, compiled = (CONFIG.model_copy(update=u) for u in ({"attention": "flex"}, COMPILED))
    with pytest.raises(ValueError, match=r"^attention is 'flex', which trains on a GPU; allowed"):
        refuse_where_not_possible(flex, True, cpu)
    with pytest.raises(ValueError, match=r"^compile_layers is True, but attention is 'null' and "):
        refuse_where_not_possible(compiled, False, cpu)
    monkeypatch.setattr("recbole_jepa4rec.model.packed_attention.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^attention is 'null', which needs triton on a GPU; all"):
        refuse_where_not_possible(CONFIG, True, gpu)
    refuse_where_not_possible(CONFIG, False, gpu)


def test_by_default_a_gpu_has_one_call_and_a_cpu_has_buckets():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    narrow = CONFIG.model_copy(update={"num_heads": 4})
    drops = CONFIG.model_copy(update={"attention_dropout": 0.1})
    assert CONFIG.attends_at_once(gpu) and not CONFIG.attends_at_once(cpu)
    assert not narrow.attends_at_once(gpu) and not drops.attends_at_once(gpu)
    assert JEPA4RecSettings().attention is None
