import pytest
import torch
from torch import nn

from foveal.measure.saved import saved_bytes
from foveal.models.dense.rev_mbconv_unet import InvertedBottleneck, RevMBConvUNet, stage
from foveal.nn.reversible import inverse

TINY = {"dim": 4, "depths": (2, 1, 1), "expansion": 2}


def network(**words):
    torch.manual_seed(0)
    return RevMBConvUNet(**{**TINY, **words}).double()


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("sides", [(8, 4, 12), (5, 7, 3), (1, 1, 1)])
def test_volumes_of_any_sides(sides):
    y = network(num_classes=5)(drawn(2, 4, *sides))
    assert y.shape == (2, 5, *sides)
    assert y.isfinite().all()


def test_gradients_are_those_of_the_plain_network():
    found = []
    for store in (False, True):
        model, x = network(store=store), drawn(1, 4, 5, 6, 4).requires_grad_()
        y = model(x)
        y.square().mean().backward()
        found.append([y.detach(), x.grad, *(value.grad for value in model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("axes", [2, 3])
def test_a_stage_runs_backward(axes):
    torch.manual_seed(0)
    blocks, x = stage(8, 3, expansion=3, axes=axes).double(), drawn(1, 8, *(5, 6, 4)[:axes])
    with torch.no_grad():
        y = blocks(x)
        torch.testing.assert_close(inverse(y, blocks.pairs), x, rtol=0, atol=1e-11)
    assert (y - x).abs().max() > 0.1


def test_a_bottleneck_layer_by_layer():
    torch.manual_seed(0)
    block, x = InvertedBottleneck(6, expansion=4).double(), drawn(1, 6, 3, 4, 5)
    assert block.expand.weight.shape == (24, 6, 1, 1, 1)
    assert block.depthwise.weight.shape == (24, 1, 3, 3, 3)
    assert block.project.weight.shape == (6, 24, 1, 1, 1)
    y = block.norm2(block.depthwise(nn.functional.silu(block.norm1(block.expand(x)))))
    torch.testing.assert_close(block(x), block.norm3(block.project(nn.functional.silu(y))))
    # each value follows from its 3×3×3 voxels and the statistics of groups alone
    assert [norm.num_groups for norm in (block.norm1, block.norm2, block.norm3)] == [8, 8, 6]


def test_blocks_cost_nothing_to_keep():
    x, found = drawn(1, 4, 4, 4, 8), []
    for depths in ((1, 1), (3, 2)):
        model = network(depths=depths)
        found.append(saved_bytes(lambda model=model: model(x), model.parameters()))
    assert found[0] == found[1]
    plain = network(depths=(3, 2), store=True)
    assert saved_bytes(lambda: plain(x), plain.parameters()) > 5 * found[0]


def test_what_cannot_be_built_is_told():
    with pytest.raises(ValueError, match="axes must be 2 for pictures or 3 for volumes, got 1"):
        RevMBConvUNet(axes=1)
    with pytest.raises(ValueError, match="dim must be even, got 5; each half of the channels changes the other"):
        RevMBConvUNet(dim=5)
