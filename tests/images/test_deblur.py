"""Blur: its filters are those of the bank, its width is read, and Wiener's filter undoes it."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.images import deblur
from foveal.nn.wiener import wiener as torch_wiener
from foveal.train.restore.bank import blur as bank
from foveal.train.restore.bank.rain import line


@pytest.fixture(scope="module")
def photo(pytestconfig):
    with Image.open(sorted((pytestconfig.rootpath / "samples" / "original").iterdir())[0]) as opened:
        return np.asarray(opened.convert("RGB"))[100:356, 200:488]


def blurred(pixels, damage):
    x = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    return damage(x, torch.Generator())[0].mul(255).round().byte().permute(1, 2, 0).numpy()


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def test_the_filters_are_those_of_the_bank():
    np.testing.assert_allclose(deblur.gaussian(1.5), bank.gaussian(1.5), atol=1e-6)
    np.testing.assert_allclose(deblur.stroke(9, 30), line(9, 30, 0.5), atol=1e-6)


@pytest.mark.parametrize("sigma", [2.0, 2.8])
def test_the_width_is_read_and_undone(photo, sigma):
    damaged = blurred(photo, bank.Blur(sigma))
    found = deblur.traces(damaged)
    assert sigma - 0.6 < deblur.width_of(found) < sigma + 0.2
    for width, noise in ((sigma, 0.5), (deblur.MARGIN * deblur.width_of(found), 1.0)):
        made = deblur.wiener(damaged, deblur.gaussian(width), noise)
        assert psnr(made, photo) > psnr(damaged, photo) + 1


def test_a_movement_is_undone_to_the_borders(photo):
    damaged = blurred(photo[:120, :140], bank.MotionBlur(9, 30))
    made = deblur.wiener(damaged, deblur.stroke(9, 30), 2.0)
    assert psnr(made, photo[:120, :140]) > psnr(damaged, photo[:120, :140]) + 3


def test_a_sharp_picture_reads_less(photo):
    assert deblur.width_of(deblur.traces(photo)) < deblur.LEAST_WIDTH
    assert deblur.traces(photo[:63]) is None


def test_kinds_of_pixels_agree(photo):
    part = photo[:70, :81]
    kernel = deblur.gaussian(1.2)
    made = deblur.wiener(part, kernel, 1.0)
    wide = deblur.wiener(part.astype(np.uint16) * 257, kernel, 1.0)
    real = deblur.wiener(part.astype(np.float32) / 255, kernel, 1.0)
    assert wide.dtype == np.uint16
    assert abs(wide / 257 - made).max() <= 0.51
    assert abs(real * 255 - made).max() <= 0.51
    assert np.array_equal(deblur.wiener(part, np.ones((1, 1), np.float32), 1e-3), part)


def test_it_is_the_filter_of_torch_with_a_spectrum(photo, monkeypatch):
    """With a flat spectrum, and away from the borders."""
    monkeypatch.setattr(deblur, "_ratio", lambda f, noise, strength: np.full_like(f, 1e-2))
    part = photo[:64, :64, :1].astype(np.float32) / 255
    kernel = deblur.gaussian(1.0)
    ours = deblur.wiener(part, kernel, 1.0)
    whole = deblur._mirrored(part, deblur.REACH)
    x = torch.from_numpy(whole.astype(np.float64)).permute(2, 0, 1)[None]
    theirs = torch_wiener(x - x.mean(), torch.from_numpy(kernel).double()[None, None], torch.tensor([1e-2]).double())
    wanted = (theirs[0, 0, 0, 0] + x.mean())[64:128, 64:128].clamp(0, 1)
    np.testing.assert_allclose(ours[..., 0], wanted, atol=1e-5)


def test_tiles_meet_without_a_seam(photo, monkeypatch):
    damaged = blurred(photo, bank.Blur(1.5))
    whole = deblur.wiener(damaged, deblur.gaussian(1.5), 1.0)
    monkeypatch.setattr(deblur, "TILE", 100)
    assert abs(whole.astype(int) - deblur.wiener(damaged, deblur.gaussian(1.5), 1.0)).max() <= 1
