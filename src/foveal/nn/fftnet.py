"""FFTNet's mixer: tokens are mixed by a filter of their frequencies that depends on the mean token, not by attention.

*Source*: J. Fein-Ashley, "The FFT Strikes Back: An Efficient Alternative to Self-Attention", 2025 (arXiv:2502.18394,
versions 1 and 2). For N tokens x of C channels in h heads, all transforms along the tokens and unitary,

    z = F x                                           N // 2 + 1 frequencies k, the other half mirrors them
    z ← W_base ⊙ (1 + ΔW) ⊙ z,  ΔW = MLP(mean x)       one real gain per head and frequency
    z ← ReLU(|z| + b) · z / |z|                        modReLU, b per head and frequency
    y = F⁻¹ z

in O(N log N) operations, where attention takes O(N²). With W_base = 1, ΔW = 0 and b = 0 it is the identity.

*Differs from the paper*: the residual and the normalisation around it are left to the block; the perceptron starts at
ΔW = 0; a coefficient whose magnitude is below 1e-6 is divided by that. `stand_in`, which puts the mixer and one linear
layer in the place of a trained attention, is foveal's own.

*Provenance*: written from the formulas above; one gain per head and frequency, the widths of the perceptron and a start
at b = -0.1 as in the authors' code of February 2025. That code without residual, dropout and normalisation gives the
same numbers to 6e-8 of the largest where no magnitude is below 1e-3, its own floor.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = ["SpectralFilter", "spectral_filter", "spectral_filter_reference", "stand_in"]

FLOOR = 1e-6  # magnitudes are divided by at least this


def spectral_filter(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Filter tokens in the frequency domain.

    Args:
        x: tokens, (B, N, C).
        gain: factor of each head's frequencies, (B, h, N // 2 + 1), or 1 in the place of B.
        bias: b of modReLU, (h, N // 2 + 1).

    Returns:
        (B, N, C).
    """
    z = torch.fft.rfft(x, dim=1, norm="ortho").unflatten(2, (len(bias), -1))  # (B, F, h, C / h)
    z = z * gain.transpose(1, 2)[..., None]
    size = z.abs()
    z = z * ((size + bias.T[..., None]).relu() / size.clamp_min(FLOOR))
    return torch.fft.irfft(z.flatten(2), n=x.shape[1], dim=1, norm="ortho")


def spectral_filter_reference(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """The same by the matrix of the transform, all N frequencies, and the real part at the end.

    Args:
        x: tokens, (B, N, C).
        gain: (B, h, N // 2 + 1), or 1 in the place of B.
        bias: (h, N // 2 + 1).

    Returns:
        (B, N, C).
    """
    count = x.shape[1]
    places = torch.arange(count, device=x.device)
    mirrored = torch.minimum(places, count - places)
    angles = -2 * math.pi / count * (places[:, None] * places % count).to(x.dtype)
    matrix = torch.polar(torch.full_like(angles, count**-0.5), angles)
    heads = torch.complex(x, torch.zeros_like(x)).unflatten(2, (len(bias), -1))
    z = torch.einsum("kn,bnhc->bhkc", matrix, heads) * gain[..., mirrored, None]
    z = (z.abs() + bias[:, mirrored, None]).relu() * z.sgn()
    return torch.einsum("kn,bhkc->bnhc", matrix.conj(), z).real.flatten(2)


class SpectralFilter(nn.Module):
    """(B, N, C) to the same shape; N is fixed.

    Args:
        dim: C.
        num_tokens: N.
        num_heads: h; the channels of a head share their filter.

    Raises:
        ValueError: heads that do not divide the channels.
    """

    def __init__(self, dim: int, num_tokens: int, *, num_heads: int = 4) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the {dim} channels, got {num_heads}")
        self.num_tokens = num_tokens
        filters = (num_heads, num_tokens // 2 + 1)
        self.base = nn.Parameter(torch.ones(filters))
        self.bias = nn.Parameter(torch.full(filters, -0.1))
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), last := nn.Linear(dim, math.prod(filters)))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens.

        Args:
            x: tokens, (B, N, C).

        Returns:
            (B, N, C).

        Raises:
            ValueError: another number of tokens.
        """
        if x.shape[1] != self.num_tokens:
            raise ValueError(f"wanted {self.num_tokens} tokens, got {x.shape[1]}; build the layer for that many")
        change = self.mlp(x.mean(1)).unflatten(1, self.base.shape)
        return spectral_filter(x, self.base * (1 + change), self.bias)


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The filter and one linear layer in the place of a trained attention; equal to it if all tokens are equal.

    The filter starts as the identity and the linear layer as the product of the projections to values and out.

    Args:
        layer: timm's attention without a gate and without a normalisation before its last projection.
        shape: shape of its input, (B, N, C); the stand-in takes that many tokens.

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    from timm.layers import Attention

    if not isinstance(layer, Attention):
        raise ValueError(f"fftnet stands in for timm's attention, got {type(layer).__name__}")
    if layer.gate is not None or not isinstance(layer.norm, nn.Identity):
        raise ValueError("fftnet stands in for an attention without a gate and without a norm before its projection")
    dim = shape[2]
    mixer = SpectralFilter(dim, shape[1], num_heads=math.gcd(layer.num_heads, dim))
    nn.init.zeros_(mixer.bias)
    linear = nn.Linear(dim, layer.proj.out_features)
    linear.weight.copy_(layer.proj.weight @ layer.qkv.weight[-layer.attn_dim :])
    nn.init.zeros_(linear.bias)
    if layer.qkv.bias is not None:
        linear.bias.add_(layer.proj.weight @ layer.qkv.bias[-layer.attn_dim :])
    if layer.proj.bias is not None:
        linear.bias.add_(layer.proj.bias)
    return nn.Sequential(mixer, linear)


def _inputs(seed: int, count: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    half = count // 2 + 1
    x, gain, bias = (torch.randn(shape, generator=draw) for shape in ((2, count, 6), (2, 3, half), (3, half)))
    return {"x": x, "gain": gain, "bias": bias / 4}


METHOD = Method(
    id=51,
    name="FFTNet",
    kind="operator",
    summary="Tokens are mixed by a filter of their frequencies that depends on the mean token.",
    paper=Paper(
        "The FFT Strikes Back: An Efficient Alternative to Self-Attention", "J. Fein-Ashley", 2025, "arXiv:2502.18394"
    ),
    cases={
        name: Operator(spectral_filter, spectral_filter_reference, partial(_inputs, count=count))
        for name, count in (("one", 1), ("even", 8), ("odd", 63))
    },
)
