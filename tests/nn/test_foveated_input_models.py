import math

import pytest
import torch
from torch import nn

from foveal.nn.foveated_input_models import Foveate, Schedule, windows
from foveal.runtime.route import recording


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_schedule_by_hand():
    plan = Schedule.of(0.5)
    assert plan.spokes == 13
    assert plan.rate == pytest.approx(2 * math.pi / 13)
    assert plan.width(0) == pytest.approx(plan.edge(1) - plan.edge(0))
    assert plan.width(3) == pytest.approx(plan.rate * (plan.edge(3) + plan.edge(4)) / 2)
    assert math.pi * (plan.edge(3) ** 2 - plan.edge(2) ** 2) / 13 == pytest.approx(plan.width(2) ** 2)
    assert plan.width(0) >= 2
    assert plan.samples(4, 50) == 50 + 4 * 13


def test_windows_cached_in_inference_serve_training():
    windows.cache_clear()
    x = drawn(1, 3, 12, 14)
    with torch.inference_mode():
        Foveate(rate=0.7).apply(nn.Identity())(x)
    Foveate(rate=0.7).apply(nn.Identity())(x.requires_grad_()).sum().backward()
    assert x.grad.count_nonzero() > 0


@pytest.mark.parametrize(("size", "fixation"), [((31, 45), (0.5, 0.5)), ((20, 33), (0.1, 0.8)), ((7, 1), (1.0, 0.0))])
def test_each_pixel_is_in_the_window_of_its_polar_place(size, fixation):
    plan, found = Schedule.of(0.7), windows(size, rate=0.7, fixation=fixation)
    seen = {}
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i + 0.5 - fixation[0] * size[0], j + 0.5 - fixation[1] * size[1]
            ring, spoke = -1, (i, j)
            while math.hypot(y, x) >= plan.edge(ring + 1):
                ring += 1
            if ring >= 0:
                spoke = int(math.atan2(y, x) % (2 * math.pi) / plan.rate)
            assert found.ring[i, j] == ring
            seen.setdefault((ring, spoke), set()).add(int(found.labels[i, j]))
    assert all(len(labels) == 1 for labels in seen.values())
    assert len(seen) == len(found.sizes)
    assert torch.equal(found.labels.flatten().bincount(), found.sizes)


def test_samples_are_means_of_windows():
    x, stage = drawn(2, 3, 15, 21), Foveate(rate=0.8)
    labels = stage.windows((15, 21)).labels
    samples = stage.samples(x)
    for number in range(samples.shape[2]):
        torch.testing.assert_close(samples[..., number], x[..., labels == number].mean(-1))


@pytest.mark.parametrize("periphery", ["blur", "texture"])
def test_the_fovea_stays_and_the_periphery_does_not(periphery):
    x, stage = drawn(1, 3, 33, 33), Foveate(rate=0.6, periphery=periphery)
    fovea, out = stage.windows((33, 33)).ring < 0, stage(x)
    assert int(fovea.sum()) > 20
    assert torch.equal(out[..., fovea], x[..., fovea])
    assert float((out - x)[..., ~fovea].abs().mean()) > 0.1


def test_blur_is_between_the_samples_around_a_pixel():
    x, stage = drawn(1, 1, 25, 25), Foveate(rate=0.7)
    found, samples, out = stage.windows((25, 25)), stage.samples(x)[0, 0], stage(x).flatten()
    around = samples[found.neighbours]
    assert bool((out >= around.min(0).values - 1e-6).all())
    assert bool((out <= around.max(0).values + 1e-6).all())
    assert torch.equal(found.neighbours.eq(found.labels.flatten()).any(0), torch.ones(625, dtype=torch.bool))
    torch.testing.assert_close(stage(torch.full_like(x, 0.3)), torch.full_like(x, 0.3))


def test_blur_does_not_jump_across_the_edges_of_windows():
    """On a smooth picture the blurred one is smooth too; means of windows alone would have steps of several pixels."""
    ramp = torch.linspace(0, 1, 65).expand(1, 1, 65, 65)
    stage = Foveate(rate=0.5)
    steps = stage(ramp).diff(dim=3)[..., 16:48]
    alone = stage.samples(ramp)[0, 0][stage.windows((65, 65)).labels].diff(dim=1)[:, 16:48]
    assert float(steps.abs().max()) < 0.6 * float(alone.abs().max())


def test_texture_keeps_the_pixels_of_each_window():
    x, stage = drawn(1, 1, 19, 23), Foveate(rate=0.9, periphery="texture", fixation=(0.3, 0.6))
    labels, out = stage.windows((19, 23)).labels, stage(x)
    for number in labels.unique():
        ours, theirs = (y[..., labels == number].sort().values for y in (out, x))
        assert torch.equal(ours, theirs)
    assert torch.equal(out, stage(x))
    assert not torch.equal(out, Foveate(rate=0.9, periphery="texture", fixation=(0.3, 0.6), seed=1)(x))


@pytest.mark.parametrize("periphery", ["blur", "texture"])
def test_gradients_reach_pixels(periphery):
    x = drawn(1, 1, 9, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(Foveate(rate=1.0, periphery=periphery), (x,))


def test_a_network_gets_the_foveated_picture_and_its_route():
    net, x, stage = nn.Conv2d(3, 2, 3), drawn(2, 3, 17, 17), Foveate(rate=0.8)
    model = stage.apply(net)
    with recording() as routes:
        out = model(x)
    torch.testing.assert_close(out, net(stage(x)))
    found = stage.windows((17, 17))
    assert routes[0].counts == (len(found.sizes),)
    assert routes[0].share == len(found.sizes) / 289
    assert routes[0].work.shape == (2, 17, 17)
    assert routes[0].work[1].sum() == pytest.approx(len(found.sizes))
    assert "rate=0.8" in repr(model)


def test_a_rate_of_zero_is_the_picture_itself():
    x = drawn(1, 3, 8, 8)
    assert Foveate(rate=0.0)(x) is x


def test_what_does_not_fit_raises():
    with pytest.raises(ValueError, match=r"fixation must be a row and a column in \[0, 1\], got \(0.5, 2\)"):
        Foveate(fixation=(0.5, 2))
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5; 0.4 is about a person's"):
        Foveate(rate=1.5)
    with pytest.raises(ValueError, match="periphery must be one of blur, texture, got 'haze'"):
        Foveate(periphery="haze")
    with pytest.raises(ValueError, match="a rate of 0 has no windows; take one above 0"):
        Foveate(rate=0.0).windows((8, 8))
