"""Hi-Mamba: each block scans in a single direction, over pixels and over regions; the direction alternates.

*Source*: J. Qiao et al., "Hi-Mamba: Hierarchical Mamba for Efficient Image Super-Resolution", 2024 (arXiv:2410.10140),
section 3. A convolution, groups of blocks (each group ends in a convolution and a residual), a convolution and a
residual over all groups, a convolution to C·s² channels, pixel shuffle. A block, x: (B, dim, H, W):

    y = x + W_out ((local + up(region)) ∘ silu(z)),   [v, z] = W_in norm(x),   u = silu(dwconv(v))
    local  = norm(scan_d(u))                          H·W tokens
    region = norm(scan_d(downsample_r(u)))            H·W / r² tokens
    out = y + feed-forward(norm(y)),   feed-forward(x) = W₂ (gelu(a) ∘ b),  [a, b] = dwconv(W₁ x)

Block i of a group scans in direction d = i mod 4: along rows, along columns, and both backward.

*Differs from the paper*: the authors' code is not public; what the text leaves open (sizes, the downsampling, here a
depthwise convolution of stride r = 4, and the place of the norms) follows light super-resolution networks, with the
width of MambaIR-light. Pictures are padded with zeros to multiples of r. `four=True` builds the paper's baseline: the
same block with one scan along all four directions instead of the local and the region scan.

*Provenance*: written from the paper.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.nn.ss2d import S6
from foveal.ops.scan2d import routes, selective_scan2d
from foveal.record import Method, Paper

__all__ = ["DirectedScan", "HiMamba", "HiMambaBlock", "HiMambaGroup", "hi_mamba_small"]

DIRECTIONS = 4


class DirectedScan(S6):
    """Sum of selective scans of a map along some of the four directions; (B, C, H, W) to the same.

    Args:
        dim: C.
        directions: directions of the scans: 0 along rows, 1 along columns, 2 and 3 the same backward.
        state: D, state size per channel.
        dt_rank: rank of the step-size projection; None means `dim` / 16, rounded up.
    """

    def __init__(self, dim: int, directions: tuple[int, ...], *, state: int = 16, dt_rank: int | None = None) -> None:
        rank = -(-dim // 16) if dt_rank is None else dt_rank
        super().__init__(dim, state=state, dt_rank=rank, num_routes=len(directions))
        self.directions = list(directions)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        delta, weights_in, weights_out = self.project(flat)
        y = selective_scan2d(
            flat,
            delta,
            -self.A_log.exp(),
            weights_in,
            weights_out,
            self.D,
            routes=routes("cross", x.shape[2], x.shape[3], device=x.device)[self.directions],
            delta_bias=self.dt_bias,
        )
        return y.view(x.shape)


class _Hierarchy(nn.Module):
    """Local and region scan, (B, C, H, W) to the same."""

    def __init__(self, dim: int, directions: tuple[int, ...], *, state: int, region: int) -> None:
        super().__init__()
        self.region = region
        self.local_scan = DirectedScan(dim, directions, state=state)
        self.local_norm = LayerNorm2d(dim)
        if region:
            self.down = nn.Conv2d(dim, dim, region, stride=region, groups=dim)
            self.region_scan = DirectedScan(dim, directions, state=state)
            self.region_norm = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        out = self.local_norm(self.local_scan(x))
        if self.region:
            # (B, C, H / r, W / r), then each value repeated over its region
            regions = self.region_norm(self.region_scan(self.down(x)))
            out = out + F.interpolate(regions, scale_factor=float(self.region), mode="nearest")
        return out


class _GatedFeedForward(nn.Module):
    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.up = nn.Conv2d(dim, 2 * hidden, 1)
        self.mix = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.down = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.mix(self.up(x)).chunk(2, dim=1)
        return self.down(F.gelu(a) * b)


class HiMambaBlock(nn.Module):
    """Scans and feed-forward, (B, dim, H, W) to the same, H and W multiples of `region`.

    Args:
        dim: C.
        directions: directions of the scans, as in `DirectedScan`.
        state: D.
        expand: ratio of scanned channels to `dim`.
        region: r, side of a region in pixels; 0 omits the region scan.
        expansion: ratio of the feed-forward's hidden width to `dim`.
    """

    def __init__(
        self,
        dim: int,
        directions: tuple[int, ...],
        *,
        state: int = 16,
        expand: float = 1.0,
        region: int = 4,
        expansion: float = 1.0,
    ) -> None:
        super().__init__()
        inner = int(dim * expand)
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.in_proj = nn.Conv2d(dim, 2 * inner, 1, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scans = _Hierarchy(inner, directions, state=state, region=region)
        self.out_proj = nn.Conv2d(inner, dim, 1, bias=False)
        self.feed = _GatedFeedForward(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        v, z = self.in_proj(self.norm1(x)).chunk(2, dim=1)
        x = x + self.out_proj(self.scans(F.silu(self.conv(v))) * F.silu(z))
        return x + self.feed(self.norm2(x))


class HiMambaGroup(nn.Module):
    """Blocks of alternating direction, a convolution, a residual; (B, dim, H, W) to the same, multiples of `region`.

    Args:
        dim: C.
        depth: number of blocks.
        four: whether each block has one scan along all four directions, and none over regions.
        state: D.
        region: r.
        expansion: ratio of the feed-forward's hidden width to `dim`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        four: bool = False,
        state: int = 16,
        region: int = 4,
        expansion: float = 1.0,
    ) -> None:
        super().__init__()
        every = tuple(range(DIRECTIONS))
        self.blocks = nn.Sequential(
            *(
                HiMambaBlock(
                    dim,
                    every if four else (i % DIRECTIONS,),
                    state=state,
                    region=0 if four else region,
                    expansion=expansion,
                )
                for i in range(depth)
            )
        )
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x))


