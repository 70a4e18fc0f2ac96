import math
from itertools import islice

import pytest
import torch

from foveal.evidence.generate.sliced_mmd_flow import normal, slicing_error
from foveal.generate import sliced_mmd_flow
from foveal.generate.sliced_mmd_flow import (
    directions,
    energy_distance,
    flow,
    gradient,
    gradient_1d,
    gradient_1d_reference,
    mmd_1d,
    mmd_1d_reference,
    sliced_gradient,
    slicing_factor,
)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 6), (5, 1), (63, 100)])
def test_sorting_is_all_pairs(sizes):
    x, y = (normal(2, size, seed=seed) for seed, size in enumerate(sizes))
    x.requires_grad_()
    torch.testing.assert_close(mmd_1d(x, y), mmd_1d_reference(x, y))
    ours, theirs = (torch.autograd.grad(f(x, y).sum(), x)[0] for f in (mmd_1d, mmd_1d_reference))
    torch.testing.assert_close(ours, theirs)
    for function in (gradient_1d, gradient_1d_reference):
        torch.testing.assert_close(function(x.detach(), y), theirs)


def test_equal_numbers_are_on_neither_side(monkeypatch):
    monkeypatch.setattr(sliced_mmd_flow, "ROWS", 3)
    x, y = (normal(2, size, seed=0).round() for size in (40, 31))
    torch.testing.assert_close(gradient_1d(x, y), gradient_1d_reference(x, y))
    assert torch.equal(gradient_1d(x[:, :1].expand(-1, 5), x[:, :1]), torch.zeros(2, 5, dtype=torch.float64))


def test_two_particles_by_hand():
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 3.0, 4.0, 5.0]])
    # 2 has one sample below and three above it, and a particle below it
    torch.testing.assert_close(gradient_1d(x, y), torch.tensor([[-2 / 8 - 1 / 4, -4 / 8 + 1 / 4]]))


def test_samples_of_themselves_are_at_rest():
    x = normal(30, 4, seed=0)
    assert energy_distance(x, x) == pytest.approx(0)
    assert sliced_gradient(x, x, directions(7, 4).double()).abs().max() < 1e-12
    assert gradient(x, x).abs().max() < 1e-12


@pytest.mark.parametrize(("dim", "factor"), [(1, 1), (2, math.pi / 2), (3, 2), (4, 3 * math.pi / 4), (784, 35.08)])
def test_the_factor_is_length_over_mean_projection(dim, factor):
    assert slicing_factor(dim) == pytest.approx(factor, rel=1e-3)


def test_on_a_line_one_direction_is_exact():
    x, y = normal(9, 1, seed=0), normal(7, 1, seed=1)
    torch.testing.assert_close(sliced_gradient(x, y, torch.ones(1, 1).double()), gradient(x, y))


def test_the_gradient_is_that_of_half_the_energy_distance(monkeypatch):
    monkeypatch.setattr(sliced_mmd_flow, "ROWS", 4)
    x, y = normal(7, 3, seed=0).requires_grad_(), normal(5, 3, seed=1)

    def mean(a, b):
        gap = (a[:, None] - b).square().sum(-1)
        return torch.where(gap > 0, gap.clamp(min=1e-30).sqrt(), 0).mean()

    half = mean(x, y) - mean(x, x) / 2 - mean(y, y) / 2
    assert energy_distance(x.detach(), y) == pytest.approx(2 * half.item())
    torch.testing.assert_close(gradient(x.detach(), y), torch.autograd.grad(half, x)[0])


def test_more_directions_miss_less():
    assert slicing_error(400) < slicing_error(25) / 3


def test_directions_are_unit_vectors_of_a_seed():
    along, again = (directions(500, 3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(along, again)
    torch.testing.assert_close(along.norm(dim=-1), torch.ones(500))
    assert along.mean(0).abs().max() < 0.1


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_particles_flow_to_the_samples(momentum):
    y = 3 + normal(40, 2, seed=1)
    start = normal(40, 2, seed=0)
    first, second = (
        list(islice(flow(start, y, slices=20, step_size=0.2, momentum=momentum, seed=2), 40)) for _ in range(2)
    )
    assert torch.equal(first[-1], second[-1])
    assert energy_distance(first[-1], y) < energy_distance(start, y) / 20


def test_a_step_with_momentum_by_hand():
    x, y = normal(6, 1, seed=0), 4 + normal(6, 1, seed=1)
    one, two = islice(flow(x, y, slices=1, step_size=0.5, momentum=0.5), 2)
    torch.testing.assert_close(one, x - 3 * gradient(x, y))
    torch.testing.assert_close(two, one - 3 * (gradient(one, y) + 0.5 * gradient(x, y)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: slicing_factor(0), "dim must be at least 1, got 0"),
        (
            lambda: sliced_gradient(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(5, 3)),
            "must have one dimension, got 3, 4 and 3; flatten pictures",
        ),
        (lambda: next(flow(torch.zeros(2, 3), torch.zeros(2, 3), momentum=1)), r"momentum must be in \[0, 1\)"),
        (lambda: next(flow(torch.zeros(2, 3), torch.zeros(2, 3), slices=0)), "slices at least 1, got 0.0 and 0"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
