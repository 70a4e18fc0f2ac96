import pytest
import timm
import torch

from foveal.measure.cost import count_macs, count_parameters
from foveal.models.backbone.vim import VimBlock, vim, vim_base, vim_small, vim_tiny


@pytest.mark.parametrize(("build", "count"), [(vim_tiny, 7_148_008), (vim_small, 25_796_584), (vim_base, 97_598_440)])
def test_parameters_are_those_of_the_authors(build, count):
    one, two = (count_parameters(build(depth=depth)) for depth in (1, 2))
    assert one + 23 * (two - one) == count


def test_macs_grow_as_the_tokens_do():
    model = vim_tiny(num_classes=0, depth=2, dim=16)
    small, large = (count_macs(model, (1, 3, side, side)) for side in (160, 320))
    assert large / small == pytest.approx(4, rel=0.01)


def test_features_for_timm():
    arguments = {"dim": 8, "depth": 3, "state": 2, "patch_size": 8}
    model = timm.create_model("vim_small", features_only=True, out_indices=(0, 2), **arguments)
    maps = model(torch.rand(1, 3, 20, 33))
    assert [tuple(found.shape) for found in maps] == [(1, 8, 3, 5)] * 2
    assert model.feature_info.channels() == [8, 8]
    assert model.feature_info.reduction() == [8, 8]


def test_every_patch_reaches_the_class_token():
    torch.manual_seed(0)
    model = vim(8, 2, 2, 4, num_classes=3).double()
    x = torch.rand(1, 3, 12, 20, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    patches = x.grad.unfold(2, 4, 4).unfold(3, 4, 4).abs().amax((1, 4, 5))
    assert patches.shape == (1, 3, 5)
    assert patches.min() > 0


def test_a_block_can_be_dropped():
    torch.manual_seed(0)
    block, tokens = VimBlock(8, state=2, drop_path=0.999999), torch.rand(2, 5, 8)
    assert torch.equal(block(tokens), tokens)
    assert not torch.equal(block.eval()(tokens), tokens)


def test_later_blocks_are_dropped_more():
    model = vim_tiny(dim=8, depth=3, state=2, drop_path=0.2)
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx([0, 0.1, 0.2])
