from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.images.degradation import examine, jpeg_level
from foveal.images.resize import imresize
from foveal.train.restore.degradations import KINDS, NOISE_UNIT, add_noise, degrade, encode_jpeg

SAMPLES = Path(__file__).parents[3] / "samples"


@pytest.fixture(scope="module")
def pair():
    with Image.open(SAMPLES / "original" / sorted(p.name for p in (SAMPLES / "original").iterdir())[0]) as opened:
        high = np.asarray(opened.convert("RGB"))[:256, :256]
    return imresize(high, 1 / 4), high


def test_a_seed_gives_one_damage(pair):
    first, again, other = (degrade(*pair, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.level == again.level
    assert not np.array_equal(first.pixels, other.pixels)


def test_every_kind_is_drawn_as_often_as_it_should_be(pair):
    rng = np.random.default_rng(0)
    seen = Counter()
    for _ in range(200):
        damaged = degrade(*pair, rng)
        assert damaged.pixels.shape == pair[0].shape
        assert damaged.pixels.dtype == np.uint8
        assert min(damaged.level) >= 0
        assert damaged.colour <= damaged.noise
        seen[damaged.jpeg > 0, damaged.noise > 0] += 1
    shares = {name: share for name, (share, _) in KINDS.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert seen[False, True] / 200 == pytest.approx(shares["noise"], abs=0.1)
    assert 0 < seen[False, False] / 200 < 0.15


def test_the_level_of_a_jpeg_is_the_one_that_is_read(pair):
    rng = np.random.default_rng(3)
    for _ in range(6):
        damaged = KINDS["jpeg"][1](pair[1], rng)
        assert examine(damaged.pixels).jpeg == pytest.approx(damaged.jpeg, abs=0.021)


def test_of_two_jpegs_one_is_told(pair):
    rng = np.random.default_rng(0)
    for _ in range(6):
        damaged = KINDS["jpeg, jpeg"][1](pair[0], rng)
        assert jpeg_level(97) <= damaged.jpeg <= jpeg_level(29)
        assert (damaged.noise, damaged.colour) == (0, 0)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("blur", [0.0, 0.2])
def test_noise_is_as_strong_as_asked(grey, blur):
    made = add_noise(np.full((200, 200, 3), 128, np.uint8), 8, np.random.default_rng(0), grey=grey, blur=blur) - 128.0
    assert made.std() == pytest.approx(8, rel=0.03)
    assert np.array_equal(made[..., 0], made[..., 1]) == grey
    alike = (made[1:] * made[:-1]).mean() / made.var()
    assert (alike > 0.3) == (blur > 0)


def test_noise_of_the_dark_is_weaker():
    picture = np.repeat(np.array([[[20] * 3, [220] * 3]], np.uint8), 100, 0).repeat(100, 1)
    made = add_noise(picture, 8, np.random.default_rng(0), dark=1.0) - picture.astype(float)
    assert made[:, :100].std() < 0.5 * made[:, 100:].std()


def test_noise_is_told_in_units_of_what_is_measured(pair):
    rng = np.random.default_rng(1)
    told = [KINDS["noise"][1](pair[1][:160, :160], rng) for _ in range(9)]
    read = [examine(t.pixels).noise / NOISE_UNIT for t in told]
    seen = [(t.noise, r) for t, r in zip(told, read, strict=True) if t.noise > 0.6 and r]
    assert len(seen) >= 4
    assert np.median([r / t for t, r in seen]) == pytest.approx(1, abs=0.3)


def test_subsampling_costs_colour(pair):
    errors = [np.square(encode_jpeg(pair[1], 95, s).astype(float) - pair[1]).mean() for s in (2, 0)]
    assert errors[0] > errors[1]
