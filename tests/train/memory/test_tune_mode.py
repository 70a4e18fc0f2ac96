import copy
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch._inductor.fx_passes.efficient_conv_bn_eval import efficient_conv_bn_eval

from foveal.measure.saved import saved_bytes
from foveal.train.memory.tune_mode import conv_bn_pairs, tune_, tuned, tuned_parameters, untune_


def drawn(norm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            if value is not None:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return norm


LAYERS = {
    "plain": lambda: (nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "bias, stride and groups": lambda: (nn.Conv2d(6, 4, 3, 2, 1, groups=2), nn.BatchNorm2d(4, eps=1e-3)),
    "reflected edges": lambda: (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)),
    "no weight in the norm": lambda: (nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4, affine=False)),
    "an activation": lambda: (nn.Conv2d(6, 4, 3), BatchNormAct2d(4)),
    "transposed": lambda: (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(4)),
    "transposed, groups": lambda: (nn.ConvTranspose2d(6, 4, 3, 2, groups=2), nn.BatchNorm2d(4)),
    "one axis": lambda: (nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4)),
    "three axes": lambda: (nn.Conv3d(6, 4, 3), nn.BatchNorm3d(4)),
}
SIDES = {"one axis": (9,), "three axes": (3, 5, 4)}


def pair(name):
    torch.manual_seed(0)
    conv, norm = LAYERS[name]()
    model = nn.Sequential(conv, drawn(norm)).double().eval()
    return model, torch.randn(3, 6, *SIDES.get(name, (7, 5)), dtype=torch.float64)


def outputs_and_gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(value.grad for value in model.parameters())]


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_two_layers(name):
    model, x = pair(name)
    wanted = outputs_and_gradients(copy.deepcopy(model), x)
    for got, value in zip(outputs_and_gradients(tune_(model), x), wanted, strict=True):
        torch.testing.assert_close(got, value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "bias, stride and groups", "transposed"])
def test_the_authors_function_gives_the_same(name):
    model, x = pair(name)
    theirs = copy.deepcopy(model)
    wanted = efficient_conv_bn_eval(theirs[1], theirs[0], x)
    torch.testing.assert_close(tune_(model)(x), wanted, rtol=0, atol=1e-14)


def test_parameters_by_hand():
    weight, ones = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1), torch.ones(2)
    scaled, shift = tuned_parameters(
        weight, 4 * ones, torch.tensor([6.0, 1.0]), 5 * ones, ones, torch.tensor([9.0, 4.0]), eps=0.0
    )
    assert scaled.flatten().tolist() == [4, 1.5]
    assert shift.tolist() == [11, 6.5]
    plain = tuned_parameters(weight, None, None, None, 0 * ones, ones, eps=0.0)
    assert torch.equal(plain[0], weight)
    assert torch.equal(plain[1], 0 * ones)


class Net(nn.Module):
    """Pairs that can be tuned, and what must not be."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), drawn(nn.BatchNorm2d(4))
        self.read_twice, self.after = nn.Conv2d(4, 4, 1), drawn(nn.BatchNorm2d(4))
        self.shared, self.between = nn.Conv2d(4, 4, 1), drawn(nn.BatchNorm2d(4))
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.block = nn.Sequential(nn.Conv2d(4, 5, 1), drawn(nn.BatchNorm2d(5)), nn.ReLU(inplace=True))

    def forward(self, x):
        x = self.norm(self.conv(x))
        y = self.read_twice(x)
        x = self.after(y) + y
        x = self.between(self.shared(self.shared(x)))
        x = self.batch(nn.functional.relu(x))
        return self.block(x).mean((2, 3))


def test_only_a_norm_that_alone_reads_a_convolution_is_tuned():
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 6, 5)
    names, wanted = list(model.state_dict()), model(x)
    assert conv_bn_pairs(model) == [("conv", "norm"), ("block.0", "block.1")]
    assert tune_(model) is model
    assert tuned(model) == ["conv", "norm", "block.0", "block.1"]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), wanted)
    untune_(model)
    assert tuned(model) == []
    assert torch.equal(model(x), wanted)


def test_copies_stand_alone():
    torch.manual_seed(0)
    model, x = tune_(Net().eval()), torch.randn(2, 3, 6, 5)
    wanted = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            model.conv.weight.zero_()
            model.block[1].running_mean.zero_()
        assert torch.equal(other(x), wanted)
        assert not torch.equal(model(x), wanted)
        model.load_state_dict(other.state_dict())


def test_statistics_stay_frozen_in_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), drawn(nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 6, 5)
    wanted, mean = model.eval()(x), model[1].running_mean.clone()
    torch.testing.assert_close(tune_(model).train()(x), wanted)
    assert torch.equal(model[1].running_mean, mean)
    assert not torch.allclose(untune_(model).train()(x), wanted)


def test_less_is_kept():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 1), drawn(nn.BatchNorm2d(4)), nn.ReLU(inplace=True)),
        torch.ones(2, 3, 9, 7),
    )
    own = [*model.parameters(), *model.buffers()]
    whole = saved_bytes(lambda: model.eval()(x), own)
    assert whole == 4 * 2 * 63 * (3 + 4 + 4)
    # without what the norm reads, with what weight and bias are computed from
    assert saved_bytes(lambda: tune_(model)(x), own) == 4 * (2 * 63 * (3 + 4) + 12 + 3 * 4)


def test_what_cannot_be_tuned_is_told():
    with pytest.raises(ValueError, match="model is in Tune mode already; untune_ takes it back"):
        tune_(tune_(Net()))
    with pytest.raises(ValueError, match="right after a convolution, got none in Sequential; train it as it is"):
        tune_(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)))

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"model must be traceable by torch.fx, got Branching .*; tune the parts that"):
        tune_(Branching())


def test_a_transposed_convolution_with_an_output_size_is_left():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm = nn.ConvTranspose2d(3, 3, 3, 2), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.up(x, [8, 8]))

    assert conv_bn_pairs(Sized()) == []
