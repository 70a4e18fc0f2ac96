"""Degradations by their names: what a text means, that a seed gives one damage, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.train.restore.bank import NAMES, bank
from foveal.train.restore.bank.asked import asked_damage
from foveal.train.restore.bank.jpeg import Jpeg
from foveal.train.restore.bank.noise import Noise
from foveal.train.restore.bank.shutter import RollingShutter


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (33, 41, 3), np.uint8)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("noise", (Noise,)),
        ("noise=25", (Noise(25.0),)),
        ("noise=10, shot=0.5,grey=1", (Noise(10.0, 0.5, True),)),
        ("noise=shot=1", (Noise(shot=1.0),)),
        ("dark=0.1 + jpeg=40,subsampling=0", (bank("dark")(0.1), Jpeg(40, 0))),
        ("holes=0.5,kind=rectangle", (bank("holes")(0.5, "rectangle"),)),
        ("shutter=4,reverse=0", (RollingShutter(4.0),)),
    ],
)
def test_a_text_means_degradations(text, steps):
    assert asked_damage(text).steps == steps


@pytest.mark.parametrize("name", NAMES)
def test_every_degradation_can_be_asked_for(name, picture):
    damage = asked_damage(name)
    first, again, other = (np.asarray(damage(picture, seed)) for seed in (3, 3, 4))
    assert (first.shape, first.dtype) == (picture.shape, np.uint8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_strengths_are_those_of_the_bank(picture):
    generator = torch.Generator().manual_seed(5)
    x = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
    wanted = Noise(25.0)(x, generator)[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(asked_damage("noise=25")(picture, 5), wanted)


def test_a_last_jpeg_still_knows_its_tables(picture):
    last = asked_damage("noise=5+jpeg=30")(picture, 0)
    assert isinstance(last, Image.Image)
    assert last.quantization
    assert isinstance(asked_damage("jpeg=30+noise=5")(picture, 0), np.ndarray)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mud", "no degradation is called 'mud'; choose one of noise, jpeg"),
        ("noise=x", "sigma of noise must be a number, got 'x'; leave =… out to draw it"),
        ("jpeg=20.5", "quality of jpeg must be a whole number, got '20.5'"),
        ("noise=25,foo=3", "noise takes sigma, shot, grey, got 'foo=3' in 'noise=25,foo=3'; write noise=STRENGTH"),
        ("noise=25,shot", "noise takes sigma, shot, grey, got 'shot'"),
        ("noise=", "noise takes sigma, shot, grey, got ''"),
        ("jpeg=200", "jpeg: quality must be from 1 to 100, got 200"),
    ],
)
def test_what_means_nothing_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        asked_damage(text)
