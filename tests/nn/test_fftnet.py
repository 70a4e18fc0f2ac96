import math

import pytest
import torch
from timm.layers import Attention, LayerNorm
from torch import nn

from foveal.nn.fftnet import SpectralFilter, spectral_filter, stand_in
from foveal.shrink.swap.operators import operator


def test_a_wave_gets_the_gain_of_its_frequency_and_loses_to_the_bias():
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).view(1, 16, 1)  # magnitude 2 of frequency 3
    gain, bias = torch.ones(1, 1, 9), torch.zeros(1, 9)
    gain[..., 3] = -0.5
    torch.testing.assert_close(spectral_filter(wave, gain, bias), -0.5 * wave)
    bias[:, 3] = -0.25  # a quarter of the 1 that is left
    torch.testing.assert_close(spectral_filter(wave, gain, bias), -0.375 * wave)
    bias[:, 3] = -2
    assert spectral_filter(wave, gain, bias).abs().max() < 1e-6


def test_heads_have_their_own_filters():
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
    gain = torch.stack([torch.ones(4), torch.zeros(4)])[None]
    out = spectral_filter(x, gain, torch.zeros(2, 4))
    torch.testing.assert_close(out[..., :3], x[..., :3])
    assert not out[..., 3:].any()


def test_zero_tokens_stay_zero_and_have_gradients():
    x = torch.zeros(1, 5, 2, requires_grad=True)
    spectral_filter(x, torch.ones(1, 1, 3), torch.full((1, 3), 0.1)).sum().backward()
    assert x.grad.isfinite().all()


def test_the_filter_depends_on_the_mean_token():
    torch.manual_seed(0)
    layer, x = SpectralFilter(4, 5, num_heads=2), torch.randn(1, 5, 4)
    nn.init.zeros_(layer.bias)
    torch.testing.assert_close(layer(x), x)
    nn.init.normal_(layer.mlp[2].weight)
    gain = layer.base * (1 + layer.mlp(x.mean(1)).view(1, 2, 3))
    torch.testing.assert_close(layer(x), spectral_filter(x, gain, layer.bias))
    assert not torch.allclose(layer(x + 1) - layer(torch.ones_like(x)), layer(x))


def test_sizes():
    with pytest.raises(ValueError, match="num_heads must divide the 6 channels, got 4"):
        SpectralFilter(6, 9)
    with pytest.raises(ValueError, match="wanted 9 tokens, got 8; build the layer for that many"):
        SpectralFilter(8, 9)(torch.zeros(1, 8, 8))


@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_as_the_attention_between_equal_tokens(bias):
    torch.manual_seed(0)
    layer = Attention(12, num_heads=3, qkv_bias=bias, proj_bias=bias).eval()
    x = torch.randn(2, 1, 12).expand(2, 7, 12)
    stand = operator("fftnet").stand_in(layer, (1, 7, 12))
    assert stand[0].base.shape == (3, 4)
    torch.testing.assert_close(stand(x), layer(x))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Linear(4, 4), "stands in for timm's attention, got Linear"),
        (Attention(4, num_heads=2, gated=True), "without a gate"),
        (Attention(4, num_heads=2, scale_norm=True, norm_layer=LayerNorm), "without a norm before its projection"),
    ],
)
def test_layers_that_it_cannot_replace(layer, text):
    with pytest.raises(ValueError, match=text):
        stand_in(layer, (1, 5, 4))
