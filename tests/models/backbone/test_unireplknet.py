import pytest
import torch
from torch import nn

from foveal.evidence.models.backbone.unireplknet import TWIN, Large, drawn, half, large
from foveal.export.deployable import Foldable
from foveal.models.backbone.unireplknet import BRANCHES, DilatedReparam, UniRepLKNet, from_authors, merged_kernel
from foveal.shrink.fold.step import Fold

SMALL = {"dims": (4, 8), "kernel_sizes": ((3, 7), (9, 5)), "num_classes": 3}


def small():
    return UniRepLKNet(**SMALL)


@pytest.mark.parametrize("size", BRANCHES)
def test_all_branches_fit_and_are_one_kernel(size):
    torch.manual_seed(0)
    layer, x = DilatedReparam(3, size).double().eval(), torch.randn(2, 3, size, 8, dtype=torch.float64)
    for norm in layer.norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    merged = layer.fold()
    assert merged.kernel_size == (size, size)
    torch.testing.assert_close(merged(x), layer(x))


def test_gradients_pass_through_the_merged_kernel():
    torch.manual_seed(0)
    large, small = torch.randn(2, 1, 7, 7, requires_grad=True), torch.randn(2, 1, 3, 3, requires_grad=True)
    x = torch.randn(1, 2, 9, 5, requires_grad=True)
    merged = torch.conv2d(x, merged_kernel(large, [small], [3]), padding=3, groups=2)
    apart = torch.conv2d(x, large, padding=3, groups=2) + torch.conv2d(x, small, padding=3, dilation=3, groups=2)
    inputs = [x, large, small]
    for ours, theirs in zip(
        torch.autograd.grad(merged.square().sum(), inputs),
        torch.autograd.grad(apart.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_branch_leaves_the_kernel():
    large = torch.randn(2, 1, 5, 5)
    assert torch.equal(merged_kernel(large, [], []), large)
    assert torch.equal(
        merged_kernel(large, [torch.ones(2, 1, 3, 3)], [2]) - large != 0, _every_second().expand(2, 1, 5, 5)
    )


def _every_second():
    even = torch.arange(5) % 2 == 0
    return even[:, None] & even


def test_a_branch_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a branch must fit into 5×5 pixels, got 7×7: 3 taps at dilation 3"):
        merged_kernel(torch.zeros(1, 1, 5, 5), [torch.zeros(1, 1, 3, 3)], [3])


def test_a_folded_network_gives_the_same_without_branches_and_norms():
    model, x = drawn(small), torch.randn(2, 3, 37, 50)
    before = model.state_dict()["stages.1.2.fc2.weight"].clone()
    folded = model.fold()
    assert isinstance(model, Foldable)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded.fold()(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, (DilatedReparam, nn.BatchNorm2d)) for module in folded.modules())
    names = set(folded.state_dict())
    assert not any(name.endswith(("gamma", "grn.shift")) for name in names)
    assert torch.equal(model.state_dict()["stages.1.2.fc2.weight"], before)  # a copy was folded


def test_the_step_folds_it():
    model, x = drawn(small), torch.randn(2, 3, 16, 16)
    folded = Fold().apply(model, x)
    assert not any(isinstance(module, DilatedReparam) for module in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_block_is_the_formula():
    model = drawn(small).double()
    block, x = model.stages[0][0], torch.randn(2, 4, 5, 3, dtype=torch.float64)
    z = block.norm(block.dwconv(x))
    excited = torch.relu(block.se.down(z.mean((2, 3), keepdim=True)))
    z = z * torch.sigmoid(block.se.up(excited))
    # (B, H·W, 4C)
    h = nn.functional.gelu(z.flatten(2).transpose(1, 2) @ block.fc1.weight.mT + block.fc1.bias)
    norms = h.square().sum(1, keepdim=True).sqrt()
    h = h * (1 + block.grn.scale * norms / norms.mean(2, keepdim=True)) + block.grn.shift
    y = block.norm2((h @ block.fc2.weight.mT).transpose(1, 2).unflatten(2, (5, 3)))
    torch.testing.assert_close(block(x), x + block.gamma[:, None, None] * y, rtol=1e-5, atol=1e-6)


def test_pruning_takes_the_norm_of_the_last_stage():
    model = small()
    assert model.prune_intermediate_layers([0]) == [0]
    assert isinstance(model.head_norm, nn.Identity)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 4)


def test_names_of_the_authors():
    model = UniRepLKNet((4, 8), ((3,), (13,)))
    lark = ["lk_origin.weight", "origin_bn.bias", "dil_conv_k7_2.weight", "dil_bn_k3_5.running_var"]
    theirs = [f"stages.1.0.dwconv.{name}" for name in lark]
    theirs += [f"stages.0.0.{name}" for name in ("dwconv.weight", "norm.bias", "se.up.bias", "gamma", "pwconv1.1.bias")]
    theirs += ["stages.1.0.pwconv2.0.weight", "stages.1.0.pwconv2.2.bias", "downsample_layers.0.4.bias", "norm.weight"]
    theirs += ["downsample_layers.1.0.weight", "stages.1.0.act.1.gamma", "stages.1.0.act.1.beta", "head.bias"]
    found = from_authors({name: torch.zeros(1, 1, 1, 3) for name in theirs})
    assert set(found) <= set(model.state_dict())
    assert found["stages.1.2.grn.shift"].shape == (3,)


def test_half_of_a_map():
    even = torch.ones(6, 6)
    assert half(even, 2.5) == pytest.approx(4 + 2 * (18 - 16) / (36 - 16))
    point = torch.zeros(5, 5)
    point[2, 2] = 1
    assert half(point, 2.0) == pytest.approx(0.5)


def test_the_operator_of_the_trial_is_folded_when_it_does_not_train():
    torch.manual_seed(0)
    layer, x = Large(3), torch.randn(2, 3, 9, 9)
    layer(x)
    layer.eval()
    assert set(layer.state_dict()) == set(DilatedReparam(3, 13).state_dict())
    folded = layer(x)
    layer.folded = []
    torch.testing.assert_close(folded, layer(x), rtol=1e-4, atol=1e-5)


def test_the_network_of_the_trial_has_a_large_kernel_in_each_stage():
    network, x = large(8), torch.randn(2, 3, 32, 32)
    assert network(x).shape == TWIN()(x).shape == (2, 10)
    kinds = [type(block.mixer).__name__ for stage in (network.stage1, network.stage2) for block in stage]
    assert kinds == ["Large", "Conv2d"] * 2


def test_sizes():
    with pytest.raises(ValueError, match="kernel_size must be one of 5, 7, 9, 11, 13, 15, 17, got 6"):
        DilatedReparam(4, 6)
    with pytest.raises(ValueError, match="dims and kernel_sizes must have the same length, got 2 and 1"):
        UniRepLKNet((4, 8), ((3,),))
    with pytest.raises(ValueError, match="kernel_sizes must be among 3, 5, 7, 9, 11, 13, 15, 17, got 8"):
        UniRepLKNet((4,), ((3, 8),))
