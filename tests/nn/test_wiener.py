import pytest
import torch
import torch.nn.functional as F

from foveal.nn.wiener import WienerBank, ring_weights, transfer, wiener
from foveal.train.restore.bank.lens import Lens


def circular(kernel, height, width):
    """The matrix of a filter on a circle, (H·W, H·W)."""
    radius, matrix = len(kernel) // 2, torch.zeros(height, width, height, width, dtype=kernel.dtype)
    for y in range(height):
        for x in range(width):
            for i in range(-radius, radius + 1):
                for j in range(-radius, radius + 1):
                    matrix[y, x, (y - i) % height, (x - j) % width] += kernel[radius + i, radius + j]
    return matrix.flatten(2).flatten(0, 1)


@pytest.mark.parametrize("size", [(3, 3), (5, 6), (7, 4)])
def test_the_solution_is_that_of_the_normal_equations(size):
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(2, 2, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    kernels = torch.rand(3, 2, 3, 3, generator=generator, dtype=torch.float64)
    ratios = torch.tensor([0.01, 0.5], dtype=torch.float64)
    found = wiener(y, kernels, ratios)
    assert found.shape == (2, 2, 3, 2, *size)
    rows = []
    for r in ratios:
        for ring in kernels:
            channels = []
            for c, kernel in enumerate(ring):
                k = circular(kernel, *size)
                solution = torch.linalg.solve(
                    k.T @ k + r * torch.eye(len(k), dtype=k.dtype), k.T @ y[:, c].flatten(1).T
                )
                channels.append(solution.T.unflatten(1, size))
            rows.append(torch.stack(channels, 1))
    wanted = torch.stack(rows, 1).view_as(found)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), y)[0] for out in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_a_point_is_the_same_at_all_frequencies():
    point = F.pad(torch.ones(1, 1), (2,) * 4)
    torch.testing.assert_close(transfer(point, 7, 6), torch.ones(7, 4, dtype=torch.complex64))


@pytest.mark.parametrize("size", [(1, 1), (4, 9), (30, 31)])
def test_an_ideal_lens_leaves_the_picture(size):
    x = torch.rand(2, 3, *size)
    ideal = F.pad(torch.ones(4, 3, 1, 1), (3,) * 4)
    out = WienerBank(ideal, (1e-9, 1.0))(x)
    torch.testing.assert_close(out, torch.cat([x, x / 2], 1), rtol=0, atol=1e-5)


def test_a_blur_without_noise_is_undone():
    lens = Lens(middle=0.5, corner=0.9, sigma=0.0, rings=2)
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = F.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    seen = lens(x, torch.Generator())
    out = WienerBank(lens.kernels(), (1e-3,))(seen)
    before, after = ((y - x)[..., 6:-6, 6:-6].square().mean() for y in (seen, out))
    assert after < 0.1 * before


def test_noise_shrinks_as_the_ratio_grows():
    lens = Lens(rings=2)
    noise = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    powers = [part.square().mean() for part in WienerBank(lens.kernels(), (1e-4, 1e-2, 1.0))(noise).split(3, 1)]
    assert powers[0] > 2 * powers[1] > 4 * powers[2]


@pytest.mark.parametrize(("rings", "size"), [(2, (5, 8)), (5, (32, 17))])
def test_the_rings_are_those_of_the_lens(rings, size):
    weights = ring_weights(rings, *size)
    torch.testing.assert_close(weights.sum(0), torch.ones(size))
    torch.testing.assert_close(weights, Lens(rings=rings).weights(*size))


def test_one_ring_counts_everywhere():
    assert torch.equal(ring_weights(1, 3, 4), torch.ones(1, 3, 4))


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 3, 4, 4), (2, 3, 5, 3)])
def test_filters_without_a_centre_are_refused(shape):
    with pytest.raises(ValueError, match=r"kernels must be \(rings, channels, k, k\) with odd k, got"):
        WienerBank(torch.ones(shape), (0.1,))


def test_a_ratio_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"ratios must be above 0, got \(0.1, 0.0\); r = 0 amplifies noise"):
        WienerBank(torch.ones(1, 1, 3, 3), (0.1, 0.0))
