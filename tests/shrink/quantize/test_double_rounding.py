import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.data import Data
from foveal.shrink.quantize.double_rounding import (
    DoubleRounding,
    LearnedSteps,
    RoundedTwice,
    SwitchedNorm,
    adaptive_rate,
    double_round,
    lower,
    switch_,
)
from foveal.shrink.quantize.fake import Quantizer
from foveal.shrink.quantize.packed import load_packed_, packed_bytes, save_packed


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.Flatten(), nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 2)
    )


def data(steps=None) -> Data:
    torch.manual_seed(2)
    x, labels = torch.randn(32, 3, 5, 5), torch.arange(32) % 2

    def batches(step):
        if steps is not None:
            steps.append(step)
        return x, labels

    return Data(x, quality=lambda _: 0.0, batches=batches, loss=F.cross_entropy)


def test_integers_rounded_by_hand():
    codes = torch.tensor([127, 8, 7, -8, -9, -24, -128, 100], dtype=torch.int8)
    assert lower(codes, 8, 4).tolist() == [7, 1, 0, 0, -1, -1, -8, 6]  # 127/16 would round to 8; halves go up
    assert lower(codes, 8, 6).tolist() == [31, 2, 2, -2, -2, -6, -32, 25]
    assert lower(codes, 8, 8).tolist() == codes.tolist()
    assert lower(codes, 8, 4).dtype == torch.int8


