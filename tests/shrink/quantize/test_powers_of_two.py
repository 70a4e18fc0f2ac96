import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.quantize.packed import load_packed_, packed_bytes, save_packed
from foveal.shrink.quantize.powers_of_two import (
    IntegerShift,
    PowersOfTwo,
    TokenBytes,
    integer_,
    shift_add,
    shift_add_reference,
    shift_layer,
    shifts,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_exponents_by_hand():
    # 3 is nearer to 4 than to 2 on a logarithmic scale, 2.8 to 2; 0.04 lies below the window of 4 to 1/16
    weight = torch.tensor([4.0, -3.0, 2.8, 0.0, 0.04, -0.0626])
    k, low = shifts(weight)
    assert (k.tolist(), low.item()) == ([7, 7, 6, 0, 0, 1], -4)
    assert PowersOfTwo()(weight).tolist() == [4.0, -4.0, 2.0, 0.0, 0.0, -0.0625]
    assert PowersOfTwo(2)(weight).tolist() == [4.0, -4.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_are_what_the_forward_pass_computes(bits):
    quantizer, weight = PowersOfTwo(bits), drawn(7, 9)
    codes, constants = quantizer.encode(weight)
    assert codes.min() >= 0
    assert codes.max() < 2**bits
    found = quantizer.decode(codes, constants)
    assert torch.equal(found, quantizer(weight))
    assert torch.equal(quantizer(found), found)
    kept = found[found != 0].abs().log2()
    assert torch.equal(kept, kept.round())
    assert kept.max() - kept.min() <= 2 ** (bits - 1) - 2


def test_weights_and_tokens_pass_their_gradients_on():
    layer, x = shift_layer(nn.Linear(9, 4)), drawn(3, 5, 9).requires_grad_()
    g = drawn(3, 5, 4, seed=1)
    (layer(x) * g).sum().backward()
    weight = layer.quantized_weight().detach()
    torch.testing.assert_close(x.grad, g @ weight)
    torch.testing.assert_close(layer.layer.weight.grad, g.flatten(0, 1).T @ TokenBytes()(x.detach()).flatten(0, 1))


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 1, 1), (5, 63, 7), (3, 100, 2)])
def test_shifts_and_additions_are_the_product(rows, inner, columns):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (rows, inner), generator=generator).to(torch.int8)
    sign = torch.randint(-1, 2, (columns, inner), generator=generator)
    weight = (sign << torch.randint(0, 7, (columns, inner), generator=generator)).to(torch.int8)
    wanted = x.double() @ weight.double().T
    for kernel in (shift_add, shift_add_reference):
        found = kernel(x, weight)
        assert found.dtype == torch.int32
        assert torch.equal(found.double(), wanted)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_integers_compute_what_was_trained(bits, bias):
    layer = shift_layer(nn.Linear(70, 5, bias=bias), bits=bits)
    whole, x = IntegerShift(layer), drawn(2, 3, 70)
    assert whole.weight.dtype == torch.int8
    assert torch.equal(whole.weight * whole.step, layer.quantized_weight())
    torch.testing.assert_close(whole(x), layer(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(whole(0 * x), F.linear(0 * x, whole.weight.float(), whole.bias))


def test_tokens_have_their_own_scales():
    x = torch.tensor([[127.0, 1.4], [1.27, 0.014]])
    torch.testing.assert_close(TokenBytes()(x), torch.tensor([[127.0, 1.0], [1.27, 0.01]]))


def test_a_layer_of_zeros_stays_one():
    layer = shift_layer(nn.Linear(3, 2))
    nn.init.zeros_(layer.layer.weight)
    assert not layer.quantized_weight().any()
    x = drawn(4, 3)
    torch.testing.assert_close(IntegerShift(layer)(x), layer.layer.bias.detach().expand(4, 2))


def test_a_packed_file_gives_the_same_integers(tmp_path):
    def build(seed):
        torch.manual_seed(seed)
        return nn.Sequential(shift_layer(nn.Linear(10, 6), bits=3), shift_layer(nn.Linear(6, 4)))

    model, x = build(0).eval(), drawn(2, 10)
    save_packed(model, tmp_path / "model.safetensors")
    again = load_packed_(build(1), tmp_path / "model.safetensors")
    assert torch.equal(again(x), model(x))
    assert torch.equal(integer_(again)(x), integer_(model)(x))
    assert packed_bytes(shift_layer(nn.Linear(10, 6, bias=False))) == 60 / 2 + 4


def test_what_cannot_be_shifted_raises():
    with pytest.raises(ValueError, match=r"bits must be in 2 to 4, a sign and a shift of at most 6, got 5"):
        PowersOfTwo(5)
    with pytest.raises(ValueError, match="Linear has no shift layer; put some in with shift_layer"):
        integer_(nn.Linear(2, 2))
