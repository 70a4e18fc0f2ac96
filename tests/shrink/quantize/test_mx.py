import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.quantize.fake import Quantizer, quantized_
from foveal.shrink.quantize.mx import (
    FORMATS,
    MXQuantizer,
    decode,
    direct_cast_,
    encode,
    mx,
    mx_bytes,
    mx_reference,
)
from foveal.shrink.quantize.mx_training import MXLayer, train_in_mx_
from foveal.shrink.quantize.packed import load_packed_, packed_bytes, save_packed

formats = pytest.mark.parametrize("name", FORMATS)


def drawn(*shape):
    torch.manual_seed(2)
    return torch.randn(shape) * torch.exp2(torch.randint(-9, 9, shape).float())


def bits(x):
    return x.detach().masked_fill(x.isnan(), torch.nan).view(torch.int32).tolist()


def test_values_are_those_of_the_specification():
    values = {name: element.values() for name, element in FORMATS.items()}
    four = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert values["mxfp4_e2m1"].tolist() == four + [-v for v in four]
    assert values["mxfp6_e2m3"][[1, 7, 8, 31]].tolist() == [0.125, 0.875, 1, 7.5]
    assert values["mxfp6_e3m2"][[1, 3, 4, 31]].tolist() == [0.0625, 0.1875, 0.25, 28]
    assert values["mxfp8_e4m3"][[1, 7, 8, 126]].tolist() == [2**-9, 7 * 2**-9, 2**-6, 448]
    assert values["mxfp8_e5m2"][[1, 3, 4, 123]].tolist() == [2**-16, 3 * 2**-16, 2**-14, 57344]
    assert values["mxint8"][[1, 127, 129, 255]].tolist() == [1 / 64, 127 / 64, -127 / 64, -1 / 64]
    for name, dtype in (("mxfp8_e4m3", torch.float8_e4m3fn), ("mxfp8_e5m2", torch.float8_e5m2)):
        finite = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        usable = finite.isfinite()
        assert torch.equal(values[name][usable], finite[usable])


def test_blocks_rounded_by_hand():
    # largest 7, floor(log2 7) − 2 = 0: a scale of 1; ties go to the even code, and 7 saturates
    x = torch.tensor([5.0, -2.5, 3.5, 0.25, 0.75, 1.75, -7.0, 0.26])
    assert mx(x, "mxfp4_e2m1").tolist() == [4, -2, 4, 0, 1, 2, -6, 0.5]
    codes, scale = encode(x, "mxfp4_e2m1")
    assert codes.tolist() == [6, 12, 6, 0, 2, 4, 15, 1]
    assert scale.tolist() == [127]
    # largest 3: the scale is 2, the step 2/64
    assert mx(torch.tensor([3.0, 1.015625, -0.05]), "mxint8").tolist() == [3.0, 1.0, -0.0625]
    assert encode(torch.tensor([3.0, 1.015625, -0.05]), "mxint8")[0].tolist() == [96, 32, 254]
    two = torch.cat([torch.full((32,), 96.0), torch.full((2,), 1e-3)])  # the small ones have a block of their own
    assert mx(two, "mxfp4_e2m1")[-1] == pytest.approx(1e-3, rel=0.03)


@formats
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 63), (2, 100), (2, 5, 3, 3), (0, 4)])
def test_it_equals_the_plain_form(name, shape):
    x, y = (drawn(*shape).requires_grad_() for _ in range(2))
    axis = 1 if len(shape) == 4 else -1
    ours = mx(x, name, axis=axis)
    assert bits(ours + 0.0) == bits((mx_reference(y, name, axis=axis) if x.numel() else y) + 0.0)
    ours.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    strided = torch.empty(*shape, 2)[..., 0].copy_(x.detach())
    assert torch.equal(mx(strided, name, axis=axis), ours)
    assert mx(x.half(), name, axis=axis).dtype == torch.float16


@formats
def test_codes_decode_to_the_same_bits(name):
    edges = torch.zeros(6, 40)
    edges[0, ::2] = -0.0
    edges[1, 3], edges[2, 3], edges[3, 3] = torch.nan, torch.inf, torch.finfo(torch.float32).max
    edges[4], edges[5] = 2.0**-140, 2.0 ** -torch.arange(40)
    for x, axis in ((drawn(3, 70), -1), (drawn(3, 70), 0), (drawn(33, 5, 3, 3), 0), (edges, -1)):
        codes, scale = encode(x, name, axis=axis)
        assert int(codes.min()) >= 0
        assert int(codes.max()) < 2 ** FORMATS[name].bits
        assert bits(decode(codes, scale, name, axis=axis)) == bits(mx(x, name, axis=axis))
    found = mx(edges, name)
    assert bits(found[0]) == bits(edges[0] if name != "mxint8" else torch.zeros(40))
    assert found[1, :32].isnan().all()
    assert not found[1, 32:].isnan().any()
    assert not found[2:].isnan().any()


