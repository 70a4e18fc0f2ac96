import pytest
import timm
import torch
from timm.layers import SqueezeExcite
from timm.models._efficientnet_blocks import DepthwiseSeparableConv
from torch import nn

from foveal.evidence.nn.mobilenetv1 import ZOO, Full, Small, conv_mobilenet
from foveal.nn.mobilenetv1 import (
    DepthwiseSeparable,
    cost_ratio,
    depthwise_separable,
    depthwise_separable_reference,
    fold_,
    mobilenet,
    use_separable_,
)


def drawn(model):
    """Every weight and statistic drawn, so that each of them counts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim > 1:
                value.normal_(std=(2 / value[0].numel()) ** 0.5)
            elif value.ndim:
                value.uniform_(0.5, 1.5) if name.endswith(("weight", "running_var")) else value.normal_(std=0.1)
    return model.eval()


def test_a_hand_computed_case():
    x = torch.tensor([[[[1.0, -2.0]], [[3.0, 4.0]]]])
    depthwise = torch.zeros(2, 1, 3, 3)
    depthwise[0, 0, 1, 1] = 1  # the first channel passes, the second takes its right neighbour
    depthwise[1, 0, 1, 2] = 1
    out = depthwise_separable(x, depthwise, torch.tensor([[1.0, 10.0], [-1.0, 0.0]]))
    assert out.tolist() == [[[[41.0, 0.0]], [[0.0, 0.0]]]]


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 2), (5, 3)])
def test_it_is_the_sum_over_taps_and_channels(size, stride):
    torch.manual_seed(0)
    shapes = (2, 7, 9, 6), (7, 1, size, size), (3, 7), (7,), (3,)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    found = []
    for function in (depthwise_separable, depthwise_separable_reference):
        out = function(*tensors[:3], biases=tuple(tensors[3:]), stride=stride)
        found.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][1].abs().max() > 0


def test_without_relu_it_is_a_full_convolution_and_with_it_is_not():
    torch.manual_seed(0)
    x, depthwise, pointwise = torch.randn(2, 4, 5, 7), torch.randn(4, 1, 3, 3), torch.randn(6, 4)
    full = torch.conv2d(x, pointwise[..., None, None] * depthwise[:, 0], padding=1)
    torch.testing.assert_close(depthwise_separable(x, depthwise, pointwise, relu=False), full)
    assert not torch.allclose(depthwise_separable(x, depthwise, pointwise), full.relu(), atol=1e-2)


def test_the_module_is_the_operator_with_its_norms_folded():
    block, x = drawn(DepthwiseSeparable(5, 4, stride=2)), torch.randn(2, 5, 7, 8)
    before = block(x)
    assert fold_(block) is block
    biases = block.conv_dw.bias, block.conv_pw.bias
    found = depthwise_separable(x, block.conv_dw.weight, block.conv_pw.weight[..., 0, 0], biases=biases, stride=2)
    torch.testing.assert_close(found, before)
    torch.testing.assert_close(fold_(block)(x), before)  # a second time changes nothing


def test_timms_network_gives_the_same_logits():
    model = drawn(timm.create_model("mobilenetv1_100", num_classes=5))
    x = torch.randn(2, 3, 45, 33)
    before = model(x)
    assert before.std(0).min() > 1e-3
    assert use_separable_(model) is model
    assert sum(isinstance(module, DepthwiseSeparable) for module in model.modules()) == 13
    torch.testing.assert_close(model(x), before)
    model.blocks[3][1].conv_dw.weight.data.mul_(2)
    assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "replaced"),
    [
        ({"out_chs": 12}, True),
        ({"out_chs": 12, "dw_kernel_size": 5, "act_layer": nn.Hardswish}, True),
        ({"out_chs": 8, "noskip": True}, True),
        ({"out_chs": 8}, False),
        ({"out_chs": 12, "pw_act": False}, False),
        ({"out_chs": 12, "se_layer": SqueezeExcite}, False),
        ({"out_chs": 12, "group_size": 2}, False),
        ({"out_chs": 12, "dilation": 2}, False),
        ({"out_chs": 12, "stride": 2, "pad_type": "same"}, False),
        ({"out_chs": 12, "s2d": 1}, False),
    ],
)
def test_blocks_with_more_stay(options, replaced):
    model = drawn(nn.Sequential(DepthwiseSeparableConv(8, **{"pw_act": True, "act_layer": nn.ReLU, **options})))
    x = torch.randn(2, 8, 6, 8)
    before = model(x)
    assert isinstance(use_separable_(model)[0], DepthwiseSeparable) == replaced
    torch.testing.assert_close(model(x), before)


def test_channels_follow_alpha():
    with torch.device("meta"):
        model = mobilenet(0.25, in_channels=1, num_classes=0)
    assert [stage[-1].conv_pw.out_channels for stage in model.blocks] == [16, 32, 64, 128, 256]
    assert [stage[0].conv_dw.stride[0] for stage in model.blocks] == [1, 2, 2, 2, 2]
    assert model.conv_stem.weight.shape == (8, 1, 3, 3)
    assert model(torch.empty(2, 1, 64, 32, device="meta")).shape == (2, 256)


def test_the_cost_of_a_layer():
    assert cost_ratio(4, 1) == 1.25
    assert cost_ratio(512) == pytest.approx(1 / 512 + 1 / 9)


def test_the_twins_differ_in_their_blocks_only():
    x = torch.randn(2, 3, 32, 32)
    for block in (DepthwiseSeparable, Full):
        network = Small(block, 8)
        assert network(x).shape == (2, 10)
        assert [type(part) for part in list(network)[3:8]] == [block] * 5
    assert len({build()[0].out_channels for build in ZOO.rivals[:3]}) == 3
    with torch.device("meta"):
        full = conv_mobilenet()
        assert full(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)
    assert sum(isinstance(module, Full) for module in full.modules()) == 13
    assert not any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in full.modules())


def test_errors():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4; take 5"):
        DepthwiseSeparable(8, 8, kernel_size=4)
    with pytest.raises(ValueError, match="alpha must be above 0, got 0; the paper's are"):
        mobilenet(0)
    with pytest.raises(ValueError, match=r"block in training mode; call model.eval\(\) first"):
        fold_(DepthwiseSeparable(8, 8))
