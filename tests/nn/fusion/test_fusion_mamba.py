import pytest
import torch
import torch.nn.functional as F

from foveal.nn.fusion.fusion_mamba import DualStateFusion, FusionMamba, swap_channels
from foveal.ops import use_backend


@pytest.mark.parametrize("dim", [4, 8, 7])
@pytest.mark.parametrize("parts", [2, 4])
def test_swapping_twice_changes_nothing(dim, parts):
    x, y = torch.randn(2, 3, dim, 5, 2)
    once = swap_channels(x, y, parts=parts)
    back = swap_channels(*once, parts=parts)
    assert torch.equal(back[0], x)
    assert torch.equal(back[1], y)
    assert not torch.equal(once[0], x)


def test_the_second_and_the_fourth_part_change_sides():
    x, y = torch.zeros(1, 8), torch.ones(1, 8)
    assert swap_channels(x, y)[0].tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]
    assert swap_channels(x, y)[1].tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]]


def test_the_deep_part_is_the_formula_on_plain_scans():
    torch.manual_seed(0)
    block, streams = DualStateFusion(6, state=3), torch.randn(2, 2, 6, 3, 5)
    states, gates = [], []
    for i, stream in enumerate(streams):
        u, z = block.in_proj[i](block.norm[i](stream)).chunk(2, 1)
        with use_backend("reference"):
            states.append(block.out_norm[i](block.s6.along(F.silu(block.conv[i](u)))))
        gates.append(F.silu(z))
    found = block(*streams)
    for i, stream in enumerate(streams):
        wanted = stream + block.out_proj[i](states[i] * gates[i] + gates[i] * states[1 - i])
        torch.testing.assert_close(found[i], wanted, rtol=0, atol=1e-5)


def test_without_depth_the_swapped_streams_are_added():
    torch.manual_seed(0)
    block, (x, y) = FusionMamba(8, depth=0, state=2), torch.randn(2, 1, 8, 2, 3)
    for mix in block.shallow:
        torch.nn.init.zeros_(mix.out_proj.weight)
    found, swapped = block(x, y), swap_channels(x, y)
    torch.testing.assert_close(found[0], x + swapped[0])
    torch.testing.assert_close(found[1], y + swapped[1])


def test_a_far_pixel_of_the_other_stream_is_heard():
    torch.manual_seed(0)
    block, (x, y) = FusionMamba(8, depth=1, state=2), torch.randn(2, 1, 8, 6, 6)
    y.requires_grad_()
    block(x, y)[0][0, :, 0, 0].sum().backward()
    assert y.grad[0, :, 5, 5].abs().max() > 0
