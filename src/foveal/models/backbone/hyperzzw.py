"""HyperZ·Z·W and Terminator: generated kernels are multiplied by activations and then convolve them, without residuals.

*Source*: H. Zhang, "HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction", 2024
(arXiv:2401.17948), abstract and figure 3. A slow network of coordinates gives hyper-kernels W; activations Z make
weights of them that depend on the sample, and those meet activations again. For z, v: (B, C, *sizes) and each channel

    global   y = Σ_p W(p) z(p) v(q - p mod sizes)             W: (C, *sizes); every place sees all others
    local    y = Σ_p W(p) s(p) v(q + p - ⌊k/2⌋)               W: (C, k, …), s = A gelu(F pool_k(z)) + a: (B, C, k, …)

Terminator's blocks (slow-fast neural encoding, SFNE) put ten branches side by side, all with C channels,

    fast = IS(RGU(W ⊙ x) + RGU(x)),  mix = IS(M x),  hci = IS(x ⊙ σ(W_c m²))          m: mean of x over places
    g₁, g₂, g₃: global of x with fast, mix and hci;  σ(g₁) g₁;  x ⊙ σ(W_s μ² W_d n²)   μ, n: means of g₁ over C, places
    local of x with hci, hci with x, mix with x and x with mix, each then gelu(BS(M' y))
    RGU(x) = W_y gelu(IS(W_k x ⊙ W_q W_v x))

and a pointwise bottleneck from 10 C to f·C channels, standardised group by group: each second group over a sample (IS),
the others over the batch (BS), without affine parameters. There is no residual connection.

*Differs from the paper*: global weights convolve, around the border, as the abstract says; the authors' code multiplies
maps as matrices, which only square pictures have, and code for sequences was not released. Local kernels are a sample's
own; the code takes the mean context of the batch. Statistics over the batch are running means in eval mode, so that
logits do not depend on other samples; the code's are not. The generators are MAGNets with windows and without a bias
per place; the code's have sines only. Earlier blocks' inputs are not concatenated. `slow_loss` is there, but the
trainings of the evidence go without it, as without the authors' optimiser Kar3.

*Provenance*: written from the paper's abstract and from how the authors' code, which they have withdrawn, wires the
block; with the differences above there is no parity with it.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.coordinate_kernels import MAGNet, sampled, unit_energy_
from foveal.nn.global_conv import global_conv
from foveal.ops.backends import in_full_precision
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Terminator", "hyperzzw_global", "hyperzzw_local", "hyperzzw_reference", "slow_loss", "terminator"]

BRANCHES, LOCAL = 10, (3, 9, 5, 7)


def hyperzzw_global(kernel: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """Convolve around the border with a hyper-kernel that a sample's activations multiply.

    Args:
        kernel: W, (C, *sizes).
        z: activations that make the weights, (B, C, *sizes).
        v: activations that the weights meet, (B, C, *sizes).

    Returns:
        (B, C, *sizes).
    """
    axes = tuple(range(2, z.ndim))
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    with in_full_precision(z):
        weights = torch.fft.rfftn((kernel * z).to(wide), dim=axes)
        return torch.fft.irfftn(weights * torch.fft.rfftn(v.to(wide), dim=axes), s=z.shape[2:], dim=axes).to(z.dtype)


def hyperzzw_local(kernel: Tensor, context: Tensor, v: Tensor) -> Tensor:
    """Convolve with a small hyper-kernel that a sample's context multiplies.

    Args:
        kernel: W, (C, *taps), odd.
        context: s, (B, C, *taps).
        v: activations that the weights meet, (B, C, *sizes).

    Returns:
        (B, C, *sizes).
    """
    return global_conv(v, kernel * context, fft=False)


def hyperzzw_reference(kernel: Tensor, context: Tensor, v: Tensor, *, around: bool) -> Tensor:
    """Both, a sample and a channel at a time, with the modulated kernel written into a matrix from places to places.

    Args:
        kernel: W, (C, *taps).
        context: what multiplies it, (B, C, *taps).
        v: (B, C, *sizes).
        around: whether indices run around the border (global), else the kernel has a middle (local).

    Returns:
        (B, C, *sizes).
    """
    places = [
        tuple(place) for place in torch.cartesian_prod(*map(torch.arange, v.shape[2:])).view(-1, v.ndim - 2).tolist()
    ]
    taps = [
        tuple(tap) for tap in torch.cartesian_prod(*map(torch.arange, kernel.shape[1:])).view(-1, v.ndim - 2).tolist()
    ]
    row_of = {place: row for row, place in enumerate(places)}
    samples = []
    for b in range(len(v)):
        channels = []
        for c in range(len(kernel)):
            weights = kernel[c] * context[b, c]
            matrix = v.new_zeros(len(places), len(places))
            for row, place in enumerate(places):
                for tap in taps:
                    if around:
                        source = tuple((q - p) % side for q, p, side in zip(place, tap, v.shape[2:], strict=True))
                    else:
                        source = tuple(q + p - k // 2 for q, p, k in zip(place, tap, kernel.shape[1:], strict=True))
                    if source in row_of:
                        at = torch.zeros_like(matrix)
                        at[row, row_of[source]] = 1
                        matrix = matrix + weights[tap] * at
            channels.append((matrix @ v[b, c].flatten()).view(v.shape[2:]))
        samples.append(torch.stack(channels))
    return torch.stack(samples)


def slow_loss(kernels: Sequence[Tensor]) -> Tensor:
    """How far the global hyper-kernels of the blocks are from each other, an additional loss for the slow networks.

    Args:
        kernels: W of each block, (C, *sizes) with channels that divide those of the blocks after it.

    Returns:
        Sum over pairs of blocks of the mean squared difference; shallower kernels are repeated over channels.
    """
    total = kernels[0].new_zeros(())
    for i, deep in enumerate(kernels):
        for shallow in kernels[:i]:
            times = [len(deep) // len(shallow)] + [1] * (deep.ndim - 1)
            total = total + (shallow.repeat(times) - deep).square().mean()
    return total


def _generator(data_dim: int, channels: int, sizes: Sequence[int], hidden: int, depth: int, omega_0: float) -> MAGNet:
    """A slow network whose kernels start with unit energy."""
    network = MAGNet(data_dim, channels, hidden=hidden, depth=depth, omega_0=omega_0)
    unit_energy_(network, sampled(network, sizes).detach())
    return network


def _standard(x: Tensor) -> Tensor:
    """Each channel of each sample to zero mean and unit variance over places, (B, C, ...)."""
    return F.instance_norm(x.flatten(2)).view(x.shape)


class _Pointwise(nn.Conv1d):
    """(B, C, *sizes) to (B, C', *sizes)."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__(dim, out_channels, 1)
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2)).unflatten(2, x.shape[2:])


