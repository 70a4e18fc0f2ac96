import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import run_one
from foveal.evidence.tasks import features, looks


class Nearest(nn.Module):
    def forward(self, x):
        return F.interpolate(x, scale_factor=4)


class Grey(nn.Module):
    def forward(self, x):
        return torch.full_like(Nearest()(x), 0.5)


@pytest.fixture(autouse=True)
def _rehearsed():
    with rehearsal():
        yield


def test_wrong_networks_are_further_from_the_originals():
    out, high = looks.upscaled(Nearest())
    assert out.shape == high.shape
    assert torch.equal(out, out.mul(255).round().div(255))
    assert looks.distance(Nearest()) < looks.distance(Grey())
    assert looks.psnr(Nearest()) > looks.psnr(Grey())


def test_a_claim_compares_the_trained_ones():
    ours, theirs = (looks.distance(looks.trained(loss, 0)) for loss in (F.mse_loss, F.l1_loss))
    claim = looks.better(F.mse_loss, "Any.", paper="", clause=1)
    assert claim.check["quality"](0) == pytest.approx(100 * (1 - ours / theirs))
    assert set(claim.needs) >= {"minutes", "bsds400", "BSD100", *features.NEEDS}
    assert run_one(claim).verdict in ("holds", "does not hold")
    same = looks.better(F.l1_loss, "Any.", paper="", clause=1)
    assert same.check["quality"](0) == 0
