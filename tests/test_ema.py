"""The target encoder's moving average."""

import copy
import math

import pytest
import torch
from torch import nn

from recbole_jepa4rec.model.moving_average import ExponentialMovingAverage


@pytest.fixture
def source():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))


def moved(source):
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    return source


def test_update_is_the_formula(source):
    average = ExponentialMovingAverage(source, 0.9, 0.9)
    before = {k: v.clone() for k, v in average.module.state_dict().items()}
    average.update(moved(source))
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            expected = 0.9 * before[name] + 0.1 * source.state_dict()[name]
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_limits_copy_and_stand_still(source, momentum):
    average = ExponentialMovingAverage(source, momentum, momentum)
    before = copy.deepcopy(source)
    average.update(moved(source))
    expected = source if momentum == 0 else before
    for mine, other in zip(average.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, other.detach())


def test_momentum_rises_on_a_half_cosine(source):
    average = ExponentialMovingAverage(source, 0.6, 1.0)
    average.begin(10)
    seen = []
    for _ in range(12):
        seen.append(average.current_momentum())
        average.update(source)
    expected = [0.6 + 0.4 * (1 - math.cos(math.pi * min(t / 10, 1))) / 2 for t in range(12)]
    assert seen == pytest.approx(expected)
    assert seen[0] == 0.6 and seen[-1] == 1.0


def test_no_gradient_and_always_eval(source):
    average = ExponentialMovingAverage(source, 0.9)
    average.train()
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_the_step_survives_saving(source):
    average = ExponentialMovingAverage(source, 0.5, 1.0)
    average.begin(4)
    for _ in range(3):
        average.update(source)
    again = ExponentialMovingAverage(source, 0.5, 1.0)
    again.steps = 4
    again.load_state_dict(average.state_dict())
    assert again.current_momentum() == average.current_momentum() > 0.5


def test_another_architecture_is_refused(source):
    with pytest.raises(ValueError, match="not in both"):
        ExponentialMovingAverage(source, 0.9).update(nn.Linear(4, 3))
