import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.ops.xnor import sign
from foveal.shrink.quantize.fake import QuantizedLayer, quantized_layers
from foveal.shrink.quantize.packed import load_packed_, packed_bytes, save_packed
from foveal.shrink.quantize.xnor_net import (
    BinaryWeight,
    PackedXnorLayer,
    XnorLayer,
    XNORNet,
    filter_scales,
    input_scales,
    packed_,
    speed_up,
    weight_signs,
    xnor_block,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        xnor_block(nn.Conv2d(6, 9, 3, stride=2, padding=1, bias=False), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(9 * 2 * 2, 5),
        nn.Linear(5, 2),
    )


def pictures():
    return drawn(4, 3, 10, 9, seed=1)


def test_scales_of_filters_and_inputs_by_hand():
    weight = torch.tensor([[[[1.0, -3.0]]], [[[0.0, 0.5]]]])
    assert filter_scales(weight).flatten().tolist() == [2.0, 0.25]
    assert BinaryWeight()(weight).flatten().tolist() == [2.0, -2.0, 0.25, 0.25]
    x = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]])
    assert input_scales(x, (1, 1), 1, 0).tolist() == [[[[2.0, 1.0]]]]
    assert input_scales(x, (3, 3), 1, 1).allclose(torch.tensor(3 / 9))


def test_the_gradient_is_equation_12():
    weight = (2 * drawn(3, 2, 5)).requires_grad_()
    g = drawn(3, 2, 5, seed=1)
    (BinaryWeight()(weight) * g).sum().backward()
    alpha = weight.detach().abs().mean((1, 2), keepdim=True)
    torch.testing.assert_close(weight.grad, g * (1 / 10 + alpha * (weight.detach().abs() <= 1)))
    assert set(weight_signs(weight).flatten().tolist()) == {1.0, -1.0}
    assert weight_signs(torch.zeros(1, 4, requires_grad=True)).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("scale_inputs", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_the_formula_with_all_gradients(stride, scale_inputs):
    conv = nn.Conv2d(7, 5, 3, stride, 1)
    layer = XnorLayer(conv, scale_inputs=scale_inputs)
    x = drawn(2, 7, 6, 5).requires_grad_()
    y = layer(x)
    signs = sign(x)
    wanted = F.conv2d(signs, BinaryWeight()(conv.weight), None, stride, 1)
    if scale_inputs:
        box = torch.full((1, 1, 3, 3), 1 / 9)
        wanted = wanted * F.conv2d(x.abs().mean(1, keepdim=True), box, None, stride, 1)
    wanted = wanted + conv.bias[:, None, None]
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    g, leaves = drawn(*y.shape, seed=2), [x, conv.weight, conv.bias]
    ours, theirs = (torch.autograd.grad((out * g).sum(), leaves) for out in (y, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_linear_layer_is_the_formula():
    linear = nn.Linear(70, 5)
    x = drawn(2, 3, 70)
    wanted = F.linear(sign(x), BinaryWeight()(linear.weight)) * x.abs().mean(-1, keepdim=True) + linear.bias
    torch.testing.assert_close(XnorLayer(linear)(x), wanted, rtol=1e-5, atol=1e-5)


def test_the_step_leaves_the_first_and_the_last_layer_real():
    model = XNORNet().apply(network())
    assert [type(m).__name__ for m in model if not isinstance(m, nn.Flatten)] == [
        "Conv2d", "Sequential", "XnorLayer", "Linear",
    ]  # fmt: skip
    assert isinstance(model[1][1], XnorLayer)
    assert [type(layer) for _, layer in quantized_layers(XNORNet(inputs=False).apply(network()))] == [
        QuantizedLayer
    ] * 2


def test_bwn_keeps_its_inputs_real():
    model, real = XNORNet(inputs=False).apply(network()), network()
    with torch.no_grad():
        for layer in (real[1][1], real[3]):
            layer.weight.copy_(layer.weight.abs().flatten(1).mean(1).view(-1, *[1] * (layer.weight.ndim - 1)) *
                               sign(layer.weight))  # fmt: skip
    torch.testing.assert_close(model(pictures()), real(pictures()))


@pytest.mark.parametrize("inputs", [True, False])
def test_every_parameter_learns(inputs):
    model = XNORNet(inputs=inputs).apply(network())
    F.cross_entropy(model(pictures()), torch.tensor([0, 1, 0, 1])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("step", [XNORNet(), XNORNet(scale_inputs=False)], ids=str)
def test_packed_layers_compute_the_same_from_a_32nd_of_the_bytes(step):
    model = step.apply(network()).eval()
    before = model(pictures())
    weights = sum(layer.layer.weight.numel() for _, layer in quantized_layers(model))
    assert packed_(model) is model
    torch.testing.assert_close(model(pictures()), before)
    packed = [m for m in model.modules() if isinstance(m, PackedXnorLayer)]
    assert [tuple(m.words.shape) for m in packed] == [(9, 3, 3, 1), (5, 1)]
    assert weights == 9 * 6 * 9 + 5 * 36
    wide = PackedXnorLayer(XnorLayer(nn.Conv2d(64, 8, 3)))
    assert wide.words.numel() * 8 == 8 * 64 * 9 * 4 / 32


@pytest.mark.parametrize("inputs", [True, False])
def test_a_packed_file_gives_the_same_network(inputs, tmp_path):
    model = XNORNet(inputs=inputs).apply(network()).eval()
    save_packed(model, tmp_path / "model.safetensors")
    again = load_packed_(XNORNet(inputs=inputs).apply(network(5)), tmp_path / "model.safetensors")
    assert torch.equal(again(pictures()), model(pictures()))
    if inputs:
        torch.testing.assert_close(packed_(again)(pictures()), model(pictures()))
    layer = dict(quantized_layers(model))["3"]
    assert packed_bytes(layer) == -(-5 * 36 // 8) + 4 * 5 + 4 * 5  # bits, scales, bias


def test_the_theoretical_gain_is_the_papers():
    assert speed_up(256) == pytest.approx(62.27, abs=0.005)
    assert speed_up(3, 1, word=32) == pytest.approx(96 / 35)


def test_what_cannot_be_binary_raises():
    for words in ({"groups": 2}, {"dilation": 2}, {"padding": (0, 1)}, {"padding": "same"}, {"stride": (1, 2)}):
        with pytest.raises(
            ValueError, match="an xnor convolution has one group, no dilation, zero padding and the same"
        ):
            XnorLayer(nn.Conv2d(4, 4, 3, **words))
    with pytest.raises(ValueError, match="Sequential has no xnor layer to pack; apply XNORNet"):
        packed_(network())
    with pytest.raises(ValueError, match="the model is quantised already"):
        XNORNet().apply(XNORNet().apply(network()))
