import pytest
import torch

from foveal.evidence.train.tormentor import labels_off, looped, noise, points_off, slope
from foveal.train.tormentor import (
    PlasmaAugment,
    plasma,
    plasma_fields,
    plasma_reference,
    warp,
    warp_points,
)


@pytest.mark.parametrize(("shape", "levels"), [((2, 5, 9), 2), ((1, 7, 7), 1), ((3, 2, 3), 0), ((1, 9, 17), 3)])
def test_it_is_the_loop(shape, levels):
    given = noise(*shape).requires_grad_()
    ours, theirs = (f(given, roughness=0.7, levels=levels) for f in (plasma, plasma_reference))
    torch.testing.assert_close(ours, theirs)
    weights = noise(*shape, seed=1)
    gradients = [torch.autograd.grad((out * weights).sum(), given)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_one_step_by_hand():
    u = torch.tensor([[[0.0, 0.8, 0.4], [0.2, 1.0, 0.6], [0.8, 0.4, 0.0]]])
    centre = 0.75 * 0.3 + 0.25 * 1.0
    top = 0.75 * (0.0 + 0.4 + centre) / 3 + 0.25 * 0.8
    left = 0.75 * (0.0 + 0.8 + centre) / 3 + 0.25 * 0.2
    out = plasma(u, roughness=0.25, levels=1)[0]
    assert torch.equal(out[::2, ::2], u[0, ::2, ::2])
    torch.testing.assert_close(torch.stack([out[1, 1], out[0, 1], out[1, 0]]), torch.tensor([centre, top, left]))


def test_noise_alone_and_means_alone():
    u = noise(1, 9, 9)
    assert torch.equal(plasma(u, roughness=1, levels=3), u)
    corners = torch.zeros(1, 9, 9)
    corners[:, ::8, ::8] = 0.5
    assert plasma(corners, roughness=0, levels=3).eq(0.5).all()


def test_the_loop_over_numbers_is_the_same():
    given = noise(1, 17, 17)
    found = torch.tensor(looped(given[0].tolist(), 0.6), dtype=torch.float64)
    torch.testing.assert_close(found, plasma(given, roughness=0.6, levels=4)[0])


def test_noise_has_no_slope():
    assert abs(slope(1.0)) < 0.2


@pytest.mark.parametrize("size", [(2, 3), (5, 5), (20, 33), (31, 6)])
def test_fields_fill_their_range_at_any_size(size):
    fields = plasma_fields((3, *size), seed=1)
    assert fields.shape == (3, *size)
    assert fields.amin((1, 2)).eq(-1).all()
    torch.testing.assert_close(fields.amax((1, 2)), torch.ones(3))
    assert torch.equal(fields, plasma_fields((3, *size), seed=1))
    assert not torch.equal(fields, plasma_fields((3, *size), seed=2))


def test_smooth_fields_change_less_from_pixel_to_pixel():
    rough, smooth = (plasma_fields((4, 33, 33), seed=0, roughness=r).diff(dim=-1).abs().mean() for r in (0.8, 0.3))
    assert smooth < rough / 2


def test_a_constant_shift_moves_pixels_and_points():
    x = torch.arange(20.0).view(1, 1, 4, 5)
    shift = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5)
    assert torch.equal(warp(x, shift)[..., 2:, :-1].round(), x[..., :2, 1:])
    torch.testing.assert_close(warp_points(torch.tensor([[[3.0, 1.0]]]), shift), torch.tensor([[[2.0, 3.0]]]))


def test_nothing_to_change_changes_nothing():
    still = PlasmaAugment(brightness=0, contrast=0, warp=0)
    x, labels, points = noise(2, 7, 9)[:, None], torch.arange(63).view(1, 7, 9), noise(1, 4, 2)
    torch.testing.assert_close(still.image(x, seed=3), x)
    assert torch.equal(still.mask(labels, seed=3), labels)
    assert torch.equal(still.points(points, (7, 9), seed=3), points)


@pytest.mark.parametrize("name", ["brightness", "contrast", "warp"])
def test_each_strength_differs_from_pixel_to_pixel(name):
    augment = PlasmaAugment(**{"brightness": 0, "contrast": 0, "warp": 0, name: 0.2})
    x = torch.linspace(0.3, 0.7, 24).expand(1, 3, 24, 24)
    change = augment.image(x, seed=0) - x
    assert change.std() > 0.002
    assert torch.equal(augment.image(x, seed=0), augment.image(x, seed=0))
    assert not torch.equal(augment.image(x, seed=0), augment.image(x, seed=1))
    strongest = {"brightness": 0.2, "contrast": 0.2 * 0.2, "warp": 1}[name]
    assert change.abs().max() <= strongest + 1e-6


def test_contrast_turns_about_the_middle():
    augment = PlasmaAugment(brightness=0, warp=0)
    torch.testing.assert_close(augment.image(torch.full((1, 1, 9, 9), 0.5), seed=0), torch.full((1, 1, 9, 9), 0.5))
    assert augment.image(torch.ones(1, 1, 9, 9), seed=0).min() >= 0.5


def test_values_stay_in_range():
    out = PlasmaAugment(brightness=1, contrast=1).image(noise(2, 16, 16)[:, None], seed=0)
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("roughness", [0.5, 1.0])
def test_no_picture_folds(roughness):
    shift = PlasmaAugment(warp=1, roughness=roughness).shift((3, 40, 57), seed=0)
    slopes = [shift.diff(dim=axis).abs().amax((2, 3)) for axis in (2, 3)]
    torch.testing.assert_close(sum(slopes).max(), torch.tensor(0.7))


def test_other_seeds_do_not_fit(monkeypatch):
    monkeypatch.setattr("foveal.evidence.train.tormentor.SEEDS", 1)
    assert points_off(other=1) > 1
    assert labels_off(other=1) > 5


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: plasma(noise(1, 6, 9), levels=2), r"one more than a multiple of 2\^levels = 4, got \(6, 9\)"),
        (lambda: plasma(noise(1, 5, 5), levels=-1), "plasma_fields makes any size"),
        (lambda: plasma_fields((1, 1, 4), seed=0), "at least 2×2 pixels, got 1×4"),
        (lambda: plasma_fields((1, 4, 4), seed=0, roughness=1.5), r"roughness must be in \[0, 1\], got 1.5"),
        (lambda: PlasmaAugment(contrast=2), r"contrast must be in \[0, 1\], got 2; 0 leaves pictures"),
        (lambda: PlasmaAugment(warp=-0.1), r"warp must be in \[0, 1\], got -0.1"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
