import pytest
import torch
from torch import nn

from foveal.train.diffusion import linear_schedule
from foveal.train.restore.residual_sr import ResidualSR


@pytest.mark.parametrize("scale", [1, 2])
def test_a_super_resolution_adds_the_residual_that_it_draws(scale):
    torch.manual_seed(0)
    low = 0.4 + 0.2 * torch.rand(2, 3, 4, 5)  # with differences in [-1, 1]
    high = torch.rand(2, 3, 4 * scale, 5 * scale)
    model = ResidualSR(nn.Identity(), scale, predicted="clean", gain=0.5, steps=3)
    residual = high - model.bicubic(low)
    seen = []

    class Residual(nn.Module):
        def forward(self, noisy, t, condition):
            seen.append(condition)
            return residual

    model.network = Residual()
    torch.testing.assert_close(model(low), high, rtol=0, atol=1e-5)
    assert all(torch.equal(condition, 2 * low - 1) for condition in seen)
    assert len(seen) == 3
    assert float(model.loss(low, high)) == pytest.approx(0, abs=1e-6)
    model.gain = 0.25
    assert float(model.loss(low, high)) > 0.1
    model(low, steps=2, sampler="ddpm")
    assert len(seen) == 3 + 2 + 2


def test_the_schedule_is_kept_with_the_weights():
    model = ResidualSR(nn.Identity(), 2, alpha_bar=linear_schedule(7))
    assert torch.equal(model.state_dict()["alpha_bar"], linear_schedule(7))
    assert len(ResidualSR(nn.Identity(), 2).alpha_bar) == 100


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="predicted must be one of noise, clean, v, got 'epsilon'"):
        ResidualSR(nn.Identity(), 2, predicted="epsilon")
