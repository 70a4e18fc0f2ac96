import pytest
import timm
import torch
from torch import nn

from foveal.measure.cost import count_macs, count_parameters
from foveal.models.backbone.plainmamba import (
    PlainMambaBlock,
    plainmamba,
    plainmamba_l1,
    plainmamba_l2,
    plainmamba_l3,
)


@pytest.mark.parametrize(
    ("build", "depth", "count"),
    [(plainmamba_l1, 24, 7_551_656), (plainmamba_l2, 24, 26_145_832), (plainmamba_l3, 36, 50_956_456)],
)
def test_parameters_are_those_of_the_authors(build, depth, count):
    one, two = (count_parameters(build(depth=blocks)) for blocks in (1, 2))
    assert one + (depth - 1) * (two - one) == count


def test_macs_grow_as_the_pixels_do():
    model = plainmamba_l2(num_classes=0, depth=1, dim=16)
    small, large = (count_macs(model, (1, 3, side, side)) for side in (160, 320))
    assert large == 4 * small


def test_features_for_timm():
    arguments = {"dim": 8, "depth": 3, "state": 2, "patch_size": 8}
    model = timm.create_model("plainmamba_l1", features_only=True, out_indices=(0, 2), **arguments).eval()
    maps = model(torch.rand(1, 3, 20, 33))
    assert [tuple(found.shape) for found in maps] == [(1, 8, 3, 5)] * 2


def test_only_the_first_block_of_l1_convolves():
    model = plainmamba_l1(dim=8, depth=2, state=2)
    assert [block.convolve is None for block in model.blocks] == [False, True]
    assert all(block.convolve is None for block in plainmamba_l2(dim=8, depth=2, state=2).blocks)


def test_what_is_computed_does_not_hang_on_the_axis():
    """With a symmetric convolution and no directions, rows and columns are treated alike."""
    torch.manual_seed(0)
    block = PlainMambaBlock(8, state=2).double()
    with torch.no_grad():
        block.mixer.conv2d.weight.add_(block.mixer.conv2d.weight.transpose(2, 3).clone())
        block.mixer.scan.directions.zero_()
    picture = torch.rand(1, 8, 3, 5, dtype=torch.float64)
    one = block(picture.flatten(2).transpose(1, 2), (3, 5)).transpose(1, 2).unflatten(2, (3, 5))
    other = block(picture.transpose(2, 3).flatten(2).transpose(1, 2), (5, 3)).transpose(1, 2).unflatten(2, (5, 3))
    torch.testing.assert_close(one, other.transpose(2, 3))


def test_the_released_way_is_another():
    torch.manual_seed(0)
    paper, code = (plainmamba(8, 1, 0, 2, 4, num_classes=3, released=released).eval() for released in (False, True))
    nn.init.normal_(paper.blocks[0].mixer.scan.x_proj.weight)
    code.load_state_dict(paper.state_dict())
    x = torch.rand(1, 3, 16, 12)
    assert (paper(x) - code(x)).abs().max() > 1e-6
