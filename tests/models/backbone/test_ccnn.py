import math

import pytest
import torch
from torch import nn

from foveal.evidence.models.backbone.ccnn import dimensions_that_learn, embedded
from foveal.models.backbone.ccnn import CCNN, ContinuousConv

SMALL = {"dim": 4, "depth": 1, "kernel_size": 7, "hidden": 4, "in_channels": 2, "num_classes": 3}


@pytest.mark.parametrize("data_dim", [1, 2, 3])
def test_a_layer_is_the_formula(data_dim):
    torch.manual_seed(0)
    layer = ContinuousConv(2, 3, data_dim=data_dim, kernel_size=5, hidden=4, mask_width=2.0).double()
    nn.init.normal_(layer.bias)
    line = torch.linspace(-1, 1, 5, dtype=torch.float64)
    kernel = torch.zeros(2, *[5] * data_dim, dtype=torch.float64)
    for tap in torch.cartesian_prod(*[torch.arange(5)] * data_dim).view(-1, data_dim):
        place = line[tap]
        mask = torch.exp(-0.5 * (place / layer.mask_width).square().sum())
        kernel[(slice(None), *tap)] = mask * layer.network(place)
    conv = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[data_dim]
    x = torch.randn(2, 2, *[4, 6, 3][:data_dim], dtype=torch.float64)
    want = conv(x, kernel[:, None], layer.bias, padding=2, groups=2)
    want = torch.einsum("oc,bc...->bo...", layer.mix.weight[:, :, 0], want)
    want = want + layer.mix.bias.view(-1, *[1] * data_dim)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("data_dim", [1, 2, 3])
def test_both_convolutions_give_the_same_logits_and_gradients(data_dim):
    torch.manual_seed(0)
    model = CCNN(data_dim=data_dim, **SMALL).double().eval()
    x = torch.randn(2, 2, *[7, 5, 4][:data_dim], dtype=torch.float64, requires_grad=True)
    found = [model(x, fft=fft) for fft in (True, False)]
    torch.testing.assert_close(*found)
    inputs = [x, *model.parameters()]
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in found), strict=True):
        torch.testing.assert_close(one, other)


def test_kernels_start_with_unit_energy():
    torch.manual_seed(0)
    kernel = ContinuousConv(5, 5, kernel_size=21, omega_0=3.0).kernel()
    torch.testing.assert_close(kernel.square().sum() / 5, torch.tensor(1.0))


def test_kernels_are_cut_where_the_mask_is_under_a_tenth():
    layer = ContinuousConv(1, 1, kernel_size=21)
    with torch.no_grad():
        # the mask is a tenth at 2.146 σ: at the third of taps a tenth apart, and beyond the last
        layer.mask_width.copy_(torch.tensor([0.3 / math.sqrt(2 * math.log(10)), 5.0]))
    assert layer.taps() == [7, 21]
    assert layer.kernel().shape == (1, 7, 21)
    assert layer.taps(2.0) == [13, 41]


def test_another_resolution_reads_the_same_kernel():
    torch.manual_seed(0)
    layer = ContinuousConv(2, 2, kernel_size=9, mask_width=3.0)
    coarse, fine = layer.kernel(), layer.kernel(2.0)
    assert fine.shape == (2, 17, 17)
    torch.testing.assert_close(4 * fine[:, ::2, ::2], coarse)
    # away from borders a flat picture comes out alike
    x = torch.ones(1, 2, 40, 40)
    model = CCNN(**{**SMALL, "omega_0": 0.1}).eval()
    outs = [model.stem(x, r)[..., 20, 20] for r in (1.0, 2.0)]
    torch.testing.assert_close(*outs, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("data_dim", [1, 2])
def test_a_network_is_the_same_one_dimension_up(data_dim):
    torch.manual_seed(0)
    model = CCNN(data_dim=data_dim, **SMALL).double().eval()
    x = torch.randn(2, 2, *[6, 5][:data_dim], dtype=torch.float64)
    torch.testing.assert_close(embedded(model, SMALL)(x[:, :, None]), model(x))


def test_channels_are_dropped_while_training_only():
    torch.manual_seed(0)
    model, x = CCNN(**SMALL, dropout=0.5), torch.randn(2, 2, 5, 5)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_without_a_classifier_there_are_features():
    assert CCNN(**{**SMALL, "num_classes": 0}).eval()(torch.randn(1, 2, 5, 4)).shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"data_dim": 4}, "data_dim must be 1, 2 or 3, got 4"),
        ({"kernel_size": 6}, "kernel_size must be odd and at least 3, got 6; take 7"),
        ({"kernel_size": 1}, "kernel_size must be odd and at least 3, got 1; take 3"),
    ],
)
def test_sizes(options, text):
    with pytest.raises(ValueError, match=text):
        CCNN(**{**SMALL, **options})


def test_axes():
    with pytest.raises(ValueError, match=r"with 2 axes of places, got \(1, 2, 5\); data_dim sets how many"):
        CCNN(**SMALL)(torch.zeros(1, 2, 5))


def test_a_configuration_is_counted_only_if_all_of_it_learns(monkeypatch):
    assert dimensions_that_learn() == 3.0
    monkeypatch.setattr(
        ContinuousConv, "forward", lambda self, x, *_, **__: self.mix(x.flatten(2)).unflatten(2, x.shape[2:])
    )
    assert dimensions_that_learn() == 0.0
