"""NO-MRI: pictures from a part of their Fourier transform, whatever part was measured and however fine the grid.

*Source*: A. S. Jatyani et al., "A Unified Model for Compressed Sensing MRI Across Undersampling Patterns", CVPR 2025
(arXiv:2410.16290): the neural operators NO_k and NO_i and the unrolled network. With F the centred unitary transform, m
a mask of measured places and k̃ = m ⊙ F x, all (B, 1, H, W):

    k₀ = k̃ + NO_k(k̃)                                                      in k-space, whose grid stays as it is
    k_{t+1} = k_t - η_t m ⊙ (k_t - k̃) + F NO_i,t(F⁻¹ k_t)                 T cascades
    x̂ = |F⁻¹ (m ⊙ k̃ + (1 - m) ⊙ k_T)|

NO_k and NO_i are U-shaped, of discrete-continuous convolutions: a kernel is a function of place in the field of view,

    (κ ∗ f)(p) = ∫ κ(p - q) f(q) dq ≈ Σ_q κ̄(p - q) f(q),   κ = Σ_l θ_l φ_l,  l = 1 … (rings - 1)·angles + 1

φ_l is a hat in the radius times a hat in the angle, and κ̄ its integral over the cell of a pixel. So the same weights θ,
(out, in, l), make a kernel for every grid: 5×5 on the one it was trained on, 9×9 on one twice as fine.

*Differs from the paper*: one coil, so there are no sensitivity maps; kernels are integrated over cells, where they are
read at the middles of pixels; no instance normalisation; what was measured replaces the estimate at the end, since the
data has no noise; `spacing` is given with a picture, in place of a network compiled for a size.

*Provenance*: written from the paper; the basis, the doubling of radius and width with each level and the order of
layers from the authors' code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable

    Layer = Callable[[int, int, float], nn.Module]

__all__ = ["NOMRI", "DiscoConv", "UShapedOperator", "consistent", "disco_basis", "to_kspace", "to_picture"]

FINE = 8  # places in a cell, along each side, at which a kernel is read for its integral
RADIUS = 2.0  # pixels of the grid of spacing 1: kernels of 5×5 there


def to_kspace(x: Tensor) -> Tensor:
    """F: centred unitary Fourier transform.

    Args:
        x: (..., H, W), real or complex.

    Returns:
        (..., H, W), complex, frequency 0 in the middle, at (H // 2, W // 2).
    """
    moved = torch.fft.ifftshift(x, dim=(-2, -1))
    return torch.fft.fftshift(torch.fft.fft2(moved, norm="ortho"), dim=(-2, -1))


def to_picture(k: Tensor) -> Tensor:
    """F⁻¹, the inverse of `to_kspace`.

    Args:
        k: (..., H, W), complex.

    Returns:
        (..., H, W), complex.
    """
    moved = torch.fft.ifftshift(k, dim=(-2, -1))
    return torch.fft.fftshift(torch.fft.ifft2(moved, norm="ortho"), dim=(-2, -1))


def consistent(k: Tensor, measured: Tensor, mask: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Data consistency: a step towards what was measured; a projection with weight 1.

    Args:
        k: estimate, (B, 1, H, W), complex.
        measured: k̃, the same shape.
        mask: m, 1 where it was measured, (B, 1, H, W).
        weight: η.

    Returns:
        (B, 1, H, W), complex.
    """
    return k - weight * mask * (k - measured)


def disco_basis(radius: float, *, rings: int = 3, angles: int = 4) -> Tensor:
    """Basis of kernels, integrated over cells of pixels.

    Args:
        radius: beyond which kernels are 0, in pixels of the grid.
        rings: radii of the hats, from 0 to `radius`.
        angles: hats around each ring but the first.

    Returns:
        (L, k, k) in float64 with L = (rings - 1)·angles + 1 and odd k; each of integral 1.

    Raises:
        ValueError: fewer than two rings or angles, or no radius.
    """
    if rings < 2 or angles < 2 or radius <= 0:
        raise ValueError(
            f"a basis takes at least 2 rings, 2 angles and a radius above 0, got {rings}, {angles}, {radius:g}"
        )
    half = max(0, math.ceil(radius - 0.5))
    side = 2 * half + 1
    line = (torch.arange(side * FINE, dtype=torch.float64) + 0.5) / FINE - side / 2
    r, angle = torch.hypot(line[:, None], line), torch.atan2(line[:, None], line.expand(len(line), -1))
    step, turn = radius / (rings - 1), 2 * math.pi / angles
    hats = [F.relu(1 - r / step)]
    for ring in range(1, rings):
        for direction in range(angles):
            # difference of angles, from -π to π
            apart = torch.remainder(angle - direction * turn + math.pi, 2 * math.pi) - math.pi
            hats.append(F.relu(1 - (r / step - ring).abs()) * (r <= radius) * F.relu(1 - apart.abs() / turn))
    cells = F.avg_pool2d(torch.stack(hats)[None], FINE)[0]
    return cells / cells.sum((1, 2), keepdim=True)


class DiscoConv(nn.Module):
    """Discrete-continuous convolution, (B, in, H, W) and the spacing of the grid to (B, out, H, W).

    Args:
        in_channels: channels that it sees.
        out_channels: channels that it makes.
        radius: of its kernels, in pixels of the grid of spacing 1.
        rings: see `disco_basis`.
        angles: see `disco_basis`.
    """

    def __init__(self, in_channels: int, out_channels: int, radius: float, *, rings: int = 3, angles: int = 4) -> None:
        super().__init__()
        self.radius, self.rings, self.angles = radius, rings, angles
        count = (rings - 1) * angles + 1
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, count) * math.sqrt(2 / in_channels / count))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self._bases: dict[float, Tensor] = {}

    def kernel(self, spacing: float) -> Tensor:
        """κ̄ on a grid.

        Args:
            spacing: distance of its pixels.

        Returns:
            (out, in, k, k).
        """
        if spacing not in self._bases:
            self._bases[spacing] = disco_basis(self.radius / spacing, rings=self.rings, angles=self.angles)
        return torch.einsum("oil,lyx->oiyx", self.weight, self._bases[spacing].to(self.weight))

    def forward(self, x: Tensor, spacing: float) -> Tensor:
        kernel = self.kernel(spacing)
        return F.conv2d(x, kernel, self.bias, padding=kernel.shape[-1] // 2)


class UShapedOperator(nn.Module):
    """U-shaped operator, (B, C, H, W) and the spacing of the grid to (B, C, H, W), which starts as 0.

    Args:
        channels: C.
        dim: channels of the first level, twice as many at each level below.
        levels: number of levels.
        radius: of kernels of the first level, in pixels of the grid of spacing 1; twice as large at each level below.
        layer: makes a convolution of (in, out, radius), called with a map and a spacing.
    """

    def __init__(
        self, channels: int, *, dim: int = 32, levels: int = 4, radius: float = RADIUS, layer: Layer = DiscoConv
    ) -> None:
        super().__init__()

        def block(seen: int, level: int) -> nn.ModuleList:
            made, reach = dim * 2**level, radius * 2**level
            return nn.ModuleList([layer(seen, made, reach), layer(made, made, reach)])

        self.down = nn.ModuleList(block(dim * 2 ** (i - 1) if i else channels, i) for i in range(levels))
        self.rise = nn.ModuleList(
            layer(dim * 2 ** (i + 1), dim * 2**i, radius * 2**i) for i in reversed(range(levels - 1))
        )
        self.up = nn.ModuleList(block(dim * 2 ** (i + 1), i) for i in reversed(range(levels - 1)))
        self.out = nn.Conv2d(dim, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, spacing: float) -> Tensor:
        def through(block: nn.Module, y: Tensor, level: int) -> Tensor:
            for convolution in block.children():
                y = F.leaky_relu(convolution(y, spacing * 2**level), 0.2)
            return y

        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = through(block, F.avg_pool2d(x, 2, ceil_mode=True) if level else x, level)
            kept.append(x)
        y = kept.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            level, beside = len(kept) - 1, kept.pop()
            wide = F.interpolate(y, beside.shape[-2:], mode="bilinear", align_corners=False)
            y = F.leaky_relu(rise(wide, spacing * 2**level), 0.2)
            y = through(block, torch.cat([y, beside], 1), level)
        made: Tensor = self.out(y)
        return made


class NOMRI(nn.Module):
    """Measured k-space and its mask, (B, 3, H, W), to the picture, (B, 1, H, W).

    The input's channels are the real and the imaginary part of k̃, and m.

    Args:
        scale: 1; it does not enlarge.
        dim: channels of the first level of each operator.
        levels: of each operator.
        cascades: T.
        radius: of kernels, in pixels of the grid of spacing 1.
        layer: see `UShapedOperator`.

    Raises:
        ValueError: another scale.
    """

    in_channels, out_channels = 3, 1

    def __init__(
        self,
        scale: int = 1,
        *,
        dim: int = 32,
        levels: int = 4,
        cascades: int = 6,
        radius: float = RADIUS,
        layer: Layer = DiscoConv,
    ) -> None:
        super().__init__()
        if scale != 1:
            raise ValueError(f"NO-MRI reconstructs at the size of its grid, scale 1, got {scale}; give a finer grid")
        self.scale = scale

        def operator() -> UShapedOperator:
            return UShapedOperator(2, dim=dim, levels=levels, radius=radius, layer=layer)

        self.frequency = operator()
        self.pictures = nn.ModuleList(operator() for _ in range(cascades))
        self.weights = nn.Parameter(torch.ones(cascades))

    def forward(self, x: Tensor, spacing: float = 1.0) -> Tensor:
        measured, mask = torch.complex(x[:, :1], x[:, 1:2]), x[:, 2:]
        # values of k-space differ by orders of magnitude: NO_k sees them beside the largest
        largest = measured.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
        k = measured + largest * _complex(self.frequency(_real(measured / largest), 1.0))
        for weight, operator in zip(self.weights, self.pictures, strict=True):
            change = _complex(operator(_real(to_picture(k)), spacing))
            k = consistent(k, measured, mask, weight) + to_kspace(change)
        return to_picture(consistent(k, measured, mask)).abs()


def _real(x: Tensor) -> Tensor:
    """(B, 1, H, W), complex, to (B, 2, H, W)."""
    return torch.cat([x.real, x.imag], 1)


def _complex(x: Tensor) -> Tensor:
    """Inverse of `_real`."""
    return torch.complex(x[:, :1], x[:, 1:])


METHOD = Method(
    id=319,
    name="NO-MRI",
    kind="model",
    summary="Pictures from a part of their Fourier transform, by operators that fit any pattern and grid.",
    paper=Paper(
        "A Unified Model for Compressed Sensing MRI Across Undersampling Patterns",
        "A. S. Jatyani et al.",
        2025,
        "arXiv:2410.16290",
    ),
    models={"no_mri": NOMRI},
    cases={"no_mri": {"dim": 2, "levels": 2, "cascades": 1}},
)
