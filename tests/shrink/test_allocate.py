"""Allocation under a budget, and the table of harms."""

from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from foveal.shrink.allocate import allocate, sensitivity


def cheapest(harm: np.ndarray, cost: np.ndarray, budget: int) -> float:
    picks = product(range(harm.shape[1]), repeat=len(harm))
    rows = np.arange(len(harm))
    return min(harm[rows, p].sum() for p in map(list, picks) if cost[rows, p].sum() <= budget)


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_trying_everything_finds(seed: int):
    draw = np.random.default_rng(seed)
    harm, cost = draw.random((4, 5)), draw.integers(1, 9, (4, 5))
    budget = int(cost.min(1).sum()) + 6
    chosen = allocate(harm, cost, budget, resolution=budget)
    rows = np.arange(4)
    assert cost[rows, chosen].sum() <= budget
    assert harm[rows, chosen].sum() == pytest.approx(cheapest(harm, cost, budget))


def test_budgets_hold_with_real_costs_and_forbidden_choices_stay_out():
    draw = np.random.default_rng(9)
    harm, cost = draw.random((6, 4)), draw.random((6, 4))
    harm[2, cost[2].argmin()] = np.inf
    chosen = allocate(harm, cost, 2.9)
    assert cost[np.arange(6), chosen].sum() <= 2.9
    assert np.isfinite(harm[np.arange(6), chosen]).all()


def test_what_it_refuses():
    with pytest.raises(ValueError, match="the cheapest choices cost 4 together, above the budget of 3"):
        allocate(np.ones((2, 1)), np.full((2, 1), 2.0), 3)
    with pytest.raises(ValueError, match=r"two tables of one shape, got \(2, 1\) and \(1, 2\)"):
        allocate(np.ones((2, 1)), np.ones((1, 2)), 3)


def test_harms_are_those_of_one_changed_layer_alone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).eval()
    x = torch.randn(4, 3)

    @contextmanager
    def scaled(layer: nn.Module, factor: float):
        kept = layer.weight.clone()
        layer.weight.mul_(factor)
        yield
        layer.weight.copy_(kept)

    table = sensitivity(net, ["0", "1"], [1.0, 0.5], scaled, x)
    assert (table[:, 0] == 0).all()
    with torch.no_grad():
        want = ((net[0](x) @ (0.5 * net[1].weight).T + net[1].bias - net(x)) ** 2).mean()
    assert table[1, 1] == pytest.approx(float(want), rel=1e-5)
