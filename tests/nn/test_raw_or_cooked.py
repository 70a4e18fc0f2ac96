import math

import pytest
import torch

from foveal.nn.isp import PATTERNS, mosaic
from foveal.nn.raw_or_cooked import RawOrCooked, half_colours, yeo_johnson


def by_hand(x, power):
    if x >= 0:
        return math.log(x + 1) if power == 0 else ((x + 1) ** power - 1) / power
    return -math.log(1 - x) if power == 2 else -((1 - x) ** (2 - power) - 1) / (2 - power)


@pytest.mark.parametrize("power", [-1.5, -1e-4, 0.0, 1e-4, 0.5, 1.0, 1.9999, 2.0, 2.5])
def test_it_is_the_definition_with_its_limits(power):
    x = torch.tensor([-5.0, -0.3, 0.0, 1e-6, 0.7, 9.0], dtype=torch.float64)
    wanted = torch.tensor([by_hand(value, power) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(yeo_johnson(x, torch.tensor(power, dtype=torch.float64)), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("power", [-1.5, -1e-5, 0.0, 1e-4, 0.5, 1.9995, 2.0, 2.5])
def test_gradients_are_right_at_and_beside_the_limits(power):
    x = torch.tensor([-4.0, -0.3, 0.2, 3.0], dtype=torch.float64, requires_grad=True)
    powers = torch.full((4,), power, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(yeo_johnson, (x, powers))


def test_power_one_changes_nothing():
    x = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(yeo_johnson(x, torch.tensor(1.0)), x)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_colours_of_half_the_size_average_the_greens(pattern):
    x = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    small = half_colours(mosaic(x, pattern), pattern)
    assert small.shape == (2, 3, 2, 3)
    cell = {letter: [] for letter in "RGB"}
    for place, letter in enumerate(pattern):
        cell[letter].append(x[1, "RGB".index(letter), 2 + place // 2, 4 + place % 2])
    torch.testing.assert_close(small[1, :, 1, 2], torch.stack([torch.stack(cell[c]).mean() for c in "RGB"]))


def test_linear_passes_colours_on_and_power_one_scales_them():
    raw = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    linear = RawOrCooked("linear")(raw)
    assert torch.equal(linear, half_colours(raw))
    layer = RawOrCooked()
    layer.power.data.fill_(1.0)
    torch.testing.assert_close(layer(raw), 4095 * linear)


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        ("yeo_johnson", 2 * (math.sqrt(1 + 4095 * 0.25) - 1)),
        ("gamma", 0.25 ** (1 / 2.2)),
        ("error", 0.5 * (1 + math.erf(0.15 / (0.2 * math.sqrt(2))))),
    ],
)
def test_every_curve_starts_where_it_says_and_learns(curve, wanted):
    layer = RawOrCooked(curve)
    out = layer(torch.full((1, 1, 2, 2), 0.25))
    torch.testing.assert_close(out, torch.full((1, 3, 1, 1), wanted))
    out.sum().backward()
    assert all(parameter.grad.abs() > 0 for parameter in layer.parameters())
    assert curve in repr(layer)


def test_an_unknown_curve_raises():
    with pytest.raises(ValueError, match="curve must be one of yeo_johnson, gamma, error, linear, got 'log'"):
        RawOrCooked("log")
