import pytest
import torch
import torchvision
from torch import nn

from foveal.nn.dcnv2 import DCNv2, dcnv2_, learning_rates, modulated_conv, modulated_conv_reference

LARGE = 40.0  # whose sigmoid is 1 in float32


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("shape", "stride", "padding"), [((2, 3, 7, 5), 1, 1), ((1, 1, 1, 3), 1, 1), ((1, 2, 9, 6), 2, 0)]
)
def test_it_equals_torchvision_and_the_plain_sum(shape, stride, padding):
    down, across = ((n + 2 * padding - 3) // stride + 1 for n in shape[2:])
    leaves = [drawn(*shape), drawn(shape[0], 27, down, across), drawn(4, shape[1], 3, 3), drawn(4)]
    leaves = [t.double().requires_grad_() for t in leaves]
    x, side, weight, bias = leaves

    def both(y):
        return [y, *torch.autograd.grad(y.sin().sum(), leaves)]

    words = {"stride": stride, "padding": padding}
    ours = both(modulated_conv(x, side, weight, bias, **words))
    plain = both(modulated_conv_reference(x, side, weight, bias, **words))
    mask = side[:, 18:].sigmoid()
    theirs = both(torchvision.ops.deform_conv2d(x, side[:, :18], weight, bias, mask=mask, **words))
    for a, b, c in zip(ours, plain, theirs, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 4)])
def test_it_starts_as_half_a_convolution_and_with_a_full_mask_is_one(stride, dilation, groups):
    torch.manual_seed(0)
    layer = DCNv2(4, 8, stride=stride, dilation=dilation, groups=groups, offset_groups=2)
    x = drawn(2, 4, 9, 7)
    bias = layer.conv.bias[:, None, None]
    torch.testing.assert_close(layer(x) - bias, (layer.conv(x) - bias) / 2)
    nn.init.constant_(layer.side.bias[36:], LARGE)
    torch.testing.assert_close(layer(x), layer.conv(x))
    nn.init.constant_(layer.side.bias[:36], 0.5)
    assert not torch.allclose(layer(x), layer.conv(x), atol=1e-2)


def test_offsets_and_factors_are_learnt_from_the_start():
    torch.manual_seed(0)
    layer = DCNv2(3, 3)
    layer(drawn(2, 3, 6, 6)).square().sum().backward()
    assert layer.side.weight.grad.flatten(1).abs().amax(1).min() > 0


def test_side_convolutions_learn_at_a_tenth():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), DCNv2(2, 2))
    rest, slow = learning_rates(model, 0.5)
    assert (rest["lr"], slow["lr"]) == (0.5, 0.05)
    assert {id(p) for p in slow["params"]} == {id(p) for p in model[1].side.parameters()}
    assert len(rest["params"]) + len(slow["params"]) == len(list(model.parameters()))
    torch.optim.SGD([rest, slow])


def test_only_3x3_convolutions_of_the_stages_are_replaced_and_keep_their_weights():
    torch.manual_seed(0)
    stage = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 4, 3, padding=2, dilation=2)
    )
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), stage)
    before, x = [p.clone() for p in model.parameters()], drawn(2, 1, 8, 8)
    shape = model(x).shape
    assert dcnv2_(model, ("1",), offset_groups=2) is model
    assert [type(m) for m in (model[0], *model[1])] == [nn.Conv2d, nn.Conv2d, DCNv2, DCNv2]
    assert model(x).shape == shape
    kept = [p for name, p in model.named_parameters() if "side" not in name]
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    with pytest.raises(ValueError, match="3×3 convolutions padded to keep their size, '1' holds none"):
        dcnv2_(model, ("1",))


def test_all_3x3_convolutions_of_the_last_stages_of_a_resnet_are_replaced():
    with torch.device("meta"):
        model = torchvision.models.resnet50()
        dcnv2_(model, ("layer2", "layer3", "layer4"))
    assert sum(isinstance(m, DCNv2) for m in model.modules()) == 4 + 6 + 3


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: DCNv2(4, 4, 2), "kernel_size must be odd, got 2; take 3"),
        (lambda: DCNv2(4, 4, offset_groups=3), "offset_groups must divide the 4 channels, got 3"),
        (lambda: learning_rates(nn.ReLU(), 1.0), "holds a DCNv2, got ReLU without one"),
        (
            lambda: modulated_conv(torch.zeros(1, 1, 3, 3), torch.zeros(1, 18, 1, 1), torch.zeros(1, 1, 3, 3)),
            "3·9 channels for each group, two offsets and a factor for each tap, got 18",
        ),
    ],
)
def test_what_does_not_fit_raises(build, text):
    with pytest.raises(ValueError, match=text):
        build()
