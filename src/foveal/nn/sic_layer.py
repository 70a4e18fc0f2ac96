"""SIC layer: a spatial filter in each channel, then a projection across channels that may be local or at half size.

*Source*: M. Wang, B. Liu, H. Foroosh, "Design of Efficient Convolutional Layers using Single Intra-channel Convolution,
Topological Subdivisioning and Spatial 'Bottleneck' Structure", 2016 (arXiv:1608.04337), section 3. For C channels in,
N out, a k×k kernel and H·W pixels out, the multiply-adds are

    convolution                   H·W · k²·C·N
    SIC: y = P (S ∗ x)            H·W · (k²·C + C·N)                      S: (C, k, k), P: (N, C)
    topological subdivisioning    H·W · (k²·C + N·Π sᵢ)                   output p reads a block of sᵢ channels of x
    spatial bottleneck            H·W/s² · (s²·C + C·N + s²·N)            y = Sᵀ (P (S ∗ₛ x)) with s×s kernels, stride s

The channels are arranged as a grid d₁ × … × dₙ that is closed to a torus; an output channel at p is connected to the
block of s₁ × … × sₙ input channels around it, and to all where sᵢ = dᵢ. Each of the layers adds its input to its output
where their shapes are equal.

*Differs from the paper*: norms and activations are left to the network around the layer. Where there are more channels
out than in, the coordinates of an output are scaled to the grid of the inputs, of which the paper says nothing that we
could read. `stand_in`, which puts S and P in the place of a trained convolution, is foveal's own.

*Provenance*: written from the mechanism as the abstract and its summaries tell it; there is no code of the authors, and
the sizes of their networks are not taken over.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "SIC",
    "SpatialBottleneck",
    "channel_blocks",
    "project_blocks",
    "project_blocks_reference",
    "sic",
    "spatial_bottleneck",
    "stand_in",
]


def sic(x: Tensor, spatial: Tensor, projection: Tensor, *, stride: int = 1) -> Tensor:
    """Filter each channel, then project across channels.

    Args:
        x: (B, C, H, W).
        spatial: one kernel per channel, (C, 1, k, k) with odd k; the border is padded with zeros.
        projection: (N, C, 1, 1).
        stride: stride of the filter.

    Returns:
        (B, N, H', W').
    """
    filtered = torch.conv2d(x, spatial, stride=stride, padding=spatial.shape[-1] // 2, groups=len(spatial))
    return torch.conv2d(filtered, projection)


def channel_blocks(grid: Sequence[int], span: Sequence[int], out_grid: Sequence[int] | None = None) -> Tensor:
    """Input channels that each output channel is connected to.

    Args:
        grid: arrangement of the input channels, (d₁, …, dₙ).
        span: sides of the block, (s₁, …, sₙ), each at most the grid's.
        out_grid: arrangement of the output channels, of as many sides; None for the inputs'.

    Returns:
        Channels in ascending order, (N, Π sᵢ), int64.

    Raises:
        ValueError: different numbers of sides, or a block larger than the grid.
    """
    out_grid = grid if out_grid is None else out_grid
    if not len(grid) == len(span) == len(out_grid) or not grid:
        raise ValueError(
            f"grid, span and out_grid need the same number of sides, got {tuple(grid)}, {tuple(span)} and "
            f"{tuple(out_grid)}"
        )
    if any(not 1 <= s <= d for s, d in zip(span, grid, strict=True)):
        raise ValueError(f"a block must fit into the grid {tuple(grid)}, got span {tuple(span)}")
    channels = torch.arange(prod(grid)).view(*grid)
    rows = []
    for place in product(*map(range, out_grid)):
        block = channels
        for axis, (p, d, s, n) in enumerate(zip(place, grid, span, out_grid, strict=True)):
            block = block.index_select(axis, (torch.arange(s) - s // 2 + p * d // n) % d)
        rows.append(block.flatten().sort().values)
    return torch.stack(rows)


def project_blocks(x: Tensor, weight: Tensor, blocks: Tensor) -> Tensor:
    """Project each block of channels to one output channel.

    Args:
        x: (B, C, H, W).
        weight: (N, K).
        blocks: channels of each output, (N, K), see `channel_blocks`.

    Returns:
        (B, N, H, W).
    """
    # (B, N·K, H, W): grouped, so that only connections that exist are multiplied
    gathered = x[:, blocks.flatten()]
    return torch.conv2d(gathered, weight[:, :, None, None], groups=len(weight))


def project_blocks_reference(x: Tensor, weight: Tensor, blocks: Tensor) -> Tensor:
    """The same as a projection of all channels with zeros where there is no connection.

    Args:
        x: (B, C, H, W).
        weight: (N, K).
        blocks: (N, K).

    Returns:
        (B, N, H, W).
    """
    dense = weight.new_zeros(len(weight), x.shape[1]).scatter(1, blocks, weight)
    return torch.einsum("nc,bchw->bnhw", dense, x)


def spatial_bottleneck(x: Tensor, down: Tensor, projection: Tensor, up: Tensor) -> Tensor:
    """Project at a lower resolution.

    Args:
        x: (B, C, H, W) with H and W multiples of s.
        down: kernel of the strided convolution of each channel, (C, 1, s, s).
        projection: (N, C, 1, 1).
        up: kernel of the transposed convolution of each channel, (N, 1, s, s).

    Returns:
        (B, N, H, W).

    Raises:
        ValueError: height or width is no multiple of s.
    """
    scale = down.shape[-1]
    if x.shape[-2] % scale or x.shape[-1] % scale:
        raise ValueError(f"height and width must be multiples of {scale}, got {x.shape[-2]}×{x.shape[-1]}; pad them")
    # (B, N, H/s, W/s)
    small = torch.conv2d(torch.conv2d(x, down, stride=scale, groups=len(down)), projection)
    return torch.conv_transpose2d(small, up, stride=scale, groups=len(up))


def _spatial(dim: int, kernel_size: int) -> nn.Parameter:
    return nn.Parameter(nn.Conv2d(dim, dim, kernel_size, groups=dim, bias=False).weight.detach())


def _projection(dim: int, out_channels: int) -> nn.Parameter:
    return nn.Parameter(nn.Conv2d(dim, out_channels, 1, bias=False).weight.detach())


class SIC(nn.Module):
    """(B, C, H, W) to (B, N, H', W').

    Args:
        dim: C.
        out_channels: N; None for C.
        kernel_size: k, odd.
        stride: stride of the filter.
        grid: arrangement of the input channels for topological subdivisioning; empty for a projection of all.
        span: sides of the block that an output channel is connected to.
        out_grid: arrangement of the output channels; None for the inputs'.
        residual: whether the input is added where the shapes are equal.

    Raises:
        ValueError: an even kernel, or grids of other numbers of channels.
    """

    blocks: Tensor | None

    def __init__(
        self,
        dim: int,
        out_channels: int | None = None,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        grid: Sequence[int] = (),
        span: Sequence[int] = (),
        out_grid: Sequence[int] | None = None,
        residual: bool = True,
    ) -> None:
        super().__init__()
        out_channels = dim if out_channels is None else out_channels
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        if grid and (prod(grid) != dim or prod(out_grid or grid) != out_channels):
            raise ValueError(
                f"grids must hold {dim} channels in and {out_channels} out, got {tuple(grid)} and "
                f"{tuple(out_grid or grid)}"
            )
        self.stride, self.residual = stride, residual and stride == 1 and dim == out_channels
        self.spatial = _spatial(dim, kernel_size)
        self.register_buffer("blocks", channel_blocks(grid, span, out_grid) if grid else None)
        columns = prod(span) if grid else dim
        self.projection = _projection(columns, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.blocks is None:
            out = sic(x, self.spatial, self.projection, stride=self.stride)
        else:
            padding = self.spatial.shape[-1] // 2
            filtered = torch.conv2d(x, self.spatial, stride=self.stride, padding=padding, groups=len(self.spatial))
            out = project_blocks(filtered, self.projection[..., 0, 0], self.blocks)
        return x + out if self.residual else out


class SpatialBottleneck(nn.Module):
    """(B, C, H, W) to (B, N, H, W), projected at 1/s of the resolution.

    Args:
        dim: C.
        out_channels: N; None for C.
        scale: s; height and width must be multiples of it.
        residual: whether the input is added if N = C.

    Raises:
        ValueError: s below 1.
    """

    def __init__(self, dim: int, out_channels: int | None = None, *, scale: int = 2, residual: bool = True) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        out_channels = dim if out_channels is None else out_channels
        self.residual = residual and dim == out_channels
        self.down, self.up = _spatial(dim, scale), _spatial(out_channels, scale)
        self.projection = _projection(dim, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = spatial_bottleneck(x, self.down, self.projection, self.up)
        return x + out if self.residual else out


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:  # noqa: ARG001 - a stand-in's signature
    """A filter per channel and a projection in the place of a dense convolution; equal to it if it is separable.

    The two start as the best approximation of rank one of each input channel's part of the kernel, (N, k²).

    Args:
        layer: dense convolution.
        shape: shape of its input, (B, C, H, W).

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.transposed:
        raise ValueError(f"sic stands in for a dense convolution, got {layer}")
    dim, out = layer.in_channels, layer.out_channels
    words: dict[str, Any] = {
        name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    spatial = nn.Conv2d(dim, dim, groups=dim, bias=False, **words)
    projection = nn.Conv2d(dim, out, 1, bias=layer.bias is not None)
    # (C, N, k²) = U diag(S) V, of which the first term is kept; its size is shared by both factors
    u, s, v = torch.linalg.svd(layer.weight.transpose(0, 1).flatten(2).float(), full_matrices=False)
    size = s[:, :1].sqrt()
    spatial.weight.copy_((v[:, 0] * size).view_as(spatial.weight))
    projection.weight.copy_((u[:, :, 0] * size).T[:, :, None, None])
    if layer.bias is not None and projection.bias is not None:
        projection.bias.copy_(layer.bias)
    return nn.Sequential(spatial, projection).to(layer.weight)


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((2, 15, 5, 3), (30, 4)))
    return {"x": x, "weight": weight, "blocks": channel_blocks((3, 5), (2, 2), (6, 5))}


METHOD = Method(
    id=143,
    name="SIC-Layer",
    kind="operator",
    summary="A spatial filter in each channel, then a projection across channels, local or at a lower resolution.",
    paper=Paper(
        "Design of Efficient Convolutional Layers using Single Intra-channel Convolution, Topological Subdivisioning "
        "and Spatial 'Bottleneck' Structure",
        "M. Wang, B. Liu, H. Foroosh",
        2016,
        "arXiv:1608.04337",
    ),
    cases={"blocks_on_a_torus": Operator(project_blocks, project_blocks_reference, _inputs)},
)
