"""Fake quantisation and the packed file."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foveal.shrink.quantize.fake import MinMax, QuantizedLayer, Quantizer, grid, quantized_, round_through
from foveal.shrink.quantize.packed import PackedError, load_packed_, pack, packed_bytes, save_packed, unpack


def network() -> nn.Sequential:
    torch.manual_seed(3)
    shared = nn.Linear(8, 8)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, groups=2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(8, 5),
    )  # fmt: skip


def test_rounding_is_to_even_with_the_gradient_of_the_identity():
    x = torch.tensor([0.5, 1.5, -0.2], requires_grad=True)
    y = round_through(x)
    y.sum().backward()
    assert y.tolist() == [0, 2, 0]
    assert x.grad.tolist() == [1, 1, 1]


def test_the_grid_and_its_gradients_follow_the_formula():
    x = torch.tensor([-3.0, -0.4, 0.26, 5.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = grid(x, scale=scale, low=-2, high=3)
    assert y.tolist() == [-1.0, -0.5, 0.5, 1.5]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    # LSQ, equation 3: low and high outside the range, round(x/s) − x/s inside
    assert float(scale.grad) == pytest.approx(-2 + (-1 + 0.8) + (1 - 0.52) + 3)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_min_max(bits: int, symmetric: bool):
    x = torch.randn(5, 3, 3, 3)
    quantizer = MinMax(bits, axis=0, symmetric=symmetric)
    assert isinstance(quantizer, Quantizer)
    y = quantizer(x)
    codes, constants = quantizer.encode(x)
    assert torch.equal(quantizer.decode(codes, constants), y)
    assert max(len(channel.unique()) for channel in y) <= 2**bits
    step = constants["scale"]
    assert ((x - y).abs() <= step * (1.0 if bits == 2 else 0.501 if symmetric else 1.0)).all()
    assert torch.equal(quantizer(torch.zeros(2, 2)), torch.zeros(2, 2))  # zero is a level


def test_activation_ranges_follow_the_training_and_then_stay():
    quantizer = MinMax(8)
    quantizer(torch.tensor([0.0, 1.0]))
    quantizer(torch.tensor([0.0, 2.0]))
    assert float(quantizer.highest) == pytest.approx(1.1)
    quantizer.eval()(torch.tensor([0.0, 9.0]))
    assert float(quantizer.highest) == pytest.approx(1.1)
    fresh = MinMax(8)
    fresh.load_state_dict(quantizer.state_dict())
    assert float(fresh.highest) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="bits must be in 2 to 16, got 1"):
        MinMax(1)


def test_layers_are_replaced_in_place_first_and_last_excepted():
    net = quantized_(network(), weight=lambda layer: MinMax(8, axis=0), inputs=lambda layer: MinMax(8))
    kinds = [type(module).__name__ for module in net]
    assert kinds[0] == "Conv2d"
    assert kinds[-1] == "Linear"
    assert net[5] is net[7]  # a layer used twice stays one
    assert isinstance(net[2], QuantizedLayer)
    plain, x = network().eval(), torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        assert float((net.eval()(x) - plain(x)).abs().max()) < 0.1
    net(x).sum().backward()
    assert net[2].layer.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"the model is quantised already \(2\); quantise the original"):
        quantized_(net, weight=lambda layer: MinMax(8))
    with pytest.raises(ValueError, match="ReLU has no linear layer or convolution to quantise"):
        quantized_(nn.ReLU(), weight=lambda layer: MinMax(8))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8, 16])
def test_packing(bits: int):
    codes = torch.randint(2**bits, (3, 5, 7))
    packed = pack(codes, bits)
    assert len(packed) == -(-105 * bits // 8)
    assert torch.equal(unpack(packed, bits, (3, 5, 7)), codes)
    with pytest.raises(ValueError, match=r"codes must be in \[0, "):
        pack(codes + 2**bits, bits)
    with pytest.raises(ValueError, match="105 codes of"):
        unpack(packed[1:], bits, (3, 5, 7))


@pytest.mark.parametrize("bits", [3, 8])
def test_a_packed_file_reads_back_to_the_bit(tmp_path, bits: int):
    def quantised() -> nn.Module:
        return quantized_(network(), weight=lambda layer: MinMax(bits, axis=0), inputs=lambda layer: MinMax(8))

    net = quantised()
    x = torch.randn(4, 3, 6, 6)
    net.train()(x)
    net.eval()
    path = tmp_path / "net.safetensors"
    assert save_packed(net, path) == packed_bytes(net)
    other = quantised()
    for p in other.parameters():
        p.data.normal_()
    assert torch.equal(load_packed_(other, path)(x), net(x))
    packed = {"2.weight", "5.weight", "7.weight"}  # the last two are one
    rest = sum(v.numel() * v.element_size() for k, v in network().state_dict().items() if k not in packed)
    codes, scales, ranges = (8 * 4 * 9 + 64) * bits // 8, 2 * 16 * 4, 3 * 2 * 4  # ranges: the shared layer's twice
    assert packed_bytes(net) == codes + scales + rest + ranges

    with pytest.raises(PackedError, match="belongs to another model: it holds"):
        load_packed_(quantized_(network(), weight=lambda layer: MinMax(2, axis=0)), path)
    with pytest.raises(PackedError, match=r"belongs to another model: it lacks 2\.input_quantizer"):
        load_packed_(quantised(), _without_ranges(tmp_path, bits))
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(PackedError, match="broken cannot be read"):
        load_packed_(net, tmp_path / "broken")
    save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(PackedError, match="foreign is not a packed model of foveal; write one by save_packed"):
        load_packed_(net, tmp_path / "foreign")


def _without_ranges(tmp_path, bits: int):
    path = tmp_path / "plain.safetensors"
    save_packed(quantized_(network(), weight=lambda layer: MinMax(bits, axis=0)), path)
    return path
