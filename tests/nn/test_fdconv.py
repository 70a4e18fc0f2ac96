import math

import pytest
import timm
import torch
from torch import nn

from foveal.nn.fdconv import (
    FDConv,
    band_modulation,
    fourier_coefficients,
    frequency_groups,
    group_kernels,
    mixed_kernels,
    stand_in,
    use_fdconv_,
)
from foveal.shrink.swap.operators import operator


def drawn(layer):
    """All parameters random, so that every head counts."""
    for value in layer.parameters():
        nn.init.normal_(value, std=0.3)
    return layer


@pytest.mark.parametrize(("rows", "columns", "count"), [(6, 8, 4), (9, 7, 5), (1, 4, 3), (8, 1, 2)])
def test_groups_are_ordered_by_frequency_and_keep_conjugates_together(rows, columns, count):
    groups = frequency_groups(rows, columns, count)
    assert groups.shape == (rows, columns // 2 + 1)
    assert groups[0, 0] == 0
    distance = torch.hypot(torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns))
    for group in range(count - 1):
        assert distance[groups == group].max() <= distance[groups == group + 1].min() + 1e-6
    for column in (0, columns // 2) if columns % 2 == 0 else (0,):
        assert all(groups[row, column] == groups[-row, column] for row in range(rows))


def test_the_coefficients_hold_the_kernel():
    torch.manual_seed(0)
    weight = torch.randn(3, 5, 1, 3, dtype=torch.float64)
    coefficients, groups = fourier_coefficients(weight), frequency_groups(3, 15, 6)
    assert coefficients.shape == (3, 8, 2)
    torch.testing.assert_close(mixed_kernels(coefficients, groups, torch.ones(2, 6).double(), weight.shape)[1], weight)
    kernels = group_kernels(coefficients, groups, 6, weight.shape)
    torch.testing.assert_close(kernels.sum(0), weight)
    # kernels of disjoint spectra are orthogonal
    products = kernels.flatten(1) @ kernels.flatten(1).T
    torch.testing.assert_close(products, products.diagonal().diag())
    assert products.diagonal().min() > 0.1


def test_a_share_of_zero_removes_a_group():
    torch.manual_seed(0)
    weight, groups = torch.randn(2, 2, 3, 3), frequency_groups(6, 6, 3)
    shares = torch.tensor([[1.0, 0.0, 2.0]])
    mixed = mixed_kernels(fourier_coefficients(weight), groups, shares, weight.shape)
    found = fourier_coefficients(mixed[0]) / fourier_coefficients(weight)
    torch.testing.assert_close(found.nanmean(-1), shares[0, groups], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(7, 9), (16, 5), (1, 1)])
