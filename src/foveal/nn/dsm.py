"""DSM's mixer: pixels are mixed by weights of their cosine spectrum, which each picture selects for itself.

*Source*: Z. Hu and T. Yu, "Dynamic Spectrum Mixer for Visual Recognition", 2023 (arXiv:2309.06721). With D the
orthonormal cosine transform (DCT-II) of H rows and of W columns,

    y = D⁻¹ (G(x) ⊙ D x),   G(x)_c = Σ_s p_s,c(x) W_s,c,   p(x) = softmax over s of MLP(mean x)

W holds S spectra of h×w weights for each of C channels, resized to H×W, and p selects among them by the picture's mean.
The transforms take O(N log N) operations for N = H·W pixels. With W = 1 the mixer is the identity, whatever p is; S = 1
is a static filter. A filter in this domain is a convolution with a symmetric kernel as large as the picture, whose
border is mirrored.

*Differs from the paper*: nothing that its abstract states. It leaves open how weights are generated from the content:
here p is per channel, after a perceptron of one hidden layer. `stand_in`, which puts the mixer in the place of a
trained depthwise convolution, is foveal's own.

*Provenance*: written from the paper's abstract and the formulas above; there is no code of the authors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.same_size import keeps_size
from foveal.record import Method, Paper

__all__ = ["DynamicSpectrumMixer", "dct", "dct_matrix", "idct", "matrix_spectrum_mix", "spectrum_mix", "stand_in"]

SPREAD = 0.2  # of the spectra around 1, at the start


def _phase(count: int, x: Tensor) -> Tensor:
    """Factors between the transform of the reordered samples and the cosine transform, (count // 2 + 1)."""
    angles = torch.arange(count // 2 + 1, dtype=x.dtype, device=x.device) * (-math.pi / (2 * count))
    lengths = torch.full_like(angles, math.sqrt(2))
    lengths[0] = 1
    return torch.polar(lengths, angles)


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last axis, by one Fourier transform of as many real numbers.

    Args:
        x: (..., n).

    Returns:
        (..., n), lowest frequency first.
    """
    count = x.shape[-1]
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    z = torch.fft.rfft(folded, norm="ortho") * _phase(count, x)
    return torch.cat([z.real, -z.imag[..., 1 : (count + 1) // 2].flip(-1)], -1)


def idct(x: Tensor) -> Tensor:
    """Inverse of `dct`.

    Args:
        x: (..., n), lowest frequency first.

    Returns:
        (..., n).
    """
    count = x.shape[-1]
    half = count // 2
    high = F.pad(x[..., count - half :].flip(-1), (1, 0))
    folded = torch.fft.irfft(torch.complex(x[..., : half + 1], -high) / _phase(count, x), n=count, norm="ortho")
    even, odd = folded[..., : count - half], folded[..., count - half :].flip(-1)
    pairs = torch.stack([even[..., :half], odd], -1).flatten(-2)
    return torch.cat([pairs, even[..., half:]], -1)


def spectrum_mix(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply the cosine spectrum of pictures.

    Args:
        x: (B, C, H, W).
        weight: (B, C, H, W), or 1 in the place of B or C; lowest frequencies first.

    Returns:
        (B, C, H, W).
    """
    spectrum = dct(dct(x).mT).mT * weight
    return idct(idct(spectrum).mT).mT


def dct_matrix(count: int) -> Tensor:
    """The cosine transform by its definition.

    Args:
        count: n.

    Returns:
        (n, n) of float64, a frequency per row; its transpose is its inverse.
    """
    places = torch.arange(count, dtype=torch.float64)
    matrix = (2 / count) ** 0.5 * torch.cos(math.pi / count * places[:, None] * (places + 0.5))
    matrix[0] /= 2**0.5
    return matrix


def matrix_spectrum_mix(x: Tensor, weight: Tensor) -> Tensor:
    """The same by the definition, products with matrices.

    It takes O(N^1.5) operations, but up to some 200 pixels a side less time than the Fourier transforms, and formats
    without complex numbers can hold it.

    Args:
        x: (B, C, H, W).
        weight: (B, C, H, W), or 1 in the place of B or C.

    Returns:
        (B, C, H, W).
    """
    rows, columns = (dct_matrix(count).to(x) for count in x.shape[2:])
    return rows.T @ ((rows @ x @ columns.T) * weight) @ columns


class DynamicSpectrumMixer(nn.Module):
    """(B, C, H, W) to the same shape, of any height and width.

    Args:
        dim: C.
        size: height and width, h and w, at which the spectra are stored.
        num_spectra: S; 1 for static weights.
        bias: whether a number is added to each channel.
        by_matrices: whether `matrix_spectrum_mix` computes it; else `spectrum_mix`.

    Raises:
        ValueError: no spectrum.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int] = (8, 8),
        num_spectra: int = 4,
        bias: bool = False,
        by_matrices: bool = False,
    ) -> None:
        super().__init__()
        if num_spectra < 1:
            raise ValueError(f"num_spectra must be at least 1, got {num_spectra}; 1 gives static weights")
        self.spectra = nn.Parameter(1 + SPREAD * torch.randn(num_spectra, dim, *size))
        self.by_matrices = by_matrices
        self.select = None
        if num_spectra > 1:
            hidden = max(8, dim // 4)
            self.select = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, num_spectra * dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def weights(self, x: Tensor) -> Tensor:
        """Weights of the spectrum of each picture.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, H, W), or 1 in the place of B if they are static.
        """
        spectra: Tensor = self.spectra
        if spectra.shape[2:] != x.shape[2:]:
            spectra = F.interpolate(spectra, x.shape[2:], mode="bilinear", align_corners=True)
        if self.select is None:
            return spectra
        shares = self.select(x.mean((2, 3))).unflatten(1, spectra.shape[:2]).softmax(1)
        return torch.einsum("bsc,schw->bchw", shares, spectra)

    def forward(self, x: Tensor) -> Tensor:
        mix = matrix_spectrum_mix if self.by_matrices else spectrum_mix
        out = mix(x, self.weights(x))
        return out if self.bias is None else out + self.bias[:, None, None]


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The mixer in the place of a depthwise convolution; equal to it for a symmetric kernel and a mirrored border.

    All spectra start as what the symmetric part of the kernel does to each frequency.

    Args:
        layer: depthwise convolution of stride 1 that keeps height and width.
        shape: shape of its input, (B, C, H, W).

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d) or not layer.groups == layer.in_channels == layer.out_channels:
        raise ValueError(f"dsm stands in for a depthwise convolution, got {layer}")
    odd = all(size % 2 for size in layer.kernel_size)
    if not odd or not keeps_size(layer):
        raise ValueError("dsm keeps height and width: it needs stride 1, an odd kernel and full padding")
    sides = (shape[2], shape[3])
    has_bias = layer.bias is not None
    mixer = DynamicSpectrumMixer(layer.in_channels, size=sides, bias=has_bias, by_matrices=True)
    waves = []
    for axis, side in enumerate(sides):
        reach = layer.kernel_size[axis] // 2
        taps = torch.arange(-reach, reach + 1) * layer.dilation[axis]
        waves.append(torch.cos(math.pi / side * torch.arange(side)[:, None] * taps))  # (side, k)
    mixer.spectra.copy_(waves[0] @ layer.weight[:, 0] @ waves[1].T)
    if layer.bias is not None and mixer.bias is not None:
        mixer.bias.copy_(layer.bias)
    return mixer


def _inputs(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(2, channels, 5, 8, generator=draw) for channels in (3, 1))
    return {"x": x, "weight": weight}


METHOD = Method(
    id=213,
    name="DSM",
    kind="operator",
    summary="Pixels are mixed by weights of their cosine spectrum, which each picture selects for itself.",
    paper=Paper("Dynamic Spectrum Mixer for Visual Recognition", "Z. Hu and T. Yu", 2023, "arXiv:2309.06721"),
    cases={"odd_by_even": Operator(spectrum_mix, matrix_spectrum_mix, _inputs)},
)