@formats
@pytest.mark.dear("imports torchao where it is installed")
def test_torchao_makes_the_same(name):
    pytest.importorskip("torchao")
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    names = {
        "mxfp8_e4m3": torch.float8_e4m3fn, "mxfp8_e5m2": torch.float8_e5m2, "mxfp6_e3m2": "fp6_e3m2",
        "mxfp6_e2m3": "fp6_e2m3", "mxfp4_e2m1": torch.float4_e2m1fn_x2,
    }  # fmt: skip
    if name not in names:
        pytest.skip("torchao has no MXINT8")
    x = torch.randint(-(2**31), 2**31 - 1, (500, 32)).to(torch.int32).view(torch.float32)
    assert bits(mx(x, name)) == bits(MXTensor.to_mx(x, names[name], 32).dequantize(torch.float32))


@formats
def test_bytes_are_bits_and_one_byte_a_block(name, tmp_path):
    width = FORMATS[name].bits
    assert mx_bytes((64, 64), name) == 64 * 64 * width // 8 + 128
    assert mx_bytes((5, 33), name) == -(-5 * 33 * width // 8) + 10
    torch.manual_seed(0)
    net = direct_cast_(nn.Sequential(nn.Conv2d(3, 40, 3), nn.Flatten(), nn.Linear(40, 7)), name)
    assert isinstance(net[0].weight_quantizer, Quantizer)
    rest = 4 * (40 + 7)
    assert packed_bytes(net) == mx_bytes((40, 3, 3, 3), name, axis=1) + mx_bytes((7, 40), name, axis=1) + rest
    x, path = torch.randn(2, 3, 3, 3), tmp_path / "net.safetensors"
    save_packed(net, path)
    other = direct_cast_(nn.Sequential(nn.Conv2d(3, 40, 3), nn.Flatten(), nn.Linear(40, 7)), name)
    assert torch.equal(load_packed_(other, path)(x), net(x))


def test_a_linear_layer_trains_with_three_quantised_products():
    torch.manual_seed(0)
    layer, x = nn.Linear(37, 41), drawn(2, 33, 37).requires_grad_()
    y = MXLayer(layer)(x)
    gradient = drawn(2, 33, 41)
    y.backward(gradient)
    q, w, flat, out = (
        (lambda t, a: mx_reference(t, "mxfp6_e3m2", axis=a)),
        layer.weight,
        x.view(66, 37),
        gradient.view(66, 41),
    )
    torch.testing.assert_close(y, (q(flat, 1) @ q(w, 1).T + layer.bias).view_as(y))
    torch.testing.assert_close(x.grad, (q(out, 1) @ q(w, 0)).view_as(x))
    torch.testing.assert_close(w.grad, q(out, 0).T @ q(flat, 0))
    torch.testing.assert_close(layer.bias.grad, out.sum(0))


@pytest.mark.parametrize("words", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "bias": False}])
def test_a_convolution_trains_with_three_quantised_products(words):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(5, 6, 3, **words), drawn(34, 5, 7, 6).requires_grad_()
    y = MXLayer(layer)(x)
    gradient = drawn(*y.shape)
    y.backward(gradient)

    def q(t, a):
        return mx_reference(t, "mxfp6_e3m2", axis=a).detach().requires_grad_()

    sizes = (layer.stride, layer.padding, layer.dilation)
    forward = F.conv2d(q(x, 1), q(layer.weight, 1), layer.bias, *sizes)
    torch.testing.assert_close(y, forward)
    by_weight, by_input, seen = q(layer.weight, 0), q(x, 0), q(x, 1)
    (dx,) = torch.autograd.grad(F.conv2d(seen, by_weight, None, *sizes), seen, q(gradient, 1))
    (dw,) = torch.autograd.grad(F.conv2d(by_input, by_weight, None, *sizes), by_weight, q(gradient, 0))
    torch.testing.assert_close(x.grad, dx)
    torch.testing.assert_close(layer.weight.grad, dw)


def test_layers_are_replaced_in_place_with_the_same_parameters():
    shared = nn.Linear(6, 6)
    net = nn.Sequential(nn.Conv2d(3, 6, 2), nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(6, 2))
    before = [p.data_ptr() for p in net.parameters()]
    made = train_in_mx_(net, choose=lambda name, layer: name != "5")
    assert made is net
    assert [type(m).__name__ for m in net] == ["MXLayer", "Flatten", "MXLayer", "ReLU", "MXLayer", "Linear"]
    assert net[2] is net[4]
    assert [p.data_ptr() for p in net.parameters()] == before
    net(torch.randn(2, 3, 2, 2)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_errors():
    for call in (
        lambda: mx(torch.ones(3), "mxfp3"),
        lambda: MXQuantizer("mxfp3"),
        lambda: MXLayer(nn.Linear(2, 2), "mxfp3"),
    ):
        with pytest.raises(ValueError, match=r"format must be one of mxfp8_e5m2, .* got 'mxfp3'"):
            call()
    with pytest.raises(ValueError, match="takes convolutions without groups and with padding in numbers, got Conv2d"):
        MXLayer(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="ReLU has no linear layer or convolution to train in mxfp6_e3m2"):
        train_in_mx_(nn.ReLU())
    with pytest.raises(ValueError, match="is quantised already"):
        quantized_(direct_cast_(nn.Sequential(nn.Linear(2, 2))), weight=lambda _: None)