def test_bands_with_gains_of_one_change_nothing(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(band_modulation(x, torch.ones(2, 3, *size)), x)


@pytest.mark.parametrize(
    ("cycles", "band"), [(0, None), (1, None), (2, None), (3, 2), (4, 2), (5, 1), (8, 1), (9, 0), (16, 0)]
)
def test_a_wave_is_in_one_band(cycles, band):
    x = torch.cos(2 * math.pi * cycles / 32 * torch.arange(32.0)).expand(1, 1, 3, 32)
    gains = torch.tensor([3.0, 5.0, 7.0])
    want = x if band is None else gains[band] * x
    torch.testing.assert_close(
        band_modulation(x, gains.view(1, 3, 1, 1).expand(1, 3, 3, 32)), want, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        band_modulation(x.mT, gains.view(1, 3, 1, 1).expand(1, 3, 32, 3)), want.mT, rtol=1e-4, atol=1e-4
    )


def by_the_formula(layer, x):
    """Picture by picture, kernel by kernel, with gradients."""
    module, (outs, ins, height, width) = layer.modulation, layer.size
    means = x.mean((2, 3))
    hidden = module.bn(means @ module.fc.weight.T)
    hidden = module.scale * hidden.clamp_min(0) ** 2 + module.shift
    kernels = group_kernels(layer.dft_weight, layer.groups, module.group.out_features, layer.size)
    normed, found = module.norm(means), []
    for i, picture in enumerate(x):
        gains = [2 / (1 + torch.exp(-head(hidden[i]))) for head in (module.group, module.channel, module.filter)]
        kernel = (
            torch.einsum("n,nocyx->ocyx", gains[0], kernels) * gains[1][:, None, None] * gains[2][:, None, None, None]
        )
        if module.spatial is not None:
            kernel = kernel * (2 / (1 + torch.exp(-module.spatial(hidden[i])))).view(height, width)
        taps, reach = module.local.weight, module.local.padding[0]
        padded = nn.functional.pad(normed[i], (reach, reach))
        logits = torch.stack([(taps[:, 0] * padded[c : c + 2 * reach + 1]).sum(1) for c in range(ins)], 1)
        kernel = kernel * (2 / (1 + torch.exp(-logits))).view(outs, height, width, ins).movedim(3, 1)
        seen = picture[None]
        if layer.bands is not None:
            seen = band_modulation(seen, 2 / (1 + torch.exp(-layer.bands(seen))))
        found.append(torch.conv2d(seen, kernel, layer.bias, layer.stride, layer.padding, layer.dilation)[0])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        ((3, 3), {"padding": (1, 1)}),
        ((1, 1), {"bias": False}),
        ((1, 3), {"stride": (2, 1), "dilation": (1, 2), "padding": (0, 2)}),
    ],
)
def test_it_is_the_formula(kernel_size, options):
    torch.manual_seed(0)
    layer = drawn(FDConv(17, 4, kernel_size, num_groups=5, **options).double())
    assert layer.modulation.local.kernel_size == (3,)
    x = torch.randn(3, 17, 7, 9, dtype=torch.float64, requires_grad=True)
    out, want = layer(x), by_the_formula(layer, x)
    torch.testing.assert_close(out, want)
    inputs = [x, *layer.parameters()]
    gradients = (torch.autograd.grad(value.square().sum(), inputs) for value in (out, want))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.any()


def test_pictures_do_not_meet():
    torch.manual_seed(0)
    layer, x = drawn(FDConv(5, 6, padding=(1, 1), num_groups=4)).eval(), torch.randn(3, 5, 8, 8)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer.kernels(x)[0], layer.kernels(x)[1], rtol=1e-2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, (3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2)),
        nn.Conv2d(20, 18, 1, bias=False),
        nn.Conv2d(3, 2, 3, padding="same"),
        nn.Conv2d(1, 1, 3),
    ],
)
def test_a_stand_in_starts_equal(layer):
    x = torch.randn(2, layer.in_channels, 11, 12)
    ours = stand_in(layer, x.shape)
    torch.testing.assert_close(ours(x), layer(x), rtol=1e-4, atol=1e-5)
    assert operator("fdconv").of == "conv"
    assert isinstance(operator("fdconv").stand_in(layer, x.shape), FDConv)


def test_a_resnet_is_converted_but_for_its_stem_and_its_shortcuts():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    plain = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert use_fdconv_(model, num_groups=8) is model
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    found = {name for name, module in model.named_modules() if isinstance(module, FDConv)}
    assert found
    assert all("downsample" not in name and name.startswith("layer") for name in found)
    left = [name for name in plain if name not in found]
    assert all("downsample" in name or name.startswith(("conv1", "layer1")) for name in left)
    only = use_fdconv_(timm.create_model("test_resnet"), where=lambda name, layer: name == "layer4.0.conv2")
    assert sum(isinstance(module, FDConv) for module in only.modules()) == 1


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Linear(4, 4), "fdconv stands in for a dense convolution, got Linear"),
        (nn.Conv2d(4, 4, 3, groups=2), "fdconv stands in for a dense convolution, got Conv2d"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "got a convolution with padding_mode='circular'"),
    ],
)
def test_layers_that_it_cannot_replace(layer, text):
    with pytest.raises(ValueError, match=text):
        stand_in(layer, (1, 4, 8, 8))


@pytest.mark.parametrize("count", [0, 21])
def test_groups_without_a_coefficient_are_refused(count):
    with pytest.raises(ValueError, match=f"num_groups must be in 1…20 for 20 coefficients, got {count}"):
        FDConv(2, 5, (1, 3), num_groups=count)
