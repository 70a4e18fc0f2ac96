"""The fusion task: what is planted, seeds, floors."""

import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import infrared


@pytest.fixture(autouse=True)
def _drawn():
    with rehearsal():
        yield


def planted(seed=0):
    photo = torch.rand(3, 1, 40, 52, generator=torch.Generator().manual_seed(5))
    return photo, *infrared.planted(photo, torch.Generator().manual_seed(seed))


def test_visible_is_sharp_and_infrared_blurred_with_targets():
    photo, pair, covered = planted()
    assert pair.shape == (3, 2, 40, 52)
    assert (pair[:, :1] - photo).abs().max() <= 0.5 / 255 + 1e-6
    inside, outside = covered[:, 0] > 0.99, covered[:, 0] < 0.01
    assert pair[:, 1][inside].min() >= 0.78
    assert pair[:, 1][outside].mean() == pytest.approx(infrared.COOL, abs=0.05)
    assert pair[:, 1][outside].std() < 0.3 * photo.std()
    assert all(0.005 < float(share) < 0.6 for share in covered.mean((1, 2, 3)))


def test_planted_pairs_follow_the_seed():
    assert torch.equal(planted(1)[1], planted(1)[1])
    assert not torch.equal(planted(1)[1], planted(2)[1])


def test_batches_follow_step_and_seed():
    load = infrared.batches(1, patch=24, batch=3)
    assert load(4).shape == (3, 2, 24, 24)
    assert torch.equal(load(4), infrared.batches(1, patch=24, batch=3)(4))
    assert not torch.equal(load(4), load(5))


def test_averaging_leads_nobody_and_infrared_keeps_all_targets():
    def average(pair):
        return pair.mean(1, keepdim=True)

    for score in ("q_abf", "ms_ssim"):
        assert infrared.lead(average, score) <= 1e-6
    assert infrared.contrast(lambda pair: pair[:, 1:]) == pytest.approx(1)
    assert infrared.contrast(lambda pair: pair[:, :1]) < 0.9
    assert infrared.scores(lambda pair: pair[:, :1], infrared.real_pairs())["entropy"] > 0