class _RGU(nn.Module):
    """Recursive gated unit, (B, C, *sizes) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key, self.value, self.query, self.out = (_Pointwise(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(_standard(self.key(x) * self.query(self.value(x)))))


class _Local(nn.Module):
    """A local branch: the kernel of one map's context, over another map."""

    def __init__(self, dim: int, data_dim: int, taps: int, hidden: int, omega_0: float) -> None:
        super().__init__()
        self.sizes = [taps] * data_dim
        self.slow = _generator(data_dim, dim, self.sizes, hidden, 2, omega_0)
        self.reduce, self.expand = _Pointwise(dim, hidden), _Pointwise(hidden, dim)
        nn.init.ones_(self.expand.bias)  # type: ignore[arg-type]
        self.mix, self.norm = _Pointwise(dim, dim), nn.BatchNorm1d(dim, affine=False)

    def forward(self, z: Tensor, v: Tensor) -> Tensor:
        pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(self.sizes) - 1]
        context = self.expand(F.gelu(self.reduce(pool(z, self.sizes))))
        out = self.mix(hyperzzw_local(sampled(self.slow, self.sizes), context, v))
        return F.gelu(self.norm(out.flatten(2))).view(v.shape)


class _GroupStandardisation(nn.Module):
    """Groups of channels standardised over the batch and over the sample in turn, (B, C, N) to the same."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.size = dim // groups
        self.norms = nn.ModuleList(nn.BatchNorm1d(self.size, affine=False) for _ in range(0, groups, 2))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(x.split(self.size, 1))
        for i, norm in enumerate(self.norms):
            parts[2 * i] = norm(parts[2 * i])
        parts[1::2] = [F.instance_norm(part) for part in parts[1::2]]
        return torch.cat(parts, 1)


class _SFNE(nn.Module):
    """A block, (B, C, *sizes) to (B, f·C, *sizes)."""

    def __init__(
        self, dim: int, factor: int, data_dim: int, size: int, groups: int, hidden: int, omega_0: float, dropout: float
    ) -> None:
        super().__init__()
        slow = partial(_generator, hidden=hidden, depth=2, omega_0=omega_0)
        self.slow, self.slow_places = (slow(data_dim, channels, [size] * data_dim) for channels in (dim, 1))
        self.slow_channels, self.slow_both = (slow(1, 1, [dim]) for _ in range(2))
        self.rgu_slow, self.rgu_fast, self.mix = _RGU(dim), _RGU(dim), _Pointwise(dim, dim)
        self.local = nn.ModuleList(_Local(dim, data_dim, taps, hidden, omega_0) for taps in LOCAL)
        self.bottleneck = _Pointwise(BRANCHES * dim, factor * dim)
        self.norm, self.dropout = _GroupStandardisation(factor * dim, groups), nn.Dropout1d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        dim, ones = x.shape[1], [1] * (x.ndim - 2)
        kernel = sampled(self.slow, x.shape[2:])
        fast = _standard(self.rgu_slow(kernel * x) + self.rgu_fast(x))
        mix = _standard(self.mix(x))
        mean = x.flatten(2).mean(2)
        hci = _standard(x * torch.sigmoid(sampled(self.slow_channels, [dim]) * mean.square()).view(*mean.shape, *ones))
        first, second, third = (hyperzzw_global(kernel, x, v) for v in (fast, mix, hci))
        by_channel = sampled(self.slow_both, [dim]) * first.flatten(2).mean(2).square()
        by_place = sampled(self.slow_places, x.shape[2:]) * first.mean(1, keepdim=True).square()
        interaction = x * torch.sigmoid(by_place * by_channel.view(*mean.shape, *ones))
        pairs = ((x, hci), (hci, x), (mix, x), (x, mix))
        local = [branch(*pair) for branch, pair in zip(self.local, pairs, strict=True)]
        out = [first, second, third, torch.sigmoid(first) * first, fast, interaction, *local]
        squeezed = self.bottleneck(torch.cat(out, 1)).flatten(2)
        return self.dropout(F.gelu(self.norm(squeezed))).unflatten(2, x.shape[2:])


class Terminator(nn.Module):
    """Classifier without residuals, (B, in_channels, *sizes) to (B, num_classes), of any sizes above one place.

    Args:
        factors: f of each block: its channels grow by that.
        data_dim: number of axes, 1 to 3.
        grid_size: places of each axis that kernels are scaled for at the start; others are taken too.
        groups: groups of channels of the standardisation, a divisor of each block's output; at least 2.
        hidden: width of the slow networks.
        omega_0: frequency of their waves at the start.
        in_channels: number of channels of the input.
        num_classes: number of classes; 0 returns pooled features.
        dropout: probability of dropping a channel of a block while training.

    Raises:
        ValueError: groups that do not divide a block's channels.
    """

    def __init__(
        self,
        factors: Sequence[int] = (4, 3, 2, 2, 2),
        *,
        data_dim: int = 2,
        grid_size: int = 32,
        groups: int = 12,
        hidden: int = 32,
        omega_0: float = 1.0,
        in_channels: int = 3,
        num_classes: int = 1000,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        dims = [in_channels * prod(factors[:i]) for i in range(len(factors) + 1)]
        if groups < 2 or any(dim % groups for dim in dims[1:]):
            raise ValueError(
                f"groups must be at least 2 and divide the channels of all blocks, {dims[1:]}, got {groups}"
            )
        self.blocks = nn.Sequential(
            *(
                _SFNE(dim, factor, data_dim, grid_size, groups, hidden, omega_0, dropout)
                for dim, factor in zip(dims, factors, strict=False)
            )
        )
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()

    def hyper_kernels(self, sizes: Sequence[int]) -> list[Tensor]:
        """Global hyper-kernels of all blocks, for `slow_loss`.

        Args:
            sizes: places of each axis.

        Returns:
            (C, *sizes) for each block.
        """
        return [sampled(block.slow, sizes) for block in self.blocks]  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).flatten(2).mean(2))


terminator = Terminator  # the authors' network for CIFAR-10: 3, 12, 36, 72 and 144 channels, then 288

METHOD = Method(
    id=134,
    name="HyperZZW",
    kind="model",
    summary="Generated kernels are multiplied by activations and then convolve them, in a network without residuals.",
    paper=Paper(
        "HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction",
        "H. Zhang",
        2024,
        "arXiv:2401.17948",
    ),
    models={"terminator": terminator},
    cases={"terminator": {"factors": (2, 2), "groups": 2, "hidden": 4, "in_channels": 2, "num_classes": 3}},
)
