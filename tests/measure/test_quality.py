import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.images.resize import imresize
from foveal.measure import benchmarks
from foveal.measure.quality import Score, benchmark_pairs, bicubic, evaluate, from_torch, luma, psnr, ssim


def picture(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), 16.0),
        ((255, 255, 255), 235.0),
        ((255, 0, 0), 81.481),
        ((0, 255, 0), 144.553),
        ((0, 0, 255), 40.966),
    ],
)
def test_luma_of_the_corners_of_the_cube(rgb, expected):
    assert luma(np.array(rgb, np.uint8).reshape(1, 1, 3))[0, 0] == pytest.approx(expected, abs=1e-9)


def test_luma_leaves_luminance_alone():
    grey = picture(3, 4)
    assert np.array_equal(luma(grey), grey)
    assert np.array_equal(luma(grey[..., None]), grey)


def test_luma_of_something_else():
    with pytest.raises(ValueError, match=r"must be \(H, W\), \(H, W, 1\) or \(H, W, 3\), got shape \(2, 2, 4\)"):
        luma(np.zeros((2, 2, 4)))


def test_psnr_by_hand():
    a = np.zeros((6, 6))
    b = np.full((6, 6), 5.0)
    assert psnr(a, b, shave=0) == pytest.approx(20 * math.log10(255 / 5))
    b[0] = 255  # shaved away
    assert psnr(a, b, shave=1) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(a, b, shave=0) < 10


def test_psnr_of_a_grey_step_is_that_of_its_luminance():
    a, b = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), 101, np.uint8)
    assert psnr(a, b, shave=0) == pytest.approx(20 * math.log10(255 / (219 / 255)))


def test_psnr_of_equal_pictures_is_infinite():
    assert psnr(picture(5, 5, 3), picture(5, 5, 3), shave=1) == math.inf


def slow_ssim(a, b):
    """Wang's equations at every place, one window at a time."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            vxy = (window * (x - mx) * (y - my)).sum()
            luminance = (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
            values.append(luminance * (2 * vxy + 58.5225) / (vx + vy + 58.5225))
    return float(np.mean(values))


@pytest.mark.parametrize("noise", [0, 3, 40])
def test_ssim_equals_the_slow_reference(noise):
    rng = np.random.default_rng(1)
    a = imresize(picture(8, 7), size=(24, 19)).astype(float)
    b = a + noise * rng.standard_normal(a.shape)
    assert ssim(a, b, shave=0) == pytest.approx(slow_ssim(a, b), abs=1e-10)
    assert ssim(a, b, shave=3) == pytest.approx(slow_ssim(a[3:-3, 3:-3], b[3:-3, 3:-3]), abs=1e-10)


def test_ssim_by_hand():
    # Two flat pictures: only the term of the means is left.
    a, b = np.full((11, 11), 100.0), np.full((11, 11), 120.0)
    assert ssim(a, b, shave=0) == pytest.approx((2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025))
    assert ssim(a, a, shave=0) == pytest.approx(1)


def test_ssim_of_a_negative_is_negative():
    a = picture(20, 20).astype(float)
    assert ssim(a, 255 - a, shave=0) < -0.5


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_sizes_are_checked(measure):
    with pytest.raises(ValueError, match="pictures must be of one size, got 8×20 and 20×8"):
        measure(picture(20, 8), picture(8, 20), shave=0)
    with pytest.raises(ValueError, match="shave must leave something of 20×8 pixels, got 4"):
        measure(picture(8, 20), picture(8, 20), shave=4)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="SSIM needs 11×11 pixels inside the border, got 12×10"):
        ssim(picture(16, 18), picture(16, 18), shave=3)


@pytest.fixture
def benchmark(tmp_path):
    """Two pairs at scale 2, whose given low resolution is flat, so that it can be told from one made here."""
    folder = tmp_path / "Toy"
    (folder / "x2").mkdir(parents=True)
    for i in (1, 2):
        Image.fromarray(picture(26 - i, 30, 3, seed=i)).save(folder / "x2" / f"00{i}_HR.png")
        Image.fromarray(np.full((12, 15, 3), 100, np.uint8)).save(folder / "x2" / f"00{i}_LR.png")
    return folder


def test_given_pairs_are_used(benchmark):
    pairs = list(benchmark_pairs(benchmark, 2))
    assert [name for name, _, _ in pairs] == ["001", "002"]
    assert all((low == 100).all() and high.shape == (24, 30, 3) for _, low, high in pairs)
    assert len(list(benchmark_pairs(benchmark, 2, limit=1))) == 1


def test_other_scales_are_made_from_the_high_resolution(benchmark):
    _, low, high = next(benchmark_pairs(benchmark, 3))
    assert high.shape == (24, 30, 3)
    assert np.array_equal(low, imresize(high, 1 / 3))


def test_a_plain_folder_will_do(tmp_path):
    Image.fromarray(picture(13, 14)).save(tmp_path / "grey.png")
    ((name, low, high),) = benchmark_pairs(tmp_path, 4)
    assert (name, low.shape, high.shape) == ("grey", (3, 3, 3), (12, 12, 3))


def test_no_folder_and_no_pictures(tmp_path):
    with pytest.raises(ValueError, match="gone: no such folder of pictures"):
        list(benchmark_pairs(tmp_path / "gone", 2))
    with pytest.raises(ValueError, match="no pictures for scale 2; expected x2"):
        list(benchmark_pairs(tmp_path, 2))


def test_evaluate_is_the_mean(benchmark):
    pairs = list(benchmark_pairs(benchmark, 2))
    score = evaluate(bicubic(2), benchmark, 2)
    enlarged = [imresize(low, 2) for _, low, _ in pairs]
    expected = np.mean([psnr(e, high, shave=2) for e, (_, _, high) in zip(enlarged, pairs, strict=True)])
    assert score == Score("Toy", 2, 2, pytest.approx(expected), score.ssim)
    assert score.ssim == pytest.approx(
        np.mean([ssim(e, high, shave=2) for e, (_, _, high) in zip(enlarged, pairs, strict=True)])
    )
    assert evaluate(bicubic(2), benchmark, 2, structure=False).ssim is None
    assert score.to_json()["pictures"] == 2


def test_from_torch_is_the_network_rounded_to_eight_bits():
    model = torch.nn.Upsample(scale_factor=2).train()
    low = picture(5, 6, 3)
    assert np.array_equal(from_torch(model)(low), low.repeat(2, 0).repeat(2, 1))
    assert model.training
    out = from_torch(model, luminance=True)(low)
    assert np.array_equal(out, np.round(luma(low)).astype(np.uint8).repeat(2, 0).repeat(2, 1))


def test_no_torch_is_needed():
    code = "import sys, foveal.measure.quality, foveal.measure.cost; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("scale", "low", "high"), [(4, 28.42, 28.43), (3, 30.38, 30.41), (2, 33.64, 33.68)])
def test_bicubic_on_set5_is_as_published(scale, low, high):
    try:
        folder = benchmarks.find("Set5")
    except benchmarks.DataError as error:
        pytest.skip(str(error))
    assert low <= round(evaluate(bicubic(scale), folder, scale, structure=False).psnr, 2) <= high