@pytest.mark.parametrize("low", [2, 4, 6, 8])
@pytest.mark.parametrize("shape", [(1,), (7,), (9, 7, 1)])
def test_training_sees_the_values_of_the_integers(low, shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    high, step = torch.tensor(0.02, dtype=torch.float64), torch.tensor(0.3 if low < 8 else 0.02, dtype=torch.float64)
    found = double_round(w, scale_high=high, scale_low=step, high=8, low=low)
    codes = (w / 0.02).clamp(-128, 127).round().to(torch.int8)
    torch.testing.assert_close(found, lower(codes, 8, low) * step, rtol=0, atol=1e-12)


def test_gradients_are_straight_through_inside_both_ranges():
    w = torch.tensor([0.5, -0.31, 2.7, 2.5, -3.0], dtype=torch.float64, requires_grad=True)
    high, low = (torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in (0.02, 0.4))
    out = double_round(w, scale_high=high, scale_low=low, high=8, low=4)
    assert out.tolist() == pytest.approx([0.8, -0.4, 2.8, 2.8, -3.2])
    out.sum().backward()
    # d w_l / d w = s_l / (16 s_h), 0 where the 8-bit range (2.7, -3.0) or the 4-bit one (2.5: 125/16 > 7) ends
    assert w.grad.tolist() == pytest.approx([1.25, 1.25, 0, 0, 0])
    assert float(low.grad) == pytest.approx(2 - 1 + 7 + 7 - 8)
    assert float(high.grad) == pytest.approx(0.4 / 16 * (-0.5 + 0.31) / 0.02**2)


def test_a_file_of_8_bits_gives_every_precision(tmp_path):
    model, path = DoubleRounding().quantize_(network(), data().inputs), tmp_path / "model.safetensors"
    x = torch.randn(3, 3, 5, 5)
    assert isinstance(model[2].weight_quantizer, Quantizer)
    assert save_packed(model, path) == packed_bytes(model)
    weights, rest = 6 * 7 * 9 + 7 * 9, 4 * (6 * 27 + 6 + 7 + 9 + 2 * 9 + 2)
    assert packed_bytes(model) == weights + rest + 2 * (3 * 4 + 3 * 4 + 1)
    outputs = []
    for bits in (8, 6, 4):
        other = switch_(DoubleRounding().quantize_(network(), torch.rand(2, 3, 5, 5)), bits)
        outputs.append(switch_(model, bits)(x))
        assert torch.equal(load_packed_(other, path)(x), outputs[-1])
    assert not torch.equal(outputs[0], outputs[2])


def test_weights_of_8_bits_are_near_the_weights():
    weight = torch.randn(50, 7)
    quantizer = RoundedTwice(weight, (8, 4))
    assert ((quantizer(weight) - weight).abs() <= weight.abs().max() / 127 / 2 + 1e-6).all()
    quantizer.precision = 4
    assert len(quantizer(weight).unique()) <= 16
    torch.testing.assert_close(quantizer.scales()[1], 16 * quantizer.scales()[0])


@pytest.mark.parametrize("signed", [False, True])
def test_steps_of_inputs_are_set_once(signed):
    quantizer, x = LearnedSteps((8, 4)), torch.rand(500) - (0.5 if signed else 0.0)
    y = quantizer(x)
    assert (y.amin() < 0) == signed
    kept = [float(s.detach()) for s in quantizer.scale]
    quantizer(10 * x)
    assert [float(s.detach()) for s in quantizer.scale] == kept
    quantizer.precision = 4
    assert len(quantizer(x).unique()) <= 16
    other = LearnedSteps((8, 4))
    other.load_state_dict(quantizer.state_dict())
    other.precision = 4
    assert torch.equal(other(x), quantizer(x))


def test_statistics_of_a_precision_are_its_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    plain, x = copy.deepcopy(net[:2]), torch.randn(6, 3, 5, 5)
    for _ in range(3):
        plain.train()(x)
    net[1].load_state_dict(plain[1].state_dict())
    model = DoubleRounding().quantize_(net, x)
    norm = model[1]
    assert isinstance(norm, SwitchedNorm)
    torch.testing.assert_close(model[:2](x), plain.eval()(x))
    switch_(model, 4).train()
    torch.testing.assert_close(model[:2](x), plain.train()(x))
    torch.testing.assert_close(norm.mean[2], plain[1].running_mean)
    torch.testing.assert_close(norm.variance[2], plain[1].running_var)
    assert not torch.equal(norm.mean[2], norm.mean[1])
    assert torch.equal(norm.mean[0], norm.mean[1])


def test_rates_follow_precision_and_gradients():
    small, large = torch.tensor(0.25), torch.tensor(-9.0)
    assert adaptive_rate([small, small], precision=8, highest=8) == pytest.approx(0.75)
    assert adaptive_rate([small, -small], precision=6, highest=8) == pytest.approx(0.075)
    assert adaptive_rate([small, large], precision=4, highest=8) == pytest.approx(0.01 * (1 - 1.25 / 2))
    assert adaptive_rate([large], precision=8, highest=8) == 0


def test_all_precisions_are_trained_together(monkeypatch):
    drawn, seen = [], []
    rate = adaptive_rate

    def spy(gradients, **words):
        seen.append((words["precision"], len(gradients)))
        return rate(gradients, **words)

    monkeypatch.setattr("foveal.shrink.quantize.double_rounding.adaptive_rate", spy)
    model = network()
    step = DoubleRounding(steps=20, lr=0.01)
    before = DoubleRounding().quantize_(copy.deepcopy(model), data().inputs)
    trained = step.apply(model, data(drawn))
    assert trained is model
    assert not trained.training
    assert drawn == list(range(20))
    assert seen[:3] == [(8, 4), (6, 4), (4, 4)]
    x, labels = data().inputs, torch.arange(32) % 2
    for bits in (8, 6, 4):
        after, first = (F.cross_entropy(switch_(m, bits)(x), labels) for m in (trained, before))
        assert after < first
    scales = [[q.scale[i].item() for i in range(3)] for q in (trained[2].weight_quantizer, before[2].weight_quantizer)]
    moved = [abs(a - b) for a, b in zip(*scales, strict=True)]
    assert moved[0] > 2 * moved[1] > 4 * moved[2] > 0


def test_errors():
    for wrong in ((), (4, 8), (8, 8), (9, 4), (8, 1)):
        with pytest.raises(ValueError, match="precisions must be descending numbers of bits in 2 to 8, got"):
            DoubleRounding(wrong)
    for words in ({"steps": 0}, {"lr": 0.0}):
        with pytest.raises(ValueError, match="steps must be at least 1 and lr above 0, got"):
            DoubleRounding(**words)
    with pytest.raises(ValueError, match=r"precision must be one of \(8, 6, 4\), got 5; train it too"):
        switch_(DoubleRounding().quantize_(network(), data().inputs), 5)
    for nothing in (None, torch.rand(2, 3, 5, 5), Data(torch.rand(2, 3, 5, 5), quality=lambda _: 0.0)):
        with pytest.raises(ValueError, match="DoubleRounding trains and needs Data with batches and loss; give both"):
            DoubleRounding().apply(network(), nothing)
