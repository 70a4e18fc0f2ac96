import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.images.degradation import jpeg_table
from foveal.nn.jpeg_bins import coefficients, compressed, pixels


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tables(*qualities):
    return torch.from_numpy(np.stack([jpeg_table(q) for q in qualities])).double()[:, None]


def test_the_transform_is_the_standards():
    x = drawn(1, 1, 8, 8)
    levels = (255 * x[0, 0] - 128).tolist()
    wanted = torch.zeros(8, 8, dtype=torch.float64)
    for u in range(8):
        for v in range(8):
            down, across = ([math.cos((2 * i + 1) * w * math.pi / 16) for i in range(8)] for w in (u, v))
            total = sum(levels[i][j] * down[i] * across[j] for i in range(8) for j in range(8))
            wanted[u, v] = total * (0.5 if u else 0.125**0.5) * (0.5 if v else 0.125**0.5)
    torch.testing.assert_close(coefficients(x)[0, 0, 0, 0], wanted, rtol=0, atol=1e-9)


def test_blocks_stand_where_they_were():
    x = torch.zeros(2, 3, 16, 24)
    x[1, 2, 8:, 16:] = 1
    mean = coefficients(x)[..., 0, 0]
    assert mean[1, 2, 1, 2] == pytest.approx(8 * 127, abs=1e-2)
    assert (mean < 0).sum() == mean.numel() - 1


@pytest.mark.parametrize("size", [(8, 8), (24, 16)])
def test_the_transform_is_undone(size):
    x = drawn(2, 3, *size).requires_grad_()
    torch.testing.assert_close(pixels(coefficients(x)), x)
    # orthonormal: gradients keep their length
    gradient = torch.autograd.grad(coefficients(x).square().sum(), x)[0]
    torch.testing.assert_close(gradient, 2 * 255 * (255 * x - 128))


@pytest.mark.parametrize("quality", [5, 50, 95])
def test_the_file_decodes_as_pillow_does(quality):
    levels = torch.nn.functional.interpolate(drawn(1, 1, 4, 4), 24, mode="bilinear").mul(255).round()
    file = io.BytesIO()
    Image.fromarray(levels[0, 0].byte().numpy()).save(file, "JPEG", quality=quality)
    theirs = torch.from_numpy(np.array(Image.open(file))).double()
    ours = 255 * compressed(levels / 255, tables(quality)).decoded[0, 0]
    assert (ours.clamp(0, 255) - theirs).abs().max() < 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_picture_is_put_into_the_bins(dtype):
    wanted, other = drawn(6, 1, 16, 8).to(dtype), 3 * drawn(6, 1, 16, 8, seed=1).to(dtype) - 1
    bins = compressed(wanted, tables(1, 5, 10, 30, 50, 100).to(dtype))
    assert not torch.equal(bins.requantized(other), bins.indices)
    assert torch.equal(bins.requantized(bins.projected(other)), bins.indices)
    assert torch.equal(bins.requantized(bins.decoded), bins.indices)


def test_a_picture_of_the_file_stays():
    x = drawn(2, 1, 16, 16)
    bins = compressed(x, tables(10, 40))
    inside = bins.decoded + 0.3 * (x - bins.decoded)
    torch.testing.assert_close(bins.projected(inside), inside)
    once = bins.projected(1 - x)
    torch.testing.assert_close(bins.projected(once), once)


def test_no_picture_of_the_file_is_nearer():
    x, other = drawn(1, 1, 8, 8), drawn(1, 1, 8, 8, seed=1)
    bins = compressed(x, tables(20))
    best = bins.projected(other)
    for seed in range(2, 12):
        there = bins.projected(drawn(1, 1, 8, 8, seed=seed))
        assert (other - best).norm() <= (other - there).norm()


def test_a_gradient_passes_inside_the_bins_only():
    bins = compressed(torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 10.0))
    inside = torch.full((1, 1, 8, 8), 0.501, requires_grad=True)
    bins.projected(inside).sum().backward()
    torch.testing.assert_close(inside.grad, torch.ones_like(inside))
    outside = torch.ones(1, 1, 8, 8, requires_grad=True)
    bins.projected(outside).sum().backward()
    assert outside.grad.abs().max() < 1e-6


def test_sides_that_blocks_do_not_fill_are_refused():
    with pytest.raises(ValueError, match="both sides must be multiples of 8, got 16×12; pad as the encoder would"):
        coefficients(torch.zeros(1, 1, 16, 12))
