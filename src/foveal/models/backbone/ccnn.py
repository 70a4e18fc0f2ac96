"""CCNN: one residual network for sequences, pictures and volumes, with kernels read off functions of coordinates.

*Source*: D. M. Knigge et al., "Modelling Long Range Dependencies in ND: From Task-Specific to a General Purpose CNN",
ICLR 2023 (arXiv:2301.10540), sections 3 and 4. All layers see the whole input, nothing is downsampled, and no layer
knows how many axes there are but the coordinates p in [-1, 1]^d of its kernel. For x: (B, C, N_1, …, N_d)

    K(p) = exp(-½ Σ_axes (p / σ)²) ⊙ MAGNet(p)                          (C, taps of the grid), σ: (d,) is learnt
    conv(x) = W (K * x + b) + w                                         depthwise, then pointwise
    x = gelu(norm(conv(x)))                                             the stem
    x = x + gelu(W₂ dropout(gelu(conv(norm(x)))) + w₂)                  each block
    y = head(mean(norm(x)))

Where the mask is under a tenth along an axis the kernel is cut off, so its size is learnt too. As K is a function, the
network can be read at another resolution: at r times as many places per unit of length the taps stand r times as close
and are divided by r^d. Kernels of many taps are convolved by FFT.

*Differs from the paper*: the generator starts so that each kernel has unit energy on the mean over channels; the paper
assumes that it gives unit variance and divides by the root of the number of taps. Kernels of sequences have a middle as
those of pictures do; the authors' are causal there, with other masks, so that not all settings were shared. `omega_0`
starts waves under two taps long in the authors' settings (500 to 4,000, for each data set); the default of 1 keeps them
longer, which another resolution needs. Point clouds are not here.

*Provenance*: written from the paper; block, mask and how weights start were looked up in the authors' code.
Networks for pictures and sequences equal that code, with its centred convolution for both, to 5e-7 under equal weights.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.coordinate_kernels import MAGNet, grid, sampled, unit_energy_
from foveal.nn.global_conv import global_conv
from foveal.record import Method, Paper

__all__ = ["CCNN", "ContinuousConv", "ccnn_4_140", "ccnn_6_380"]

CUT = 0.1  # value of the mask under which the kernel is cut off


class ContinuousConv(nn.Module):
    """Depthwise convolution with a kernel of coordinates, then a pointwise one: (B, C, *sizes) to (B, C', *sizes).

    Args:
        dim: C.
        out_channels: C'.
        data_dim: d, 1 to 3.
        kernel_size: taps of each axis from -1 to 1, odd and at least 3.
        hidden: width of the kernel's generator.
        omega_0: frequency of its waves at the start.
        mask_width: σ at the start, in units in which the kernel reaches from -1 to 1.

    Raises:
        ValueError: an even kernel, or a dimension that there is not.
    """

    def __init__(
        self,
        dim: int,
        out_channels: int,
        *,
        data_dim: int = 2,
        kernel_size: int = 33,
        hidden: int = 32,
        omega_0: float = 1.0,
        mask_width: float = 0.25,
    ) -> None:
        super().__init__()
        if data_dim not in (1, 2, 3):
            raise ValueError(f"data_dim must be 1, 2 or 3, got {data_dim}")
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd and at least 3, got {kernel_size}; take {max(kernel_size // 2 * 2 + 1, 3)}"
            )
        self.data_dim, self.kernel_size = data_dim, kernel_size
        self.mask_width = nn.Parameter(torch.full((data_dim,), mask_width))
        # windows of the generator start where the mask leaves something, as in the authors' code
        self.network = MAGNet(data_dim, dim, hidden=hidden, omega_0=omega_0, spread=1.667 * mask_width)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.mix = nn.Conv1d(dim, out_channels, 1)
        nn.init.kaiming_normal_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]
        unit_energy_(self.network, self.kernel().detach())

    def taps(self, resolution: float = 1.0) -> list[int]:
        """Taps of each axis that the mask leaves.

        Args:
            resolution: r, places per unit of length over those of training.

        Returns:
            d odd numbers.
        """
        reach = self.kernel_size // 2
        if self.mask_width.is_meta:
            widths = [1.0] * self.data_dim
        else:
            widths = [abs(width) * math.sqrt(-2 * math.log(CUT)) for width in self.mask_width.tolist()]
        # a hair more, so that a mask that ends at a tap keeps it
        return [2 * int(min(width, 1.0) * reach * resolution * (1 + 1e-6)) + 1 for width in widths]

    def kernel(self, resolution: float = 1.0) -> Tensor:
        """The kernel of each channel.

        Args:
            resolution: r, places per unit of length over those of training.

        Returns:
            (C, *taps).
        """
        sizes = self.taps(resolution)
        step = [1 / (self.kernel_size // 2 * resolution)] * self.data_dim
        places = grid(sizes, step, device=self.mask_width.device, dtype=self.mask_width.dtype)
        mask = torch.exp(-0.5 * (places / self.mask_width).square().sum(-1))
        return mask * sampled(self.network, sizes, step) / resolution**self.data_dim

    def forward(self, x: Tensor, resolution: float = 1.0, *, fft: bool | None = None) -> Tensor:
        out = global_conv(x, self.kernel(resolution), fft=fft).flatten(2) + self.bias[:, None]
        return self.mix(out).unflatten(2, x.shape[2:])


class _Block(nn.Module):
    """(B, C, *sizes) to the same."""

    def __init__(self, dim: int, dropout: float, **kernel: Any) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(dim), ContinuousConv(dim, dim, **kernel)
        self.dropout, self.linear = nn.Dropout1d(dropout), nn.Conv1d(dim, dim, 1)
        nn.init.kaiming_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, resolution: float, fft: bool | None) -> Tensor:
        out = self.norm(x.flatten(2)).view(x.shape)
        out = self.dropout(F.gelu(self.conv(out, resolution, fft=fft).flatten(2)))
        return x + F.gelu(self.linear(out)).view(x.shape)


class CCNN(nn.Module):
    """Classifier of sequences, pictures or volumes, (B, in_channels, *sizes) to (B, num_classes), of any sizes.

    Args:
        dim: C.
        depth: number of blocks.
        data_dim: d, number of axes, 1 to 3.
        kernel_size: taps of each axis at the resolution of training, odd; twice the input's less one sees all of it.
        hidden: width of the kernels' generators.
        omega_0: frequency of their waves at the start.
        mask_width: σ at the start, in units in which a kernel reaches from -1 to 1.
        in_channels: number of channels of the input.
        num_classes: number of classes; 0 returns pooled features.
        dropout: probability of dropping a channel of a block while training.
    """

    def __init__(
        self,
        dim: int = 140,
        depth: int = 4,
        *,
        data_dim: int = 2,
        kernel_size: int = 33,
        hidden: int = 32,
        omega_0: float = 1.0,
        mask_width: float = 0.25,
        in_channels: int = 3,
        num_classes: int = 1000,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.data_dim, self.in_channels, self.num_classes = data_dim, in_channels, num_classes
        kernel: dict[str, Any] = {
            "data_dim": data_dim,
            "kernel_size": kernel_size,
            "hidden": hidden,
            "omega_0": omega_0,
            "mask_width": mask_width,
        }
        self.stem, self.stem_norm = ContinuousConv(in_channels, dim, **kernel), nn.BatchNorm1d(dim)
        self.blocks = nn.ModuleList(_Block(dim, dropout, **kernel) for _ in range(depth))
        self.norm = nn.BatchNorm1d(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.kaiming_normal_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, resolution: float = 1.0, *, fft: bool | None = None) -> Tensor:
        """Classify.

        Args:
            x: (B, in_channels, *sizes).
            resolution: r, places per unit of length over those of the inputs that the network was trained with.
            fft: whether kernels are convolved by Fourier transforms; None decides by their size.

        Returns:
            (B, num_classes).

        Raises:
            ValueError: an input of other axes.
        """
        if x.ndim != self.data_dim + 2:
            raise ValueError(
                f"x must be (B, C, …) with {self.data_dim} axes of places, got {tuple(x.shape)}; data_dim sets how many"
            )
        x = self.stem(x, resolution, fft=fft)
        x = F.gelu(self.stem_norm(x.flatten(2))).view(x.shape)
        for block in self.blocks:
            x = block(x, resolution, fft)
        return self.head(self.norm(x.flatten(2)).mean(2))


ccnn_4_140 = CCNN  # CCNN-4,140: about 200 K parameters with ten classes
ccnn_6_380 = partial(CCNN, 380, 6, hidden=64)  # CCNN-6,380: about 2 M

METHOD = Method(
    id=167,
    name="CCNN",
    kind="model",
    summary="One residual network for one, two and three dimensions, with kernels read off functions of coordinates.",
    paper=Paper(
        "Modelling Long Range Dependencies in ND: From Task-Specific to a General Purpose CNN",
        "D. M. Knigge et al.",
        2023,
        "arXiv:2301.10540",
    ),
    models={"ccnn_4_140": ccnn_4_140, "ccnn_6_380": ccnn_6_380},
    cases={
        "ccnn_4_140": {"dim": 4, "depth": 1, "kernel_size": 5, "hidden": 4, "in_channels": 2, "num_classes": 3},
        "ccnn_6_380": {"hidden": 4, "kernel_size": 5, "num_classes": 3},
    },
)
