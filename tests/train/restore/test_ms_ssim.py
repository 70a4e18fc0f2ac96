import numpy as np
import pytest
import torch

from foveal.measure.fusion import ms_ssim as plain
from foveal.train.restore.ms_ssim import EXPONENTS, ms_ssim, ms_ssim_loss


def pair(*shape, noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (target + noise * torch.randn(shape, generator=generator, dtype=torch.float64)), target


def naive(x, y, levels):
    """Window by window, without convolutions; planes (H, W) in [0, 1]."""
    at = np.arange(-5, 6)
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    exponents = np.array(EXPONENTS[:levels]) * sum(EXPONENTS) / sum(EXPONENTS[:levels])
    similarity = 1.0
    for level in range(levels):
        if level == levels - 1:
            x, y = np.pad(x, 5, mode="reflect"), np.pad(y, 5, mode="reflect")
        local = []
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                spread = (window * (a - mean_a) ** 2).sum() + (window * (b - mean_b) ** 2).sum()
                value = (2 * (window * (a - mean_a) * (b - mean_b)).sum() + 0.03**2) / (spread + 0.03**2)
                if level == levels - 1:
                    value *= (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
                local.append(value)
        similarity *= np.mean(local) ** exponents[level]
        rows, columns = (size // 2 for size in x.shape)
        x, y = (p[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3)) for p in (x, y))
    return similarity


@pytest.mark.parametrize(("height", "width", "levels"), [(11, 13, 1), (23, 25, 2), (31, 44, 2)])
def test_equals_windows_one_by_one(height, width, levels):
    x, y = pair(2, 1, height, width)
    wanted = [naive(a[0].numpy(), b[0].numpy(), levels) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(ms_ssim(x, y).numpy(), wanted, rtol=1e-12)


def test_at_five_scales_it_is_close_to_the_measure_that_leaves_the_border_out():
    x, y = pair(1, 1, 180, 200, noise=0.05)
    luma = (x[0, 0].numpy() * 255, y[0, 0].numpy() * 255)
    assert ms_ssim(x, y).item() == pytest.approx(plain(*luma), abs=1e-3)


def test_long_rows_are_computed_alike(monkeypatch):
    x, y = pair(2, 3, 24, 37)
    wanted = ms_ssim(x, y)
    monkeypatch.setattr("foveal.train.restore.ms_ssim.LONG", 10)
    torch.testing.assert_close(ms_ssim(x, y), wanted, rtol=1e-12, atol=0)


def test_equal_pictures_reach_one_and_the_range_is_a_unit():
    x, y = pair(2, 3, 24, 30)
    assert torch.equal(ms_ssim(y, y), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(ms_ssim(255 * x, 255 * y, data_range=255), ms_ssim(x, y), rtol=1e-9)


def test_it_tells_structure_from_brightness():
    _, y = pair(1, 1, 32, 32)
    brighter = y + 0.05
    noisy = y + 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert ms_ssim_loss(brighter, y) < ms_ssim_loss(noisy, y) / 2


def test_gradients():
    x, y = pair(1, 1, 11, 12)
    assert torch.autograd.gradcheck(lambda out: ms_ssim_loss(out, y), x.requires_grad_())


def test_an_inverted_picture_gives_no_nan():
    _, y = pair(1, 1, 23, 23)
    x = (1 - y).requires_grad_()
    loss = ms_ssim_loss(x, y)
    loss.backward()
    assert 0.9 < loss.item() < 1
    assert x.grad.isfinite().all()


def test_errors():
    with pytest.raises(
        ValueError, match=r"two batches \(B, C, H, W\) of one shape, got \(1, 1, 12, 12\), \(1, 1, 12, 13\)"
    ):
        ms_ssim(torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 12, 13))
    with pytest.raises(ValueError, match="MS-SSIM needs 11×11 pixels, got 20×10; take larger pictures"):
        ms_ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))
