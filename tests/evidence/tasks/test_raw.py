import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import raw
from foveal.nn import isp


def grey(value, count=1, side=8):
    return torch.full((count, 3, side, side), value)


def test_white_balance_makes_a_light_white_and_warm_light_is_red():
    bulb, shade = raw.light_gains("Olympus E-M10", torch.tensor([2850.0, 7500.0]))
    assert bulb[0] < shade[0]
    assert bulb[2] > shade[2]
    assert bulb[1] == shade[1] == 1
    # the Planckian locus at 2856 K is illuminant A, x = 0.4476, y = 0.4074
    white = raw._white(torch.tensor([2856.0]))[0]
    assert (white / white.sum())[:2].tolist() == pytest.approx([0.4476, 0.4074], abs=1e-3)


@pytest.mark.parametrize("camera", raw.CAMERAS)
def test_grey_stays_grey_through_sensor_and_development(camera):
    matrix = raw.sensor(camera)
    torch.testing.assert_close(matrix.sum(1), torch.ones(3))
    gains = raw.light_gains(camera, torch.tensor([4000.0]))
    generator = torch.Generator().manual_seed(0)
    seen = raw.exposed(grey(0.3), gains, matrix[None], torch.ones(1), generator=generator, noise=False)
    assert len(seen.unique()) == 3
    assert seen.max() == pytest.approx(0.3, abs=1e-3)
    shown = raw.developed(seen, gains / gains.min(), torch.linalg.inv(matrix)[None])
    wanted = isp.tone_map(isp.gamma(torch.tensor(0.3)))
    torch.testing.assert_close(shown, torch.full_like(shown, wanted.item()), rtol=0, atol=2e-3)


def test_exposure_scales_raw_and_noise_follows_the_seed():
    gains, matrix = torch.ones(2, 3), torch.eye(3).expand(2, 3, 3)
    exposure = torch.tensor([1.0, 0.25])
    drawn = [
        raw.exposed(grey(0.4, 2), gains, matrix, exposure, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    torch.testing.assert_close(drawn[0].mean((1, 2, 3)), 0.4 * exposure, rtol=0.1, atol=0)
    assert torch.equal((drawn[0] * raw.LEVELS).round() / raw.LEVELS, drawn[0])


def test_a_stream_changes_slowly_and_follows_its_seed():
    frames = raw.stream(grey(0.5, 64), 4, seed=0)
    assert frames.shape == (4, 64, 1, 8, 8)
    assert torch.equal(frames, raw.stream(grey(0.5, 64), 4, seed=0))
    stops = frames.mean((2, 3, 4)).clamp(min=1e-4).log2()
    near, far = (stops[1] - stops[0]).abs().mean(), (stops[0].roll(1) - stops[0]).abs().mean()
    assert 0.2 < near < 0.6
    assert far > 2 * near


def test_training_and_test_cameras_differ_and_the_record_fits_what_is_shown():
    with rehearsal():
        train, test = (raw.shots(part, 4, seed=0) for part in ("train", "test"))
    held_out = torch.linalg.inv(raw.sensor(raw.HELD_OUT))
    assert torch.allclose(test.matrix, held_out.expand(4, 3, 3))
    assert not any(torch.allclose(matrix, held_out, atol=1e-3) for matrix in train.matrix)
    shown = raw.developed(train.raw, train.gains, train.matrix)
    assert (shown - train.rgb).abs().max() <= 0.5 / 255 + 1e-6


def test_psnr_by_hand():
    x = torch.full((2, 1, 8, 8), 0.5)
    off = x.clone()
    off[0] += 0.1
    off[1] += 0.01
    assert raw.psnr(off, x) == pytest.approx(30, abs=1e-3)
