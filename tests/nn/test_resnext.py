import pytest
import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from foveal.evidence.nn import resnext as evidence
from foveal.nn.resnext import (
    ResNeXtBlock,
    early_concatenation,
    folded,
    grouped_convolution,
    matched_width,
    split_transform_sum,
    use_aggregated_,
)


def drawn(model):
    """Every weight and statistic drawn, so that each of them counts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            elif value.ndim:
                value.uniform_(0.5, 1.5) if name.endswith(("weight", "running_var")) else value.normal_(std=0.1)
    return model.eval()


def tensors(cardinality, width, *, size=3):
    torch.manual_seed(0)
    inner = cardinality * width
    shapes = (2, 5, 7, 6), (inner, 5), (inner, width, size, size), (4, inner), (inner,), (inner,), (4,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_a_hand_computed_case():
    x = torch.tensor([[[[1.0]], [[2.0]]]])
    reduce, expand = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[10.0, 1000.0]])
    transform = torch.zeros(2, 1, 3, 3)
    transform[:, 0, 1, 1] = torch.tensor([2.0, 5.0])
    # the second path is cut off by the ReLU: 1 - 2 < 0
    assert split_transform_sum(x, reduce, transform, expand).item() == 60
    biases = torch.tensor([0.0, 1.5]), torch.tensor([-1.0, 0.0]), torch.tensor([0.25])
    assert split_transform_sum(x, reduce, transform, expand, biases=biases).item() == 50 + 2500 + 0.25


@pytest.mark.parametrize(("cardinality", "width", "size", "stride"), [(1, 3, 3, 1), (3, 2, 3, 2), (4, 1, 5, 3)])
@pytest.mark.parametrize("form", [early_concatenation, grouped_convolution])
def test_the_forms_are_the_sum_of_bottlenecks(form, cardinality, width, size, stride):
    found = []
    for function in (form, split_transform_sum):
        one = tensors(cardinality, width, size=size)
        out = function(*one[:4], biases=tuple(one[4:]), stride=stride)
        found.append((out, *torch.autograd.grad(out.square().sum(), one)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert theirs.abs().max() > 0


@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (12, 2)])
@pytest.mark.parametrize("form", [split_transform_sum, early_concatenation, grouped_convolution])
def test_the_module_is_the_forms_with_norms_folded(form, channels, stride):
    block, x = drawn(ResNeXtBlock(8, channels, cardinality=3, width=2, stride=stride)), torch.randn(2, 8, 7, 5)
    shortcut = x if channels == 8 else block.downsample(x)
    torch.testing.assert_close((form(x, **folded(block)) + shortcut).relu(), block(x))


def test_timms_network_gives_the_same_logits():
    model = drawn(
        ResNet(Bottleneck, (1, 2, 1, 1), num_classes=5, cardinality=4, base_width=16, channels=(8, 8, 16, 16))
    )
    x = torch.randn(2, 3, 65, 47)
    before = model(x)
    assert before.std(0).min() > 1e-3
    assert use_aggregated_(model) is model
    assert sum(isinstance(module, ResNeXtBlock) for module in model.modules()) == 5
    torch.testing.assert_close(model(x), before)
    assert model.layer2[1].conv2.groups == 4
    model.layer2[1].conv2.weight.data.mul_(3)
    assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_layer": timm.layers.SqueezeExcite},
        {"reduce_first": 2},
        {"dilation": 2},
        {"drop_path": timm.layers.DropPath(0.1)},
        {"act_layer": nn.SiLU},
        {"aa_layer": nn.AvgPool2d, "stride": 2, "downsample": nn.Conv2d(64, 64, 1, 2)},
    ],
)
def test_blocks_with_more_stay(options):
    model = nn.Sequential(Bottleneck(64, 16, **options))
    assert type(use_aggregated_(model)[0]) is Bottleneck


def test_widths_of_table_2():
    assert [matched_width(paths) for paths in (1, 2, 4, 8, 32)] == [64, 40, 24, 14, 4]


def test_the_networks_of_the_claims():
    x = torch.randn(2, 3, 16, 16)
    assert evidence.eight_paths()(x).shape == (2, 10)
    assert evidence._apart(evidence.eight_paths, evidence.one_path) < 0.02
    assert evidence._apart(evidence.two_paths, evidence.wider) < 0.01
    assert 1.8 < evidence._cost(evidence.two_paths)[1] / evidence._cost(evidence.one_path)[1] < 2.2
    assert evidence._apart(evidence.wider, evidence.one_path) > 0.6  # a wrong answer is seen
    with torch.device("meta"):
        groups = [[m.conv2.groups for m in build() if isinstance(m, ResNeXtBlock)] for build in evidence.NETWORKS]
    assert groups == [[1] * 3, [8] * 3, [2] * 3, [1] * 6, [1] * 3]


def test_errors():
    with pytest.raises(ValueError, match="cardinality must be at least 1, got 0"):
        matched_width(0)
    with pytest.raises(ValueError, match="cardinality 40 leaves a path less than a channel; take a lower one"):
        matched_width(40, dim=8, width=2)
    with pytest.raises(ValueError, match="cardinality and width must be at least 1, got 2 and 0"):
        ResNeXtBlock(8, 8, cardinality=2, width=0)
    with pytest.raises(ValueError, match=r"block in training mode; call block.eval\(\) first"):
        folded(ResNeXtBlock(8, 8, cardinality=2, width=2))
