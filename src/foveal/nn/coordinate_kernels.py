"""Small networks from coordinates to the values of a convolution kernel.

A kernel of any length, resolution or dimension is read off a function of relative positions p in [-1, 1]^d:

    MAGNet   h₀ = g₀(p),  h_i = g_i(p) ⊙ (A_i h_{i-1} + a_i),  K(p) = O h_n + o,
             g_i(p) = exp(-½ Σ_axes (γ_i (p - μ_i))²) ⊙ sin(W_i p + w_i)
    SIREN    h₁ = sin(ω₀ (W₁ p + w₁)),  h_i = sin(ω₀ (W_i h_{i-1} + w_i)),  K(p) = O h_n + o

*Source*: D. W. Romero et al., "FlexConv: Continuous Kernel Convolutions with Differentiable Kernel Sizes", ICLR 2022
(arXiv:2110.08059), section 3.1, for MAGNet; V. Sitzmann et al., "Implicit Neural Representations with Periodic
Activation Functions", NeurIPS 2020 (arXiv:2006.09661), section 3, for SIREN; D. W. Romero et al., "CKConv", ICLR 2022
(arXiv:2102.02611), section 4.2, for kernels as functions. How weights start was looked up in the code of CCNN
(arXiv:2301.10540).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SIREN", "MAGNet", "grid", "sampled", "unit_energy_"]


def grid(
    sizes: Sequence[int],
    step: Sequence[float] | None = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Coordinates of the taps of a kernel, around 0.

    Args:
        sizes: number of taps of each axis.
        step: distance between neighbouring taps of each axis; None spreads them from -1 to 1.
        device: of the coordinates.
        dtype: of the coordinates.

    Returns:
        (*sizes, d); the only tap of an axis of size 1 is at 0.
    """
    steps = [2 / max(size - 1, 1) for size in sizes] if step is None else step
    axes = [
        (torch.arange(size, device=device, dtype=dtype or torch.get_default_dtype()) - (size - 1) / 2) * width
        for size, width in zip(sizes, steps, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _linear(inputs: int, outputs: int, bias: float) -> nn.Linear:
    """Outputs of the variance of the inputs, and a constant bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
    nn.init.constant_(layer.bias, bias)
    return layer


class _Gabor(nn.Module):
    """One multiplicative filter, (..., d) to (..., hidden)."""

    def __init__(self, data_dim: int, hidden: int, omega_0: float, alpha: float, spread: float, causal: bool) -> None:
        super().__init__()
        away = torch.rand(hidden, data_dim)
        self.mean = nn.Parameter(1 - spread * away if causal else spread * (2 * away - 1))
        self.sharpness = nn.Parameter(torch._standard_gamma(torch.full((hidden, data_dim), alpha)))
        self.wave = nn.Linear(data_dim, hidden)
        nn.init.zeros_(self.wave.bias)
        with torch.no_grad():
            self.wave.weight.mul_(2 * math.pi * omega_0 * self.sharpness)

    def forward(self, places: Tensor) -> Tensor:
        # (..., hidden, d)
        apart = self.sharpness * (places[..., None, :] - self.mean)
        return torch.exp(-0.5 * apart.square().sum(-1)) * torch.sin(self.wave(places))


class MAGNet(nn.Module):
    """Multiplicative anisotropic Gabor network, coordinates (..., d) to (..., out_channels).

    Args:
        data_dim: d.
        out_channels: number of values at each place.
        hidden: width of the layers.
        depth: n, number of products.
        omega_0: frequency of the waves at the start, in periods over a unit of length and sharpness.
        spread: windows start with centres at most this far from 0, or from 1 if `causal`.
        causal: whether the kernel's present is at 1.
    """

    def __init__(
        self,
        data_dim: int,
        out_channels: int,
        *,
        hidden: int = 32,
        depth: int = 3,
        omega_0: float = 1.0,
        spread: float = 1.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.data_dim = data_dim
        # windows of later filters start wider
        self.filters = nn.ModuleList(
            _Gabor(data_dim, hidden, omega_0, 6 / (i + 1), spread, causal) for i in range(depth + 1)
        )
        self.linears = nn.ModuleList(_linear(hidden, hidden, 1.0) for _ in range(depth))
        self.output = _linear(hidden, out_channels, 0.0)

    def forward(self, places: Tensor) -> Tensor:
        first, *others = self.filters
        out = first(places)
        for linear, gabor in zip(self.linears, others, strict=True):
            out = gabor(places) * linear(out)
        return self.output(out)


class SIREN(nn.Module):
    """Network of sines, coordinates (..., d) to (..., out_channels).

    Args:
        data_dim: d.
        out_channels: number of values at each place.
        hidden: width of the layers.
        depth: number of layers with a sine, at least 1.
        omega_0: ω₀, factor in front of each layer.

    Raises:
        ValueError: no layer.
    """

    def __init__(
        self, data_dim: int, out_channels: int, *, hidden: int = 32, depth: int = 2, omega_0: float = 10.0
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}; a network of sines needs a layer with one")
        self.data_dim, self.omega_0 = data_dim, omega_0
        layers = [nn.Linear(hidden if i else data_dim, hidden) for i in range(depth)]
        for i, layer in enumerate(layers):
            reach = math.sqrt(6 / hidden) / omega_0 if i else 1 / data_dim
            nn.init.uniform_(layer.weight, -reach, reach)
            nn.init.zeros_(layer.bias)
        self.linears = nn.ModuleList(layers)
        self.output = _linear(hidden, out_channels, 0.0)

    def forward(self, places: Tensor) -> Tensor:
        for layer in self.linears:
            places = torch.sin(self.omega_0 * layer(places))
        return self.output(places)


def sampled(network: MAGNet | SIREN, sizes: Sequence[int], step: Sequence[float] | None = None) -> Tensor:
    """The kernel of a network on a grid.

    Args:
        network: from coordinates to the values of C channels.
        sizes: number of taps of each axis.
        step: distance between neighbouring taps of each axis; None spreads them from -1 to 1.

    Returns:
        (C, *sizes).

    Raises:
        ValueError: not as many axes as the network has coordinates.
    """
    if len(sizes) != network.data_dim:
        raise ValueError(f"sizes must have {network.data_dim} axes as the network's coordinates, got {tuple(sizes)}")
    weight = network.output.weight
    return network(grid(sizes, step, device=weight.device, dtype=weight.dtype)).movedim(-1, 0)


@torch.no_grad()
def unit_energy_(network: MAGNet | SIREN, kernel: Tensor) -> None:
    """Rescale the last layer so that outputs of a convolution have the variance of its inputs.

    Args:
        network: fresh, changed in place.
        kernel: what was made of its values by products only, (C, ...); its sum of squares becomes 1, on the mean over
            channels. A kernel of zeros, such as one tap at 0, where all sines start from, stays.
    """
    energy = kernel.square().sum() / len(kernel)
    network.output.weight.div_(torch.where(energy > 0, energy, 1).sqrt())
