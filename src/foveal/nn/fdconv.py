"""FDConv: one convolution's weights, split by frequency into groups that each picture weights for itself.

*Source*: L. Chen et al., "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025 (arXiv:2503.18783). It
has three parts, for x: (B, C, H, W), a kernel W: (O, C, k, k) and n groups.

Fourier disjoint weight: W is written as a plane of O·k rows and C·k columns, whose Fourier coefficients P are sorted by
their distance from frequency 0 and cut into n groups S₁ … S_n. With 𝓕⁻¹ the inverse transform of the plane,

    W(x) = Σ_g a_g(x) · 𝓕⁻¹(P restricted to S_g) = 𝓕⁻¹(a_g(x) · P on each S_g)

so that n kernels of disjoint spectra cost the parameters of one. Kernel spatial modulation: each weight has a gain
between 0 and 2, from the mean m(x) of each channel,

    W'(x) = W(x) ⊙ α_C ⊙ α_O ⊙ α_k ⊙ α(x),   α_C, α_O, α_k and a = 2σ(heads of one hidden layer of m)
                                              α = 2σ(a convolution along the channels of norm m): (O, C, k, k)

Frequency band modulation: the map falls into octaves of frequency, each with a gain per pixel, and

    y = W'(x) * (x_low + Σ_b A_b ⊙ x_b),   A_b = 2σ(3×3 convolution of x): (B, 1, H, W),  b = above 1/4, 1/8 and 1/16

*Differs from the paper*: the coefficients r and -r of a real plane's first and middle columns are one conjugate pair
and stay in one group; the authors' code may cut between them, and the two groups then overlap. Transforms are
orthonormal, so coefficients have the size of weights. All heads start at 0, so that the layer starts as a plain
convolution. The bands' masks are computed for each size, not resized from 64×64, and all include their bound; by
rounding, the authors' first one does not.

*Provenance*: written from the paper's abstract; formulas, sizes of the heads, bands and the layers that are replaced
were looked up in the authors' code. With its groups and the bound of its first mask included, outputs equal it to 4e-7
at 64×64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FDConv",
    "band_modulation",
    "fourier_coefficients",
    "frequency_groups",
    "group_kernels",
    "mixed_kernels",
    "mixed_kernels_reference",
    "stand_in",
    "use_fdconv_",
]

OCTAVES = (4, 8, 16)  # a band ends at one cycle in so many pixels
SMALLEST = 16  # `use_fdconv_` leaves layers of at most so many channels


def frequency_groups(rows: int, columns: int, num_groups: int) -> Tensor:
    """Which group each Fourier coefficient of a real plane belongs to; the lowest frequencies are group 0.

    Args:
        rows: R.
        columns: C.
        num_groups: n, at most the number of coefficients.

    Returns:
        (R, C // 2 + 1) of int64, from 0 to n - 1.

    Raises:
        ValueError: more groups than coefficients, or none.
    """
    down, across = (torch.fft.fftfreq(rows, dtype=torch.float64), torch.fft.rfftfreq(columns, dtype=torch.float64))
    distance = torch.hypot(down[:, None], across).flatten()
    count = len(distance)
    if not 1 <= num_groups <= count:
        raise ValueError(f"num_groups must be in 1…{count} for {count} coefficients, got {num_groups}")
    groups = torch.empty(count, dtype=torch.int64)
    groups[distance.argsort(stable=True)] = torch.arange(count) * num_groups // count
    groups = groups.view(rows, -1)
    mirrored = groups.roll(-1, 0).flip(0)  # row -r in the place of row r
    for column in {0, columns // 2} if columns % 2 == 0 else {0}:
        groups[:, column] = torch.minimum(groups[:, column], mirrored[:, column])
    return groups


def fourier_coefficients(weight: Tensor) -> Tensor:
    """Orthonormal Fourier coefficients of a kernel, written as a plane.

    Args:
        weight: (O, C, k, l).

    Returns:
        (O·k, C·l // 2 + 1, 2): real and imaginary parts.
    """
    plane = weight.transpose(1, 2).flatten(2).flatten(0, 1)
    return torch.view_as_real(torch.fft.rfft2(plane, norm="ortho"))


def mixed_kernels(coefficients: Tensor, groups: Tensor, shares: Tensor, size: tuple[int, int, int, int]) -> Tensor:
    """A kernel for each picture: the sum of the kernels of all groups, by one inverse transform.

    Args:
        coefficients: P, (O·k, C·l // 2 + 1, 2).
        groups: group of each coefficient, (O·k, C·l // 2 + 1) of int64 or int32.
        shares: a, (B, n).
        size: (O, C, k, l).

    Returns:
        (B, O, C, k, l).
    """
    outs, ins, height, width = size
    # (B, O·k, C·l // 2 + 1)
    spectrum = torch.complex(coefficients[..., 0], coefficients[..., 1]) * shares[:, groups]
    plane = torch.fft.irfft2(spectrum, s=(outs * height, ins * width), norm="ortho")
    return plane.view(-1, outs, height, ins, width).transpose(2, 3)


def mixed_kernels_reference(
    coefficients: Tensor, groups: Tensor, shares: Tensor, size: tuple[int, int, int, int]
) -> Tensor:
    """The same wave by wave: a kernel for each group, and their sum.

    Args:
        coefficients: P, (O·k, C·l // 2 + 1, 2).
        groups: group of each coefficient, (O·k, C·l // 2 + 1).
        shares: a, (B, n).
        size: (O, C, k, l).

    Returns:
        (B, O, C, k, l).
    """
    outs, ins, height, width = size
    rows, columns = outs * height, ins * width
    y, x = (torch.arange(side).to(coefficients) / side for side in (rows, columns))
    kernels = list(coefficients.new_zeros(shares.shape[1], rows, columns))
    for row in range(rows):
        for column in range(columns // 2 + 1):
            angle = 2 * math.pi * (row * y[:, None] + column * x)
            real, imaginary = coefficients[row, column]
            twice = 1 if column in (0, columns / 2) else 2  # its conjugate is not stored
            wave = twice / (rows * columns) ** 0.5 * (real * angle.cos() - imaginary * angle.sin())
            group = int(groups[row, column])
            kernels[group] = kernels[group] + wave
    plane = torch.einsum("bn,nyx->byx", shares, torch.stack(kernels))
    return plane.reshape(-1, outs, height, ins, width).transpose(2, 3)


def group_kernels(coefficients: Tensor, groups: Tensor, num_groups: int, size: tuple[int, int, int, int]) -> Tensor:
    """The kernels that are mixed.

    Args:
        coefficients: P, (O·k, C·l // 2 + 1, 2).
        groups: group of each coefficient, (O·k, C·l // 2 + 1) of int64 or int32.
        num_groups: n.
        size: (O, C, k, l).

    Returns:
        (n, O, C, k, l).
    """
    return mixed_kernels(coefficients, groups, torch.eye(num_groups).to(coefficients), size)


def band_modulation(x: Tensor, gains: Tensor) -> Tensor:
    """Multiply octaves of frequency by gains that differ from pixel to pixel; gains of 1 change nothing.

    Args:
        x: (B, C, H, W).
        gains: (B, 3, H, W), of the frequencies above 1/4, 1/8 and 1/16 cycles per pixel; what is below passes.

    Returns:
        (B, C, H, W).
    """
    height, width = x.shape[2:]
    spectrum = torch.fft.rfft2(x)
    down = torch.arange(height, device=x.device)
    down, across = torch.minimum(down, height - down), torch.arange(width // 2 + 1, device=x.device)
    out, above = torch.zeros_like(x), x
    for octave, gain in zip(OCTAVES, gains.split(1, 1), strict=True):
        kept = (octave * down <= height)[:, None] & (octave * across <= width)
        below = torch.fft.irfft2(spectrum * kept, s=(height, width))
        out = out + gain * (above - below)
        above = below
    return out + above


class _KernelModulation(nn.Module):
    """Means of the channels, (B, C), to the shares of the groups, (B, n), and the gains of the weights (B, O, C, k, l).

    All heads start at 0 and all outputs at 1. While it trains, the batch norm needs at least two pictures.
    """

    def __init__(self, size: tuple[int, int, int, int], num_groups: int, reduction: float) -> None:
        super().__init__()
        outs, ins, height, width = self.size = size
        hidden = max(int(ins * reduction), SMALLEST)
        self.fc, self.bn = nn.Linear(ins, hidden, bias=False), nn.BatchNorm1d(hidden)
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.channel, self.filter = nn.Linear(hidden, ins), nn.Linear(hidden, outs)
        self.spatial = nn.Linear(hidden, height * width) if height * width > 1 else None
        self.group = nn.Linear(hidden, num_groups)
        reach = round(math.log2(ins) / 2 + 0.5) // 2
        self.norm = nn.LayerNorm(ins)
        self.local = nn.Conv1d(1, outs * height * width, 2 * reach + 1, padding=reach, bias=False)
        for head in (self.channel, self.filter, self.spatial, self.group, self.local):
            if head is not None:
                nn.init.zeros_(head.weight)
                if head.bias is not None:
                    nn.init.zeros_(head.bias)

    def forward(self, means: Tensor) -> tuple[Tensor, Tensor]:
        outs, ins, height, width = self.size
        hidden = self.scale * self.bn(self.fc(means)).relu().square() + self.shift
        # (B, O·k·l, C) to (B, O, C, k, l)
        gain = 2 * self.local(self.norm(means)[:, None]).sigmoid()
        gain = gain.view(-1, outs, height, width, ins).permute(0, 1, 4, 2, 3)
        gain = gain * (2 * self.channel(hidden).sigmoid())[:, None, :, None, None]
        gain = gain * (2 * self.filter(hidden).sigmoid())[:, :, None, None, None]
        if self.spatial is not None:
            gain = gain * (2 * self.spatial(hidden).sigmoid()).view(-1, 1, 1, height, width)
        return 2 * self.group(hidden).sigmoid(), gain


class FDConv(nn.Module):
    """(B, in_channels, H, W) to (B, out_channels, H', W'), as a dense convolution.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: k and l; the bands are modulated if one of them is above 1.
        stride: distance of the windows.
        padding: zeros around the map, or "same" or "valid".
        dilation: distance between the pixels that meet neighbouring taps.
        bias: whether a number is added to each channel.
        num_groups: n.
        reduction: hidden features of the modulation over C; there are at least 16.

    Raises:
        ValueError: more groups than Fourier coefficients.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int] = (3, 3),
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        bias: bool = True,
        num_groups: int = 64,
        reduction: float = 1 / 16,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.size = (out_channels, in_channels, *kernel_size)
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias)
        self.dft_weight, self.bias = nn.Parameter(fourier_coefficients(plain.weight.detach())), plain.bias
        groups = frequency_groups(out_channels * kernel_size[0], in_channels * kernel_size[1], num_groups)
        self.groups: Tensor
        self.register_buffer("groups", groups.int())  # saved, because `swap` rebuilds a network from what is saved
        self.modulation = _KernelModulation(self.size, num_groups, reduction)
        self.bands = None
        if max(kernel_size) > 1:
            self.bands = nn.Conv2d(in_channels, len(OCTAVES), 3, padding=1)
            nn.init.zeros_(self.bands.weight)
            if self.bands.bias is not None:
                nn.init.zeros_(self.bands.bias)

    def kernels(self, x: Tensor) -> Tensor:
        """The kernel of each picture.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, O, C, k, l).
        """
        shares, gain = self.modulation(x.mean((2, 3)))
        return mixed_kernels(self.dft_weight, self.groups, shares, self.size) * gain

    def forward(self, x: Tensor) -> Tensor:
        kernels, batch = self.kernels(x), len(x)
        if self.bands is not None:
            x = band_modulation(x, 2 * self.bands(x).sigmoid())
        # all pictures as the groups of one, so that each meets its own kernel
        x = x.reshape(1, -1, *x.shape[2:])
        out = F.conv2d(
            x,
            kernels.flatten(0, 1),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=batch,
        )
        out = out.view(batch, -1, *out.shape[2:])
        return out if self.bias is None else out + self.bias[:, None, None]


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...], *, num_groups: int = 64) -> nn.Module:  # noqa: ARG001 - see `swap`
    """FDConv in the place of a dense convolution; it starts equal to it.

    Args:
        layer: dense convolution, padded with zeros.
        shape: shape of its input, (B, C, H, W).
        num_groups: n; no more than there are Fourier coefficients.

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        raise ValueError(f"fdconv stands in for a dense convolution, got {layer}")
    if layer.padding_mode != "zeros":
        raise ValueError(f"fdconv pads with zeros, got a convolution with padding_mode={layer.padding_mode!r}")
    coefficients = fourier_coefficients(layer.weight.float())
    operator = FDConv(
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size[0], layer.kernel_size[1]),
        stride=(layer.stride[0], layer.stride[1]),
        padding=layer.padding if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1]),
        dilation=(layer.dilation[0], layer.dilation[1]),
        bias=layer.bias is not None,
        num_groups=min(num_groups, coefficients[..., 0].numel()),
    ).to(layer.weight)
    operator.dft_weight.copy_(coefficients)
    if layer.bias is not None and operator.bias is not None:
        operator.bias.copy_(layer.bias)
    return operator.train(layer.training)


def _in_a_block(name: str, layer: nn.Conv2d) -> bool:
    """Convolutions of 1×1 and 3×3 of a ResNet's blocks, as in the authors' detectors."""
    wide = min(layer.in_channels, layer.out_channels) > SMALLEST
    return wide and layer.kernel_size in ((1, 1), (3, 3)) and "downsample" not in name


def use_fdconv_(
    model: nn.Module, *, num_groups: int = 64, where: Callable[[str, nn.Conv2d], bool] = _in_a_block
) -> nn.Module:
    """Put FDConv in the place of a network's convolutions; outputs stay the same at first.

    Args:
        model: network, such as a ResNet of torchvision or timm, changed in place.
        num_groups: n.
        where: function from name and convolution to whether it is replaced; the default takes those of 1×1 and 3×3
            between more than 16 channels, but for those in a "downsample".

    Returns:
        The model.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and where(name, layer):
            model.set_submodule(name, stand_in(layer, (), num_groups=num_groups))
    return model


def _inputs(seed: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    size = (2, 3, 3, 3)
    return {
        "coefficients": torch.randn(6, 5, 2, generator=generator),
        "groups": frequency_groups(6, 9, 4),
        "shares": torch.rand(2, 4, generator=generator),
        "size": size,
    }


METHOD = Method(
    id=297,
    name="FDConv",
    kind="operator",
    summary="The weights of one convolution, split by frequency into groups that each picture weights for itself.",
    paper=Paper("Frequency Dynamic Convolution for Dense Image Prediction", "L. Chen et al.", 2025, "arXiv:2503.18783"),
    cases={"four_groups": Operator(mixed_kernels, mixed_kernels_reference, _inputs)},
)
