import math

import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import waves


def test_a_standing_wave_swings_as_the_scheme_says():
    side, ratio = 9, 0.5
    node = torch.arange(1, side + 1, dtype=torch.float64) * math.pi / (side + 1)
    mode = torch.sin(2 * node)[:, None] * torch.sin(node)
    # cos ω = 1 − 2 ratio² (sin²(kx/2) + sin²(ky/2)) for the explicit scheme
    bend = math.sin(math.pi / (side + 1)) ** 2 + math.sin(math.pi / (side + 1) / 2) ** 2
    omega = math.acos(1 - 2 * ratio**2 * bend)
    found = waves.solve(mode[None], torch.full((1, side, side), ratio, dtype=torch.float64), 20)
    swing = torch.cos(omega * torch.arange(21, dtype=torch.float64))
    torch.testing.assert_close(found[0], swing[:, None, None] * mode)


def test_a_bump_spreads_no_faster_than_a_node_a_step():
    start = torch.zeros(1, 11, 11)
    start[0, 5, 5] = 1
    found = waves.solve(start, torch.full((1, 11, 11), 0.6), 3)
    assert found.shape == (1, 4, 11, 11)
    row, column = torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij")
    far = (row - 5).abs() + (column - 5).abs() > 3
    assert (found[0, 3][far] == 0).all()
    assert (found[0, 3][~far] != 0).any()


def test_pairs_are_fields_of_one_wave():
    with rehearsal():
        inputs, targets = waves.fields(20, seed=3)
        again = waves.fields(20, seed=3)[0]
        other = waves.fields(20, seed=4)[0]
        assert inputs.shape == (2 * waves.PAIRS, 3, 32, 32)
        assert targets.shape == (2 * waves.PAIRS, 1, 32, 32)
        assert torch.equal(inputs, again)
        assert not torch.equal(inputs, other)
        # the second pair's earlier field is the first pair's target
        torch.testing.assert_close(inputs[2:4, 1], targets[:2, 0])
        ratio = inputs[:, 2]
        found = waves.solve(inputs[:2, 1], ratio[:2], 8)  # the first earlier field is the start
        torch.testing.assert_close(found[:, 4], inputs[:2, 0])
        torch.testing.assert_close(found[:, 8], targets[:2, 0])
        torch.testing.assert_close(inputs[:2, 1].square().mean((1, 2)), torch.ones(2))
        assert 0.3 <= ratio.min() <= ratio.max() <= 0.6 < 1 / math.sqrt(2)


def test_the_error_is_relative():
    x, y = torch.rand(50, 3, 4, 4), torch.rand(50, 1, 4, 4)
    assert waves.error(lambda z: torch.zeros_like(z[:, :1]), (x, y)) == pytest.approx(100)
    assert waves.error(lambda z: z[:, :1], (x, x[:, :1])) == 0
    assert waves.error(lambda z: 1.1 * z[:, :1], (x, x[:, :1])) == pytest.approx(10, rel=1e-3)


def test_the_floor_is_the_present_field_and_a_network_is_trained():
    with rehearsal():
        inputs, targets = waves.fields(waves.TEST_WAVES, seed=waves.TEST)
        assert waves.floor() == pytest.approx(100 * ((inputs[:, :1] - targets).norm() / targets.norm()).item())
        model = waves.trained(lambda: torch.nn.Conv2d(3, 1, 1), steps=5, seed=0)
        assert not model.training
        assert math.isfinite(waves.error(model))
