"""Restoration: means of damaged and restored pictures, and those that came out worse."""

import numpy as np
import pytest
from PIL import Image

from foveal.measure.quality import ssim
from foveal.measure.restoration import colour_psnr, evaluate_restorer


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(20, 230, (24, 31, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_psnr_counts_every_channel():
    grey = np.full((16, 16, 3), 100, np.uint8)
    red = grey + np.array([30, 0, 0], np.uint8)
    assert colour_psnr(grey, red) == pytest.approx(10 * np.log10(255**2 / 300))
    assert colour_psnr(grey, grey) == 100
    with pytest.raises(ValueError, match="must be of one size"):
        colour_psnr(grey, red[:8])


def test_the_means_are_those_of_the_pictures(folder):
    seeds, calls = [], []

    def damage(picture, seed):
        seeds.append(seed)
        return picture + np.uint8(10)

    def restore(picture):
        calls.append(picture)
        # Half of the damage is taken away, but of the second picture twice as much is left.
        return picture + np.uint8(10) if len(calls) == 3 else picture - np.uint8(5)

    score = evaluate_restorer(restore, folder, damage, name="Toy", damaged_by="ten")
    assert (score.name, score.damage, score.pictures, score.worse) == ("Toy", "ten", 3, 1)
    assert seeds == [0, 1, 2]
    assert len(calls) == 4  # the first twice: what opens an engine is not timed
    one, half, twice = (10 * np.log10(255**2 / n**2) for n in (10, 5, 20))
    assert score.damaged_psnr == pytest.approx(one)
    assert score.psnr == pytest.approx((2 * half + twice) / 3)
    assert score.gain == pytest.approx(score.psnr - score.damaged_psnr)
    pictures = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert score.damaged_ssim == pytest.approx(np.mean([ssim(p + np.uint8(10), p, shave=0) for p in pictures]))
    assert score.seconds_per_megapixel > 0
    assert score.to_json()["gain"] == score.gain
    assert evaluate_restorer(lambda x: x, folder, damage, limit=2).pictures == 2


def test_what_restores_nothing_gains_nothing(folder):
    score = evaluate_restorer(lambda x: x, folder, lambda picture, _: picture)
    assert (score.psnr, score.damaged_psnr, score.ssim, score.worse, score.gain) == (100, 100, pytest.approx(1), 0, 0)
    with pytest.raises(ValueError, match="no such folder of pictures"):
        evaluate_restorer(lambda x: x, folder / "none", lambda picture, _: picture)
