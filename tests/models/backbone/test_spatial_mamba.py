import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.models.backbone.spatial_mamba import (
    METHOD,
    SpatialMamba,
    StateFusion,
    StructureAwareMixer,
    spatial_mamba_tiny,
)


@pytest.mark.parametrize("claim", [c for c in METHOD.claims if c.kind == "equal"], ids=lambda c: c.says[:20])
def test_claims_that_cost_nothing_hold(claim):
    ours, theirs = claim.check["ours"](), claim.check["theirs"]()
    assert (ours - theirs).abs().max() <= claim.check["tolerance"] * theirs.abs().max()


@pytest.mark.parametrize("size", [(12, 9), (3, 4), (1, 1)])
def test_fusion_is_three_convolutions_over_a_repeated_border(size):
    torch.manual_seed(0)
    fusion, h = StateFusion(4), torch.randn(2, 4, *size)
    nn.init.normal_(fusion.kernels)
    nn.init.normal_(fusion.alpha)
    want = sum(
        fusion.alpha[i] * F.conv2d(F.pad(h, (d,) * 4, mode="replicate"), fusion.kernels[i], dilation=d, groups=4)
        for i, d in enumerate((1, 3, 5))
    )
    torch.testing.assert_close(fusion(h), want, rtol=0, atol=1e-5)
    # one convolution
    torch.testing.assert_close(fusion.eval()(h), want, rtol=0, atol=1e-5)
    fusion.as_one = False
    assert torch.equal(fusion(h), fusion.train()(h))


def test_fusion_begins_as_a_sum_and_can_be_made_the_identity():
    fusion, h = StateFusion(2), torch.rand(1, 2, 6, 7)
    torch.testing.assert_close(fusion(torch.ones_like(h)), torch.full_like(h, 27))
    fusion.make_identity_()
    assert torch.equal(fusion(h), h)


@pytest.mark.parametrize("size", [(32, 32), (57, 41), (5, 70)])
def test_any_size(size):
    model = spatial_mamba_tiny(dim=8, depths=(1, 1), num_classes=4).eval()
    assert model(torch.rand(1, 3, *size)).shape == (1, 4)


def test_another_mixer_takes_its_place():
    model = SpatialMamba(dim=8, depths=(1, 1), mixer=lambda dim: nn.Conv2d(dim, dim, 1))
    assert not any(isinstance(m, StructureAwareMixer) for m in model.modules())


def test_later_positions_reach_earlier_ones_through_the_fusion_alone():
    torch.manual_seed(0)
    mixer, x = StructureAwareMixer(4).eval(), torch.randn(1, 4, 9, 9, requires_grad=True)
    for fused in (True, False):
        if not fused:
            mixer.fusion.make_identity_()
        x.grad = None
        mixer(x)[..., 2, 2].sum().backward()
        # the depthwise convolution sees one row further, the fusion five
        assert bool(x.grad[0, :, 6, 2].abs().max() > 0) is fused
