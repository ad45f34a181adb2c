"""Every loss against a slow reference written out here."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import recbole_jepa4rec.model.loss as loss_module
from recbole_jepa4rec.model.loss import (
    contrastive_loss,
    cosine_similarity,
    mapping_loss,
    mlm_loss,
    zero_of,
)
from recbole_jepa4rec.model.unisrec import sequence_sequence_loss


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


def slow_cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (
        math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    )


def slow_contrastive(sequences, items, positive, temperature):
    total = 0.0
    for row, right in zip(sequences.tolist(), positive.tolist(), strict=True):
        powers = [math.exp(slow_cosine(row, item) / temperature) for item in items.tolist()]
        total -= math.log(powers[right] / sum(powers))
    return total / len(sequences)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_contrastive_equals_the_formula(rng, temperature):
    sequences, items = torch.randn(5, 8, generator=rng), torch.randn(4, 8, generator=rng)
    positive = torch.tensor([0, 3, 3, 1, 2])
    expected = slow_contrastive(sequences, items, positive, temperature)
    assert float(contrastive_loss(sequences, items, positive, temperature)) == pytest.approx(
        expected, rel=1e-4
    )


def test_contrastive_of_one_candidate_is_zero(rng):
    sequence, item = torch.randn(1, 8, generator=rng), torch.randn(1, 8, generator=rng)
    assert float(contrastive_loss(sequence, item, torch.tensor([0]), 0.05)) == pytest.approx(0)


def test_contrastive_of_identical_vectors_is_log_of_candidates():
    loss = contrastive_loss(torch.ones(3, 4), torch.ones(6, 4), torch.tensor([0, 1, 2]), 0.05)
    assert float(loss) == pytest.approx(math.log(6), rel=1e-5)


def test_contrastive_ignores_the_length_of_vectors(rng):
    sequences, items = torch.randn(3, 8, generator=rng), torch.randn(4, 8, generator=rng)
    positive = torch.tensor([0, 1, 2])
    torch.testing.assert_close(
        contrastive_loss(sequences, items, positive, 0.05),
        contrastive_loss(sequences * 7, items * 0.1, positive, 0.05),
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_contrastive_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        contrastive_loss(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), temperature)


def test_cosine_stays_in_float32_under_autocast(rng):
    a, b = torch.randn(3, 8, generator=rng), torch.randn(4, 8, generator=rng)
    with torch.autocast("cpu", torch.bfloat16):
        similarity = cosine_similarity(a, b)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, cosine_similarity(a, b))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_mapping_equals_the_formula(rng, reduction):
    predicted, target = torch.randn(3, 6, generator=rng), torch.randn(3, 6, generator=rng)
    rows = [
        sum((p - t) ** 2 for p, t in zip(a, b, strict=True))
        for a, b in zip(predicted.tolist(), target.tolist(), strict=True)
    ]
    expected = sum(rows) / 3 / (6 if reduction == "mean" else 1)
    assert float(mapping_loss(predicted, target, reduction)) == pytest.approx(expected, rel=1e-5)


def test_mapping_gives_no_gradient_to_the_target():
    predicted = torch.zeros(2, 3, requires_grad=True)
    target = torch.ones(2, 3, requires_grad=True)
    mapping_loss(predicted, target, "sum").backward()
    assert target.grad is None
    torch.testing.assert_close(predicted.grad, torch.full((2, 3), -1.0))


def test_mapping_of_equal_vectors_and_of_nothing_is_zero():
    assert float(mapping_loss(torch.ones(2, 3), torch.ones(2, 3), "sum")) == 0
    assert float(mapping_loss(torch.ones(0, 3), torch.ones(0, 3), "mean")) == 0


def test_mapping_refuses_other_shapes_and_reductions():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        mapping_loss(torch.ones(2, 3), torch.ones(3, 3), "sum")
    with pytest.raises(ValueError, match="'max'"):
        mapping_loss(torch.ones(2, 3), torch.ones(2, 3), "max")


def test_mlm_equals_the_formula(rng):
    asked, offered = torch.randn(4, 3, generator=rng), torch.randn(9, 3, generator=rng)
    labels, expected = torch.tensor([0, 8, 3, 3]), 0.0
    for row, label in zip((asked @ offered.T).tolist(), labels.tolist(), strict=True):
        expected -= math.log(math.exp(row[label]) / sum(map(math.exp, row)))
    assert float(mlm_loss(asked, offered, labels)) == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize("fused_items", [0, 1000])
def test_mlm_and_its_gradients_equal_torch_s(fused_items, monkeypatch):
    """With a bias, a few rows at a time, and where the vocabulary is too large for that."""
    monkeypatch.setattr("recbole_jepa4rec.model.loss.FUSED_ITEMS", fused_items)
    monkeypatch.setattr("recbole_jepa4rec.model.loss.FUSED_LOGITS", 300)
    torch.manual_seed(0)
    asked, offered, bias = (torch.randn(*shape) for shape in ((40, 8), (30, 8), (30,)))
    parts = [part.requires_grad_() for part in (asked, offered, bias)]
    labels = torch.randint(30, (40,))
    ours = mlm_loss(asked, offered, labels, bias)
    expected = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*parts), labels)
    torch.testing.assert_close(ours, expected)
    pairs = (torch.autograd.grad(3 * loss, parts) for loss in (ours, expected))
    torch.testing.assert_close(*pairs)


def test_mlm_without_a_masked_token_is_zero_and_differentiable():
    asked, offered = torch.zeros(0, 3, requires_grad=True), torch.ones(9, 3)
    loss = mlm_loss(asked, offered, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


def test_mlm_refuses_unequal_numbers():
    with pytest.raises(ValueError, match="2 masked tokens for 3 labels"):
        mlm_loss(torch.zeros(2, 5), torch.ones(9, 5), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 40, 10_000])
def test_chunks_change_neither_the_softmax_nor_its_gradients(rng, monkeypatch, chunk, weighted):
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 5 * chunk)
    sequences, items = torch.randn(5, 6, generator=rng), torch.randn(40, 6, generator=rng)
    log_weights = torch.rand(40, generator=rng) if weighted else None
    positive = torch.tensor([0, 39, 17, 17, 8])

    def plain(sequences, items):
        logits = cosine_similarity(sequences, items) / 0.05
        return F.cross_entropy(logits + (log_weights if weighted else 0), positive)

    def chunked(sequences, items):
        return contrastive_loss(sequences, items, positive, 0.05, log_weights)

    values, gradients = [], []
    for function in (plain, chunked):
        leaves = [x.clone().requires_grad_() for x in (sequences, items)]
        values.append(function(*leaves))
        (3 * values[-1]).backward()
        gradients += [leaf.grad for leaf in leaves]
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[2:], gradients[:2], atol=1e-6, rtol=1e-4)


def test_a_frozen_table_gets_no_gradient(rng):
    sequences = torch.randn(3, 4, generator=rng, requires_grad=True)
    items = torch.randn(9, 4, generator=rng)
    contrastive_loss(sequences, items, torch.tensor([1, 2, 3]), 0.05).backward()
    assert items.grad is None and sequences.grad.abs().sum() > 0


def test_a_softmax_over_many_candidates_holds_no_matrix_of_all_logits(rng, monkeypatch):
    """Nothing that is kept or made on the way is larger than a chunk or the inputs."""
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 8 * 100)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    sequences = torch.randn(8, 4, generator=rng, requires_grad=True)
    items = torch.randn(5000, 4, generator=rng, requires_grad=True)
    with Largest():
        contrastive_loss(sequences, items, torch.arange(8), 0.05).backward()
    assert largest == items.numel() < 8 * 5000


def test_losses_of_nothing_are_zero_and_hang_on_what_others_gave(rng):
    """A process without rows still has its part in the backward pass of the others' vectors."""
    sequences = torch.zeros(0, 4, requires_grad=True)
    items = torch.randn(5, 4, generator=rng, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    for loss in (
        contrastive_loss(sequences, items, none, 0.05),
        sequence_sequence_loss(sequences, items[:0], none, 0.05) + zero_of(items),
        mapping_loss(sequences, sequences.detach(), "sum") + zero_of(items),
    ):
        assert loss.item() == 0
        of_sequences, of_items = torch.autograd.grad(loss, (sequences, items))
        assert of_sequences.shape == (0, 4) and torch.equal(of_items, torch.zeros(5, 4))
