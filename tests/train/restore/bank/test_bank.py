"""Every degradation of the bank keeps shape and range, follows its seed, and does nothing at strength 0."""

import pytest
import torch

from foveal.train.restore.bank import NAMES, Damage, bank, damaged
from foveal.train.restore.bank.blur import Blur, MotionBlur, gaussian
from foveal.train.restore.bank.exposure import Dark, Exposure, to_linear, to_srgb
from foveal.train.restore.bank.haze import Haze
from foveal.train.restore.bank.holes import Holes
from foveal.train.restore.bank.jpeg import Jpeg
from foveal.train.restore.bank.lens import Lens
from foveal.train.restore.bank.noise import Noise
from foveal.train.restore.bank.rain import Rain, line
from foveal.train.restore.bank.shutter import RollingShutter, row_times
from foveal.train.restore.bank.snow import Snow

NOTHING = {
    "noise": Noise(0),
    "exposure": Exposure(0),
    "dark": Dark(1, 0, 0),
    "haze": Haze(0),
    "rain": Rain(opacity=0, veil=0),
    "snow": Snow(opacity=0),
    "blur": Blur(0),
    "motion": MotionBlur(0),
    "holes": Holes(0),
    "shutter": RollingShutter(0, 0),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures():
    coarse = torch.rand(2, 3, 5, 4, generator=generator(3))
    return torch.nn.functional.interpolate(coarse, (37, 30), mode="bilinear")


@pytest.mark.parametrize("name", NAMES)
def test_a_degradation_keeps_shape_range_and_seed(name, pictures):
    damage = bank(name).draw(generator(1))
    assert isinstance(damage, Damage)
    assert damage == bank(name).draw(generator(1))
    out, again = (damage(pictures, generator(5)) for _ in range(2))
    assert out.shape == pictures.shape
    assert out.dtype == pictures.dtype
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(out, again)
    assert not torch.equal(out, pictures)


@pytest.mark.parametrize("name", sorted(NOTHING))
def test_at_strength_0_nothing_happens(name, pictures):
    out = NOTHING[name](pictures, generator())
    assert torch.allclose(out, pictures, atol=2e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "jpeg"])
def test_gradients_reach_the_picture(name, pictures):
    x = pictures[:1].clone().mul(0.5).requires_grad_()
    bank(name)()(x, generator()).sum().backward()
    assert float(x.grad.abs().sum()) > 0


def test_each_picture_of_a_batch_gets_its_own(pictures):
    out = damaged(pictures[:1].repeat(2, 1, 1, 1), ("rain", "noise"), generator(2))
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out, damaged(pictures[:1].repeat(2, 1, 1, 1), ("rain", "noise"), generator(2)))


def test_noise_is_as_strong_as_it_says():
    flat = torch.full((1, 3, 128, 128), 0.5)
    assert float((Noise(20)(flat, generator()) - flat).std() * 255) == pytest.approx(20, rel=0.02)
    # Shot noise: in the dark half as much variance as at mid-grey, at a quarter of the light.
    dark = torch.full((1, 3, 128, 128), 0.25)
    assert float((Noise(10, shot=1)(dark, generator()) - dark).std() * 255) == pytest.approx(10 / 2**0.5, rel=0.02)
    grey = Noise(20, grey=True)(flat, generator())
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_exposure_is_light_and_the_curve_its_own_inverse(pictures):
    assert torch.allclose(to_srgb(to_linear(pictures)), pictures, atol=1e-6)
    twice = Exposure(-1)(Exposure(-1)(pictures, generator()), generator())
    assert torch.allclose(twice, Exposure(-2)(pictures, generator()), atol=1e-6)


def test_haze_and_snow_whiten_and_rain_never_darkens(pictures):
    assert float(Haze(4, 1)(pictures, generator()).mean()) > float(pictures.mean())
    assert bool((Rain(veil=0)(pictures, generator()) >= pictures - 1e-6).all())
    assert float(Snow()(pictures * 0.5, generator()).max()) > 0.8


def test_filters_sum_to_one_and_lie_along_their_angle():
    for kernel in (gaussian(1.3), line(15, 25, 0.6)):
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
        assert len(kernel) % 2 == 1
    upright, level = line(21, 0, 0.5), line(21, 90, 0.5)
    assert torch.allclose(upright, level.T, atol=1e-6)
    assert float(upright.sum(0).max()) > 5 * float(upright.sum(1).max())


def test_a_lens_is_sharpest_in_the_middle(pictures):
    lens = Lens(sigma=0)
    assert torch.allclose(lens.weights(9, 12).sum(0), torch.ones(9, 12), atol=1e-5)
    assert torch.allclose(lens.kernels().sum((2, 3)), torch.ones(5, 3), atol=1e-5)
    checks = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float().expand(1, 3, 64, 64)
    seen = Lens(middle=0.4, corner=3, sigma=0)(checks, generator())
    assert float(seen[..., 28:36, 28:36].std()) > 3 * float(seen[..., 4:12, 4:12].std())


@pytest.mark.parametrize("kind", ["rectangle", "strokes"])
def test_holes_are_as_large_as_they_say(kind):
    mask = Holes(0.25, kind).mask(60, 80, generator(4))
    assert float(mask.mean()) == pytest.approx(0.25, abs=0.05)


def test_a_rolling_shutter_shears_what_moves():
    bar = torch.zeros(1, 3, 21, 41)
    bar[..., 20] = 1
    seen = RollingShutter(across=10)(bar, generator())
    places = seen[0, 0].argmax(1)
    assert places[0] == 15
    assert places[10] == 20
    assert places[20] == 25
    back = RollingShutter(across=10, reverse=True)(bar, generator())
    assert torch.allclose(back, seen.flip(2), atol=1e-6)
    assert torch.equal(row_times(5, reverse=True), -row_times(5))


def test_jpeg_is_that_of_the_library(pictures):
    coarse, fine = (Jpeg(q)(pictures, generator()) for q in (10, 95))
    assert float((coarse - pictures).abs().mean()) > 2 * float((fine - pictures).abs().mean())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no degradation is called 'mud'; choose one of noise"):
        bank("mud")
    with pytest.raises(ValueError, match="noise: sigma must be from 0 to 100, got 300"):
        Noise(300)
    with pytest.raises(ValueError, match="holes: kind must be one of rectangle, strokes, got 'dots'"):
        Holes(kind="dots")
