"""SIGReg, whole items hidden, and what shows a collapse."""

from __future__ import annotations

import math
import re

import pytest
import torch

from recbole_jepa4rec.base.keyed_random import derive, normal
from recbole_jepa4rec.config.sentence_settings import JEPA4RecSettings
from recbole_jepa4rec.model.sigreg import draw_directions, quadrature, sigreg
from recbole_jepa4rec.text.masking import hide_items, items_of_tokens
from recbole_jepa4rec.training.collapse import spread
from tests.tiny_jepa import KEYS, eight_users, tiny_jepa, tiny_sentences


@pytest.fixture(scope="module")
def sentences():
    return tiny_sentences()


def slow_sigreg(vectors, directions):
    """The formula, a direction and a knot at a time."""
    total = 0.0
    step = 3 / 16
    for direction in directions.T:
        numbers = vectors @ direction
        for k in range(17):
            t = k * step
            weight = (step if k in (0, 16) else 2 * step) * math.exp(-t * t / 2)
            real = (t * numbers).cos().mean() - math.exp(-t * t / 2)
            total = total + len(vectors) * weight * (real**2 + (t * numbers).sin().mean() ** 2)
    return total / directions.shape[1]


def test_it_equals_a_slow_loop_with_its_gradient(monkeypatch):
    monkeypatch.setattr("recbole_jepa4rec.model.sigreg.ANGLES_AT_ONCE", 3000)  # several chunks
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(3)) * 2 + 0.5
    directions = draw_directions(7, 6, 11)
    fast, slow = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    ours, theirs = sigreg(fast, directions), slow_sigreg(slow, directions)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    (3 * ours).backward()
    (3 * theirs).backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-4, atol=1e-6)


def test_a_normal_sample_has_the_same_small_value_whatever_its_size():
    generator, directions = torch.Generator().manual_seed(5), draw_directions(1, 16, 64)
    knots, weights = quadrature()
    expected = float(weights @ (1 - (-knots.square()).exp()))  # N times the variance of a mean
    for size in (500, 20_000):
        value = sigreg(torch.randn(size, 16, generator=generator), directions)
        assert float(value) == pytest.approx(expected, rel=0.5)


def test_collapsed_and_narrow_vectors_have_a_large_value():
    generator, directions = torch.Generator().manual_seed(5), draw_directions(1, 16, 64)
    point = torch.randn(1, 16, generator=generator).repeat(1000, 1)
    line = torch.randn(1000, 1, generator=generator) * torch.ones(16)
    assert float(sigreg(point, directions)) > 100
    assert float(sigreg(line, directions)) > 100
    assert float(sigreg(torch.zeros(0, 16), directions)) == 0


def test_directions_follow_from_the_key_alone():
    once, again, other = (draw_directions(key, 8, 32) for key in (derive(3, 1), derive(3, 1), 4))
    assert torch.equal(once, again) and not torch.equal(once, other)
    torch.testing.assert_close(once.norm(dim=0), torch.ones(32))


def test_keyed_normal_numbers_are_normal():
    drawn = normal(derive(1, torch.arange(100_000)))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.015)
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=0.1)


class TestHiddenItems:
    @pytest.fixture(params=["random", "all_prefixes"])
    def batch(self, sentences, request):
        histories = eight_users()
        return sentences.histories(histories.newest_first(), histories.lengths, 256, request.param)

    @pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
    def test_items_are_hidden_whole(self, batch, rate):
        hidden_batch, hidden = hide_items(batch, rate, KEYS, 9999)
        assert torch.equal(hidden_batch.input_ids == 9999, hidden)
        assert torch.equal(hidden_batch.input_ids[~hidden], batch.input_ids[~hidden])
        assert not hidden[batch.token_types == 0].any()
        for history in range(batch.sequences):
            items = (batch.sequence_of_token == history) & (batch.token_types != 0)
            places = batch.item_positions[items]
            gone = {int(place) for place in places[hidden[items]]}
            for place in set(places.tolist()):
                assert bool(hidden[items][places == place].all()) == (place in gone)
            several = len(set(places.tolist())) > 1
            most = len(set(places.tolist())) - 1
            assert len(gone) == (0 if rate == 0 else most if rate == 1 else len(gone))
            assert (1 if several and rate else 0) <= len(gone) <= most

    def test_their_places_are_found(self, batch):
        _, hidden = hide_items(batch, 0.5, KEYS, 99)
        row, place = items_of_tokens(batch, hidden)
        found = {*zip(row.tolist(), place.tolist(), strict=True)}
        tokens = zip(
            batch.sequence_of_token[hidden].tolist(),
            batch.item_positions[hidden].tolist(),
            strict=True,
        )
        assert found == {*tokens} and len(found) == len(row)


