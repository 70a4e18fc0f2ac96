"""Films of moving photographs: seeds, exact motion, rows and pieces."""

import pytest
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import moving_photos
from foveal.evidence.tasks.moving_photos import Film, drawn
from foveal.nn.motion import inside, row_map, warped


@pytest.fixture
def photos():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 7, 7, generator=generator)
    return F.interpolate(coarse, (96, 96), mode="bicubic", align_corners=True).clamp(0, 1)


def film(photos, *, pieces=1, seed=0):
    return drawn(photos, torch.Generator().manual_seed(seed), pieces=pieces, side=24)


def test_a_seed_gives_one_film(photos):
    a, b, c = film(photos), film(photos), film(photos, seed=1)
    assert a.seen(0.25).shape == (2, 3, 24, 24)
    assert torch.equal(a.seen(0.25), b.seen(0.25))
    assert not torch.equal(a.seen(0.25), c.seen(0.25))


def test_training_films_follow_step_and_seed():
    with rehearsal():
        one = moving_photos.films(0, batch=2, side=16)(3)
        again = moving_photos.films(0, batch=2, side=16)(3)
        other = moving_photos.films(0, batch=2, side=16)(4)
        test = moving_photos.held_out()
    assert torch.equal(one.seen(0.5), again.seen(0.5))
    assert not torch.equal(one.seen(0.5), other.seen(0.5))
    assert test.seen(0.0).shape[1:] == (3, 64, 64)


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_the_motion_carries_one_time_to_another(photos, pieces):
    scene = film(photos, pieces=pieces)
    flow = scene.motion(0.5) * (0.0 - 0.5)
    mask = inside(flow)
    carried = ((warped(scene.seen(0.0), flow) - scene.seen(0.5)).abs() * mask).mean()
    still = ((scene.seen(0.0) - scene.seen(0.5)).abs() * mask).mean()
    assert carried < (0.1 if pieces == 0 else 0.4) * still


def test_rows_have_their_own_times(photos):
    scene = film(photos)
    rows = row_map(24) - 0.5
    seen, motion = scene.seen(rows), scene.motion(rows)
    for k in (0, 11, 23):
        torch.testing.assert_close(seen[..., k, :], scene.seen(float(rows[k]))[..., k, :])
        torch.testing.assert_close(motion[..., k, :], scene.motion(float(rows[k]))[..., k, :])


def test_a_piece_lies_at_its_place_and_hides_the_photograph():
    scene = Film(
        photos=torch.zeros(1, 3, 40, 40),
        textures=torch.ones(1, 1, 3, 40, 40),
        velocity=torch.zeros(1, 2),
        places=torch.tensor([[[2.0, -3.0]]]),
        radii=torch.tensor([[[3.0, 3.0]]]),
        velocities=torch.tensor([[[4.0, 0.0]]]),
        side=17,
    )
    for time, column in ((0.0, 10), (0.5, 12)):
        seen = scene.seen(time)[0, 0]
        assert seen[5, column] == 1
        assert seen[12, 2] == 0
        centre = (seen * torch.arange(17)).sum() / seen.sum()
        assert float(centre) == pytest.approx(column, abs=0.05)
        assert scene.motion(time)[0, :, 5, column].tolist() == [4, 0]
        assert scene.motion(time)[0, :, 12, 2].tolist() == [0, 0]
