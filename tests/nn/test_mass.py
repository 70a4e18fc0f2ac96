import pytest
import torch
import torch.nn.functional as F

from foveal.measure.cost import count_macs
from foveal.nn.mass import MASS, rotary
from foveal.nn.neighbourhood import neighbours


def test_rotary_leaves_only_distances():
    torch.manual_seed(0)
    vectors = torch.randn(2, 1, 1, 1, 8)
    query, key = (rotary(v.expand(-1, -1, 15, -1), 3, 5)[0, 0] for v in vectors)
    scores = query @ key.t()
    # position 5·row + column; the same step down and to the right everywhere
    assert torch.allclose(scores[0, 6], scores[8, 14], atol=1e-5)
    assert torch.allclose(scores[1, 7], scores[2, 8], atol=1e-5)
    assert not torch.allclose(scores[0, 1], scores[0, 5], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_turned_by_exact_angles(dtype):
    """Only the result is rounded, so that angles far from the corner are as exact as those near it."""
    x = torch.randn(1, 2, 32 * 32, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    turned = rotary(x, 32, 32)
    assert turned.dtype == dtype
    assert (turned.double() - rotary(x.double(), 32, 32)).abs().max() <= torch.finfo(dtype).eps * x.abs().max() * 1.5


@pytest.mark.parametrize("attend_all", [False, True])
@pytest.mark.parametrize("size", [(7, 7), (12, 9), (1, 2)])
def test_any_size_and_every_parameter(size, attend_all):
    torch.manual_seed(0)
    mixer, x = MASS(8, 2, 3, attend_all=attend_all), torch.randn(2, 8, *size)
    y = mixer(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_maps_are_used_on_the_states():
    torch.manual_seed(0)
    mixer, states = MASS(8, 2, 3), torch.randn(1, 8, 5, 6)
    near = [neighbours(5, 6, 3)] * 2
    maps = [torch.rand(1, 1, 30, 9).softmax(-1) for _ in near]
    with torch.no_grad():
        mixer.heads.weight.copy_(torch.eye(2)[..., None, None])
        mixer.heads.bias.zero_()
        ours = mixer.gathered(states, maps, near)
    at = near[0].index[14]
    want = [
        (states[0, part].flatten(1)[:, at] * maps[k][0, 0, 14]).sum(1) for k, part in ((0, slice(4)), (1, slice(4, 8)))
    ]
    torch.testing.assert_close(ours.flatten(2)[0, :, 14], torch.cat(want))


def test_without_aggregation_it_costs_one_sum_less():
    with_maps, without = (count_macs(MASS(8, 2, 3, aggregate=a), (1, 8, 6, 5)) for a in (True, False))
    assert with_maps - without == 8 * 30 * 9


def test_the_bias_between_all_positions_is_kept_at_its_own_size():
    torch.manual_seed(0)
    bias = torch.randn(1, 2, 49, 49)
    assert torch.equal(F.interpolate(bias, (49, 49), mode="bicubic", align_corners=False), bias)
