import pytest
import torch
from torch import nn

from foveal.shrink.distill.distillation import Views
from foveal.shrink.quantize.fake import quantized_layers
from foveal.shrink.quantize.packed import load_packed_, packed_bytes, save_packed
from foveal.shrink.quantize.pams import PAMS, MaxScale, MaxWeight, max_scale, skt, transfer


def plain(x, alpha, bits):
    """Values, their gradients and alpha's gradient for an upstream gradient of ones, one value at a time."""
    most = 2 ** (bits - 1) - 1
    values, inside, bound = [], [], 0.0
    for value in x.flatten().tolist():
        clipped = min(max(value, -alpha), alpha)
        values.append(round(clipped / (alpha / most)) * (alpha / most))
        inside.append(float(abs(value) < alpha))
        outside = 1 if value > 0 else -1
        bound += outside if abs(value) >= alpha else (values[-1] - value) / alpha
    return torch.tensor(values).view(x.shape), torch.tensor(inside).view(x.shape), bound


@pytest.mark.parametrize(("shape", "alpha", "bits"), [((1,), 0.3, 8), ((7, 63), 1.1, 4), ((2, 3, 5, 1), 0.7, 2)])
def test_values_and_gradients_equal_the_plain_ones(shape, alpha, bits):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    bound = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    y = max_scale(x, bound, bits=bits)
    y.sum().backward()
    values, inside, slope = plain(x.detach(), alpha, bits)
    torch.testing.assert_close(y.detach(), values, check_dtype=False)
    torch.testing.assert_close(x.grad, inside, check_dtype=False)
    assert bound.grad.item() == pytest.approx(slope)


def test_there_are_as_many_levels_as_bits_allow():
    x = torch.linspace(-2, 2, 1001)
    assert len(max_scale(x, torch.tensor(1.0), bits=3).unique()) == 7
    assert max_scale(x, torch.tensor(1.0), bits=3).abs().max() == 1


def test_weights_reach_their_largest_and_decode_to_the_bit():
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    quantizer = MaxWeight(4)
    y = quantizer(weight)
    assert torch.equal(y, quantizer.decode(*quantizer.encode(weight)))
    assert y.abs().max().item() == pytest.approx(weight.abs().max().item())
    codes, _ = quantizer.encode(weight)
    assert codes.min() >= 0
    assert codes.max() <= 14
    y.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert not quantizer(torch.zeros(2, 2)).any()


def test_skt_sees_where_features_are_large_and_not_how_large():
    x = torch.rand(2, 4, 5, 3)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    assert skt(3 * signs * x, x).item() == pytest.approx(0, abs=1e-12)
    one, other = torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)
    one[..., 0, 0], other[..., 1, 1] = 5, 7
    assert skt(one, other).item() == pytest.approx(2 / 4)  # unit vectors at right angles, four positions


def test_the_loss_is_pixels_and_transfer():
    made, taught = torch.rand(2, 2, 1, 3, 3, 3).unbind(0)
    views = Views(made[0], made[1], taught[0], taught[1], (made[0],), (taught[0],))
    pixels = (taught[0] - made[1]).abs().mean()
    assert transfer(views, weight=0.0).item() == pytest.approx(pixels.item())
    assert transfer(views, weight=2.0).item() == pytest.approx((pixels + 2 * skt(made[0], taught[0])).item())


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    return nn.Sequential(nn.Conv2d(1, 4, 3), body, nn.Conv2d(4, 1, 3)).eval()


def test_bounds_start_at_the_mean_of_the_largest_magnitudes_and_learn():
    model, x = network(), torch.rand(3, 1, 10, 9)
    with torch.no_grad():
        wanted = model[0](x).abs().flatten(1).amax(1).mean()
    PAMS(8, part="1").apply(model, x)
    layers = dict(quantized_layers(model))
    assert list(layers) == ["1.0", "1.2"]
    scale = layers["1.0"].input_quantizer
    assert scale.alpha.item() == pytest.approx(wanted.item())
    assert not scale._forward_hooks
    model(3 * x).sum().backward()
    assert all(p.grad is not None and p.grad.ne(0).any() for p in model.parameters())


def test_pace_moves_the_bound_further_for_the_same_step():
    for pace in (1.0, 10.0):
        scale = MaxScale(8, pace=pace)
        scale.start(2.0)
        with torch.no_grad():
            scale.paced -= 0.1
        assert scale.alpha.item() == pytest.approx(2.0 - 0.1 * pace)
    scale.start(-1.0)
    assert scale.alpha.item() == pytest.approx(1e-6)


def test_a_packed_file_holds_the_part_in_few_bits(tmp_path):
    model, x = PAMS(4, part="1").apply(network(), torch.rand(2, 1, 10, 9)), torch.rand(1, 1, 10, 9)
    inside, around = 2 * (4 * 4 * 9 // 2 + 4 * 4 + 4 + 4), 4 * (2 * 36 + 4 + 1)
    assert packed_bytes(model) == save_packed(model, tmp_path / "model") == inside + around
    other = load_packed_(PAMS(4, part="1").apply(network(), x), tmp_path / "model")
    assert torch.equal(other(x), model(x))


def test_an_empty_part_is_all_but_the_ends():
    assert [name for name, _ in quantized_layers(PAMS(8, part="").apply(network(), torch.rand(1, 1, 10, 9)))] == [
        "1.0",
        "1.2",
    ]


def test_errors():
    with pytest.raises(ValueError, match="bits must be in 2 to 16, got 1"):
        PAMS(1)
    with pytest.raises(ValueError, match="Sequential has no part 'body'; give one of 0, 1, 2, or '' for all"):
        PAMS().apply(network(), torch.rand(1, 1, 10, 9))
    with pytest.raises(ValueError, match="PAMS observes activations and needs data, got none"):
        PAMS(part="1").apply(network())
