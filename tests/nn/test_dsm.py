import math

import pytest
import torch
from torch import nn

from foveal.nn.dsm import DynamicSpectrumMixer, dct, dct_matrix, idct, matrix_spectrum_mix, stand_in
from foveal.shrink.swap.operators import operator


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 63, 100])
def test_the_transform_is_its_matrix_and_the_inverse_undoes_it(count):
    x = torch.randn(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dct(x), x @ dct_matrix(count).T)
    torch.testing.assert_close(idct(x), x @ dct_matrix(count))
    torch.testing.assert_close(idct(dct(x.float())), x.float())


def test_a_cosine_has_one_coefficient():
    wave = torch.cos(math.pi / 8 * 3 * (torch.arange(8) + 0.5))
    wanted = torch.zeros(8)
    wanted[3] = 2  # the length of the wave
    torch.testing.assert_close(dct(wave), wanted)


def test_each_picture_selects_its_spectra():
    torch.manual_seed(0)
    layer, x = DynamicSpectrumMixer(4, size=(3, 5)), torch.randn(2, 4, 3, 5)
    with torch.no_grad():
        weights = layer.weights(x)
        shares = layer.select(x.mean((2, 3))).view(2, 4, 4).softmax(1)
    wanted = sum(shares[:, s, :, None, None] * layer.spectra[s] for s in range(4))
    torch.testing.assert_close(weights, wanted)
    assert not torch.allclose(weights[0], weights[1])
    torch.testing.assert_close(layer(x), matrix_spectrum_mix(x, weights))


def test_static_weights_are_resized_and_the_lowest_frequency_stays():
    layer = DynamicSpectrumMixer(2, size=(2, 2), num_spectra=1)
    weights = layer.weights(torch.zeros(1, 2, 5, 3))
    assert weights.shape == (1, 2, 5, 3)
    torch.testing.assert_close(weights[:, :, ::4, ::2], layer.spectra)
    torch.testing.assert_close(weights[0, :, 2, 1], layer.spectra[0].mean((1, 2)))


def test_no_spectrum():
    with pytest.raises(ValueError, match="num_spectra must be at least 1, got 0; 1 gives static weights"):
        DynamicSpectrumMixer(4, num_spectra=0)


@pytest.mark.parametrize("options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 5, "padding": 4, "dilation": 2}])
def test_it_starts_as_the_convolution_with_a_symmetric_kernel_and_a_mirrored_border(options):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 3, groups=3, **options), torch.randn(2, 3, 9, 12)
    stand = operator("dsm").stand_in(layer, (1, 3, 9, 12))
    symmetric = (layer.weight + layer.weight.flip(2)) / 2
    symmetric = (symmetric + symmetric.flip(3)) / 2
    reach = options["padding"]
    left, right = x[..., :reach].flip(3), x[..., -reach:].flip(3)
    wide = torch.cat([left, x, right], 3)
    wide = torch.cat([wide[:, :, :reach].flip(2), wide, wide[:, :, -reach:].flip(2)], 2)
    wanted = torch.conv2d(wide, symmetric, layer.bias, dilation=layer.dilation, groups=3)
    torch.testing.assert_close(stand(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), "stands in for a depthwise convolution, got Conv2d"),
        (nn.Linear(4, 4), "got Linear"),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), "needs stride 1"),
        (nn.Conv2d(4, 4, 2, padding="same", groups=4), "an odd kernel"),
        (nn.Conv2d(4, 4, 3, groups=4), "full padding"),
    ],
)
def test_layers_that_it_cannot_replace(layer, text):
    with pytest.raises(ValueError, match=text):
        stand_in(layer, (1, 4, 8, 8))
