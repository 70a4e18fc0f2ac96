import copy

import pytest
import torch
from torch import nn

from foveal.shrink.quantize.quik import (
    QUIK,
    QuikLinear,
    clipped_step,
    gptq_outliers_last,
    low_bit_share,
    quantize_tokens,
    quik_linear,
    quik_reference,
)


class Tokens(nn.Module):
    """Two layers on tokens, one of whose channels is large, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.ones(16))
        with torch.no_grad():
            self.scale[5] = 40.0
            self.fc1.weight[:, 5] /= 40

    def forward(self, x):
        return self.head(self.fc2(torch.relu(self.fc1(x * self.scale))).mean(1))


def inputs(count=48):
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(4)) / 4
    return torch.randn(count, 9, 16, generator=torch.Generator().manual_seed(1)) @ mixing


def test_tokens_by_hand():
    codes, step, zero = quantize_tokens(torch.tensor([[-1.0, 0.0, 2.0, 0.5], [3.0, 3.0, 3.0, 3.0]]))
    assert codes.tolist() == [[-8, -3, 7, 0], [-8, -8, -8, -8]]  # 0.5 lies between, at 7.5: ties to even
    assert step[0].item() == pytest.approx(0.2)
    assert zero.tolist() == [[-1.0], [3.0]]
    codes, step, zero = quantize_tokens(torch.randn(4, 33), bits=8)
    assert codes.amin(1).tolist() == [-128] * 4
    assert codes.amax(1).tolist() == [127] * 4


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("outliers", [0, 3])
@pytest.mark.parametrize("shape", [(1, 7), (3, 5, 63), (0, 7)])
def test_integers_equal_fake_quantisation(bits, outliers, shape):
    torch.manual_seed(0)
    layer, tokens = nn.Linear(shape[-1], 9, bias=outliers > 0).double(), torch.randn(20, shape[-1]).double()
    made = QuikLinear(layer, tokens.abs().amax(0), tokens.T @ tokens, outliers=outliers, bits=bits)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(made(x), quik_reference(x, **made.parts()), rtol=0, atol=1e-12)
    assert made.codes.shape == (9, shape[-1] - outliers)
    assert torch.equal(made(x), quik_linear(x, **made.parts()))


def test_the_reference_is_a_product_of_dequantised_values():
    made = QuikLinear(nn.Linear(6, 4), torch.tensor([1.0, 9, 2, 3, 8, 4]), None, outliers=2)
    assert made.outliers.tolist() == [4, 1]
    x = torch.randn(5, 6)
    whole, weight = x.clone(), torch.empty(4, 6)
    a, s, z = quantize_tokens(x[:, made.kept])
    whole[:, made.kept] = (a + 8) * s + z
    weight[:, made.kept], weight[:, made.outliers] = made.codes * made.step[:, None], made.outlier_weight
    torch.testing.assert_close(quik_reference(x, **made.parts()), whole @ weight.T + made.bias)


def test_half_precision_does_not_overflow():
    torch.manual_seed(0)
    layer, tokens = nn.Linear(4096, 3).half(), torch.rand(4, 4096).half() + 3
    with torch.no_grad():
        layer.weight.abs_()
    made = QuikLinear(layer, tokens.abs().amax(0), None, outliers=8)
    out, wanted = made(tokens), tokens.double() @ layer.weight.double().T + layer.bias.double()
    assert out.dtype == torch.float16
    assert ((out - wanted).abs() < 0.1 * wanted.abs()).all()


def test_outliers_have_their_own_weights():
    layer = nn.Linear(6, 4)
    made = QuikLinear(layer, torch.tensor([1.0, 9, 2, 3, 8, 4]), None, outliers=2)
    assert torch.equal(made.outlier_weight, layer.weight[:, [4, 1]])
    levels = layer.weight[:, made.kept]
    assert ((made.codes * made.step[:, None] - levels).abs() <= made.step[:, None] * 0.5 + 1e-6).all()


def test_clipped_steps_round_with_less_error():
    weight = torch.cat([torch.randn(5, 60), torch.full((5, 1), 6.0)], 1)
    whole = 12 / 15 * torch.ones(5)

    def error(step):
        return (weight - (weight / step[:, None]).round().clamp(-8, 7) * step[:, None]).square().sum(1)

    step = clipped_step(weight)
    assert (step <= whole + 1e-6).all()
    assert (error(step) <= error(whole)).all()
    assert float(error(step).sum()) < float(error(whole).sum())


def test_outliers_absorb_the_errors():
    torch.manual_seed(0)
    x, weight = torch.randn(200, 12) @ torch.randn(12, 12), torch.randn(7, 12)
    codes, step, rest = gptq_outliers_last(weight, x.T @ x, 3, damping=1e-6)
    made = torch.cat([codes * step[:, None], rest], 1)
    nearest = (weight[:, :9] / step[:, None]).round().clamp(-8, 7) * step[:, None]
    plain = torch.cat([nearest, weight[:, 9:]], 1)

    def error(of):
        return float((x @ (of - weight).T).square().sum())

    assert error(made) < error(plain)
    # given the integers, no other weights of the outliers are better: the least squares solution
    wanted = torch.linalg.lstsq(x[:, 9:], x @ weight.T - x[:, :9] @ made[:, :9].T).solution.T
    torch.testing.assert_close(rest, wanted, rtol=1e-3, atol=1e-3)


def test_a_column_without_inputs_does_no_harm():
    hessian = torch.diag(torch.tensor([1.0, 0.0, 2.0, 1.0]))
    codes, step, rest = gptq_outliers_last(torch.randn(3, 4), hessian, 1)
    assert codes.shape == (3, 3)
    assert rest.isfinite().all()
    assert step.isfinite().all()


def test_a_large_channel_harms_plain_w4a4_only():
    whole, x = Tokens().eval(), inputs()

    def error(step):
        model = step.apply(copy.deepcopy(whole), x)
        with torch.no_grad():
            return float((model(x) - whole(x)).norm() / whole(x).norm())

    ours, nearest, plain = error(QUIK(2)), error(QUIK(2, gptq=False)), error(QUIK(0, gptq=False))
    assert ours < nearest < plain
    assert plain > 2 * ours
    assert error(QUIK(2, bits=8)) < 0.1 * ours


def test_layers_are_chosen_by_name_and_counted():
    model, x = Tokens().eval(), inputs(4)
    assert QUIK(4, eight=("2",)).apply(model, x) is model
    assert (model.fc1.bits, model.fc2.bits, type(model.head)) == (4, 8, nn.Linear)
    assert int(model.fc1.outliers[-1]) == 5
    per_token, once = 2 * 16 * 24, 16 * 3
    assert low_bit_share(model, x) == pytest.approx(12 * 24 * 9 / (per_token * 9 + once))
    assert low_bit_share(model, x, bits=8) == pytest.approx((12 * 24 + 20 * 16) * 9 / (per_token * 9 + once))


def test_errors():
    for words, text in (
        ({"outliers": -1}, "outliers must be at least 0, got -1"),
        ({"bits": 9}, "bits must be in 2 to 8, got 9"),
        ({"damping": 0.0}, r"damping must be above 0, got 0\.0"),
    ):
        with pytest.raises(ValueError, match=text):
            QUIK(**words)
    with pytest.raises(ValueError, match="QUIK observes activations and needs data, got none"):
        QUIK(2).apply(Tokens())
    with pytest.raises(ValueError, match="the model is quantised already; quantise the original"):
        QUIK(2).apply(QUIK(2).apply(Tokens(), inputs(2)), inputs(2))
    with pytest.raises(ValueError, match="Linear needs two linear layers, the last of which stays; got 1"):
        QUIK(2).apply(nn.Linear(3, 3), torch.rand(2, 3))
    with pytest.raises(ValueError, match="outliers must be below the 16 inputs of the narrowest layer, got 16"):
        QUIK(16).apply(Tokens(), inputs(2))
