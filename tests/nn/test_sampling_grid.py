import math

import numpy as np
import pytest
import torch

from foveal.nn.sampling_grid import SamplingGrid, attract, centres, pull, push, resample, resample_plain


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(seed=0, *, batch=2):
    return SamplingGrid.from_saliency(drawn(batch, 7, 9, seed=seed) ** 4 + 0.01, reach=0.2)


def test_knots_are_the_weighted_mean_of_what_they_see():
    saliency, reach = drawn(1, 5) + 0.1, 0.4
    s = saliency[0].tolist()
    mirrored = {j: s[4 - abs(4 - abs(j))] for j in range(-4, 9)}
    wanted = []
    for i in range(5):
        weights = {
            j: mirrored[j] * math.exp(-4 * math.log(2) * ((j - i) / (4 * reach)) ** 2) for j in range(i - 4, i + 5)
        }
        wanted.append(sum(w * j for j, w in weights.items()) / sum(weights.values()) / 4)
    torch.testing.assert_close(attract(saliency, reach=reach)[0], torch.tensor(wanted, dtype=torch.float64))


def test_knots_ascend_from_0_to_1_and_draw_together_where_it_is_salient():
    knots = grid().rows
    assert knots[:, 0].tolist() == [0, 0]
    assert knots[:, -1].tolist() == [1, 1]
    assert bool((knots.diff(dim=1) > 0).all())
    peak = torch.ones(1, 11, dtype=torch.float64)
    peak[0, 3] = 20
    steps = attract(peak, reach=0.2).diff(dim=1)[0]
    assert steps[2:4].max() < 0.1 < steps[7:].min() + 1e-3


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_uniform_saliency_leaves_everything_where_it_is(count):
    knots = attract(torch.full((1, count), 0.37))
    assert torch.equal(knots[0], torch.arange(count) / (count - 1))
    uniform = SamplingGrid.from_saliency(torch.full((1, count, 5), 0.37, dtype=torch.float64))
    x = drawn(2, 3, 7, 11)
    torch.testing.assert_close(uniform.zoom(x, (7, 11)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(uniform.unzoom(x, (7, 11)), x, rtol=0, atol=1e-12)


def test_half_the_size_of_a_uniform_grid_is_the_mean_of_four():
    x, uniform = drawn(1, 2, 6, 10), SamplingGrid.from_saliency(torch.ones(1, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(uniform.zoom(x, (3, 5)), torch.nn.functional.avg_pool2d(x, 2))


def test_maps_are_those_of_numpy():
    knots, at = grid().columns, np.linspace(0, 1, 63)
    places = np.linspace(0, 1, knots.shape[1])
    for i in range(2):
        t, there, back = knots[i].numpy(), push(knots, torch.from_numpy(at))[i], pull(knots, torch.from_numpy(at))[i]
        np.testing.assert_allclose(there, np.interp(at, places, t), atol=1e-12)
        np.testing.assert_allclose(back, np.interp(at, t, places), atol=1e-12)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_there_and_back_in_both_orders(count):
    knots = grid(1).rows.float()
    at = torch.rand(2, count, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(pull(knots, push(knots, at)), at, rtol=0, atol=1e-4)
    torch.testing.assert_close(push(knots, pull(knots, at)), at, rtol=0, atol=1e-4)
    assert float((push(knots, at) - at).abs().max()) > 0.01


def test_positions_outside_go_to_the_ends():
    outside = torch.tensor([-0.3, 1.2], dtype=torch.float64)
    for move in (push, pull):
        ends = torch.tensor([[0.0, 1.0]] * 2, dtype=torch.float64)
        torch.testing.assert_close(move(grid().rows, outside), ends)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (9, 4)])
def test_reading_agrees_with_matrices_in_outputs_and_gradients(size):
    x, rows, columns = drawn(2, 3, 6, 5), drawn(2, size[0], seed=1), drawn(1, size[1], seed=2)
    found = []
    for read in (resample, resample_plain):
        leaves = [y.clone().requires_grad_() for y in (x, rows, columns)]
        out = read(*leaves)
        out.square().sum().backward()
        found.append((out, *(leaf.grad for leaf in leaves)))
    assert found[0][0].shape == (2, 3, *size)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_zooming_reads_at_the_map_of_the_centres():
    # where pixel values are their own positions, a reading is the position it was taken from
    ramp = centres(101, torch.zeros((), dtype=torch.float64)).expand(2, 1, 3, 101)
    there = push(grid().columns, centres(8, ramp))
    torch.testing.assert_close(grid().zoom(ramp, (2, 8))[:, 0, 1], there.clamp(0.5 / 101, 1 - 0.5 / 101))
    back = pull(grid().columns, centres(8, ramp))
    torch.testing.assert_close(grid().unzoom(ramp, (2, 8))[:, 0, 1], back.clamp(0.5 / 101, 1 - 0.5 / 101))


def test_density_counts_what_is_read_in_each_pixel():
    found = grid().density((4, 6), (40, 60))
    torch.testing.assert_close(found.sum((1, 2)), torch.full((2,), 2400.0, dtype=torch.float64))
    rows, columns = (push(t, centres(1000, t)) for t in (grid().rows, grid().columns))
    for b in range(2):
        down, across = ((at[b] * n).long().bincount(minlength=n) for at, n in ((rows, 4), (columns, 6)))
        torch.testing.assert_close(found[b], (down[:, None] * across[None]).double() * 2400 / 1e6, rtol=0.02, atol=0)


def test_gradients_reach_the_saliency():
    saliency = (drawn(1, 4, 5) + 0.1).requires_grad_()
    x = drawn(1, 1, 6, 7)

    def both(s):
        found = SamplingGrid.from_saliency(s)
        return found.unzoom(found.zoom(x, (5, 4)), (3, 3))

    assert torch.autograd.gradcheck(both, (saliency,))


def test_what_does_not_fit_raises():
    with pytest.raises(ValueError, match="at least 2 values an axis, got 1"):
        attract(torch.ones(1, 1))
    with pytest.raises(ValueError, match="reach must be above 0, got 0"):
        attract(torch.ones(1, 3), reach=0)
    with pytest.raises(ValueError, match=r"rows must be \(B, n\) with n at least 2, got \(5,\); add the batch"):
        SamplingGrid(torch.linspace(0, 1, 5), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"saliency must be \(B, n, m\), got \(3, 4\); add the batch"):
        SamplingGrid.from_saliency(torch.ones(3, 4))
    with pytest.raises(ValueError, match="saliency must be above 0, got 0; add a small constant"):
        SamplingGrid.from_saliency(torch.zeros(1, 3, 4))