class TestWithoutATargetEncoder:
    def test_targets_get_a_gradient_and_the_average_none(self, sentences):
        model = tiny_jepa(sentences, collapse_prevention="sigreg", mlm_weight=0.0)
        losses = model.pretrain_losses(eight_users(), KEYS, derive(1, 2))
        assert set(losses) == {"sequence_item", "mapping", "sigreg"}
        losses["sigreg"].backward(retain_graph=True)
        assert model.encoder.embedding.tokens.weight.grad.abs().sum() > 0
        assert model.predictor.history[0].weight.grad is None
        assert all(p.grad is None for p in model.target_encoder.parameters())

    def test_mapping_compares_with_the_encoder_itself(self, sentences):
        histories = eight_users()
        average = tiny_jepa(sentences).pretrain_losses(histories, KEYS)
        itself = tiny_jepa(sentences, collapse_prevention=None).pretrain_losses(histories, KEYS)
        torch.testing.assert_close(itself["mapping"], average["mapping"])  # equal at the start
        assert "sigreg" not in itself

    def test_every_hidden_item_is_guessed(self, sentences):
        """One item hidden or two: L_map's first half is the mean over all of them."""
        model = tiny_jepa(sentences, mask_unit="item", history_mask_ratio=1.0)
        histories = eight_users()
        guesses = []
        predict = model.predictor.predict_history
        model.predictor.predict_history = lambda *parts: guesses.append(parts) or predict(*parts)
        losses = model.pretrain_losses(histories, KEYS)
        assert len(guesses[0][0]) == int((histories.lengths - 1).sum()) and guesses[0][2].all()
        assert losses["mapping"].isfinite()

    def test_nothing_is_contrasted_without_its_weight(self, sentences):
        model = tiny_jepa(sentences, contrastive_weight=0.0)
        assert set(model.pretrain_losses(eight_users(), KEYS)) == {"mlm", "mapping"}
        assert model.objective.loss_weights == {"mlm": 0.1, "mapping": 0.1}

    def test_sigreg_shares_the_weight_of_the_mapping(self, sentences):
        model = tiny_jepa(sentences, collapse_prevention="sigreg", sigreg_weight=0.2)
        weights = model.objective.loss_weights
        assert weights["mapping"] == pytest.approx(0.08) and weights["sigreg"] == pytest.approx(
            0.02
        )


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"collapse_prevention": "sigreg", "ema_momentum": 0.99},
            "ema_momentum is 0.99; allowed with collapse_prevention='sigreg': None",
        ),
        (
            {"collapse_prevention": None, "item_encoder": "target", "items_per_step": 0},
            "item_encoder is 'target'; allowed with collapse_prevention=None: 'context'",
        ),
        (
            {"sigreg_directions": 12},
            "sigreg_directions is 12; allowed with collapse_prevention='ema': 256",
        ),
        (
            {"collapse_prevention": "sigreg", "mapping_weight": 0.0},
            "mapping_weight is 0; allowed with collapse_prevention='sigreg': > 0",
        ),
        (
            {"contrastive_weight": 0.0, "mlm_weight": 0.0, "mapping_weight": 0.0},
            "contrastive_weight, mlm_weight and mapping_weight are 0; allowed with "
            "pretrain_epochs: one above 0",
        ),
        (
            {"collapse_prevention": "sigreg", "sigreg_weight": 1.0},
            "sigreg_weight 1.0 must be a number above 0 to below 1",
        ),
        (
            {"collapse_prevention": "sigreg", "sigreg_directions": 0},
            "sigreg_directions 0 must be a whole number from 1",
        ),
    ],
)
def test_what_has_no_effect_or_no_sense_is_refused(given, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        JEPA4RecSettings.of(given)


def test_a_sample_says_how_uniform_and_how_normal_it_is():
    generator = torch.Generator().manual_seed(1)
    healthy = spread(torch.randn(3000, 16, generator=generator))
    point = spread(torch.ones(3000, 16))
    assert healthy["sigreg"] < 0.001 < 0.1 < point["sigreg"]
    assert healthy["uniformity"] < -3 and point["uniformity"] == pytest.approx(0, abs=1e-5)