class HiMamba(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W) of any H and W; values in [0, 1].

    Args:
        scale: s, at least 1.
        dim: width.
        groups: number of groups of blocks.
        depth: number of blocks in a group.
        state: D, state size per scanned channel.
        region: r, side of a region in pixels.
        expansion: ratio of a feed-forward's hidden width to `dim`.
        four: whether each block scans along all four directions instead, for comparison.
        in_channels: C.

    Raises:
        ValueError: if the scale or the region is below 1.
    """

    tiling = "overlap"  # scans run over the whole picture

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 60,
        groups: int = 4,
        depth: int = 8,
        state: int = 16,
        region: int = 4,
        expansion: float = 1.0,
        four: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1 or region < 1:
            raise ValueError(f"scale and region must be at least 1, got {scale} and {region}")
        self.scale, self.region = scale, region
        self.multiple = region  # tiles start at region borders
        self.head = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.groups = nn.Sequential(
            *(
                HiMambaGroup(dim, depth, four=four, state=state, region=region, expansion=expansion)
                for _ in range(groups)
            )
        )
        self.fuse = nn.Conv2d(dim, dim, 3, padding=1)
        self.tail = nn.Conv2d(dim, in_channels * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        features = self.head(F.pad(x, (0, -width % self.region, 0, -height % self.region)))
        # (B, C·s², H, W), H and W multiples of r
        out = self.tail(features + self.fuse(self.groups(features)))
        # cropped by indexing: the strides of a slice depend on dynamic sizes, which the exporter cannot resolve
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        return F.pixel_shuffle(out.index_select(2, rows).index_select(3, columns), self.scale)


# One group of four blocks, one per direction: foveal's own size, trained in minutes. The paper's is `HiMamba`.
hi_mamba_small = partial(HiMamba, dim=24, groups=1, depth=4, state=4)


METHOD = Method(
    id=3,
    name="Hi-Mamba",
    kind="model",
    summary="Super-resolution by state-space scans in one direction a block, over pixels and over regions.",
    paper=Paper(
        "Hi-Mamba: Hierarchical Mamba for Efficient Image Super-Resolution",
        "J. Qiao et al.",
        2024,
        "arXiv:2410.10140",
    ),
    models={"hi_mamba": HiMamba, "hi_mamba_small": hi_mamba_small},
    cases={
        "hi_mamba": {"scale": 3, "dim": 8, "groups": 1, "depth": 1, "state": 2},
        "hi_mamba_small": {"scale": 2, "in_channels": 1},
    },
)
