"""Serpent: a U-shaped restoration network whose blocks scan the map as sequences, at a cost linear in pixels.

*Source*: M. S. Sepehri, Z. Fabian, M. Soltanolkotabi, "Serpent: Scalable and Efficient Image Restoration via
Multi-scale Structured State Space Models", 2024 (arXiv:2403.17902), section 3. A block flattens its map, (B, C, H, W),
along rows and columns, both forward and backward, runs a selective scan along each, sums them and mixes the channels
after a gate:

    block(x) = x + W_out (norm(Σ_k scan_k(silu(dwconv(W_in norm(x))))) ∘ silu(W_z norm(x)))

The picture is cut into patches of p×p pixels, whose pixels become channels. Level i of the U has dim·2ⁱ channels on
H/(p·2ⁱ) × W/(p·2ⁱ) positions. On the way down, 2×2 positions become one with four times the channels, and a 1×1
convolution halves these; on the way up it is the reverse, and a 1×1 convolution joins the features that the same level
had on the way down. A 3×3 convolution at each end; the network adds a correction to its input.

*Differs from the paper*: written without the authors' code; sizes that the paper's text leaves open are our choice.
Input and output have the same size: for super-resolution, upscale the input first.

*Provenance*: written from the paper; the scan is `foveal.nn.ss2d`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.nn.ss2d import SS2D
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Serpent", "SerpentBlock", "serpent_small"]


class SerpentBlock(nn.Module):
    """Norm, four gated scans, residual; (B, dim, H, W) to the same.

    Args:
        dim: C.
        state: D, state size per scanned channel.
        expand: ratio of scanned channels to `dim`.
    """

    def __init__(self, dim: int, *, state: int = 16, expand: float = 2.0) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.mixer = SS2D(dim, state=state, expand=expand)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class Serpent(nn.Module):
    """Restoration network, (B, C, H, W) to the same, of any H and W; values in [0, 1].

    Args:
        dim: width of the first level.
        depths: number of blocks of each level, the deepest last; all other levels have as many again in the decoder.
        state: D, state size of each block.
        expand: ratio of scanned channels to a level's width.
        patch_size: p.
        make: function that builds a block from its width; None for `SerpentBlock`.
        in_channels: C.

    Raises:
        ValueError: if there is no level, or `patch_size` is below 1.
    """

    scale = 1
    tiling = "overlap"  # scans run over the whole picture

    def __init__(
        self,
        dim: int = 32,
        depths: Sequence[int] = (2, 2, 2, 2),
        *,
        state: int = 8,
        expand: float = 2.0,
        patch_size: int = 2,
        make: Callable[[int], nn.Module] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not depths or patch_size < 1:
            raise ValueError(f"depths must have a level and patch_size be at least 1, got {depths} and {patch_size}")
        make = partial(SerpentBlock, state=state, expand=expand) if make is None else make
        self.patch_size, self.multiple = patch_size, patch_size * 2 ** (len(depths) - 1)
        widths = [dim * 2**i for i in range(len(depths))]
        stages = [nn.Sequential(*(make(c) for _ in range(d))) for c, d in zip(widths, depths, strict=True)]
        self.head = nn.Conv2d(in_channels * patch_size**2, dim, 3, padding=1)
        self.encoder, self.deepest = nn.ModuleList(stages[:-1]), stages[-1]
        self.decoder = nn.ModuleList(
            nn.Sequential(*(make(c) for _ in range(d))) for c, d in zip(widths[:-1], depths[:-1], strict=True)
        )
        self.down = nn.ModuleList(nn.Conv2d(4 * c, 2 * c, 1, bias=False) for c in widths[:-1])
        self.up = nn.ModuleList(nn.Conv2d(2 * c, 4 * c, 1, bias=False) for c in widths[:-1])
        self.join = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in widths[:-1])
        self.tail = nn.Conv2d(dim, in_channels * patch_size**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        features = self.head(F.pixel_unshuffle(padded, self.patch_size))
        kept_back = []
        for stage, down in zip(self.encoder, self.down, strict=True):
            features = stage(features)
            kept_back.append(features)
            # (B, 2·C, H / 2, W / 2)
            features = down(F.pixel_unshuffle(features, 2))
        features = self.deepest(features)
        levels = zip(kept_back, self.up, self.join, self.decoder, strict=True)
        for before, up, join, stage in reversed(list(levels)):
            # (B, C, 2·H, 2·W)
            features = F.pixel_shuffle(up(features), 2)
            features = stage(join(torch.cat([before, features], dim=1)))
        correction = F.pixel_shuffle(self.tail(features), self.patch_size)
        # cropped by indexing: the strides of a slice depend on dynamic sizes, which the exporter cannot resolve
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        return x + correction.index_select(2, rows).index_select(3, columns)


# Three levels of 24, 48 and 96 channels: foveal's own size, trained in minutes. Four levels of 32 to 256 are `Serpent`.
serpent_small = partial(Serpent, dim=24, depths=(1, 1, 2), state=4, expand=1.0)


METHOD = Method(
    id=33,
    name="Serpent",
    kind="model",
    summary="A U-shaped network that restores pictures by state-space scans at a cost linear in pixels.",
    paper=Paper(
        "Serpent: Scalable and Efficient Image Restoration via Multi-scale Structured State Space Models",
        "M. S. Sepehri, Z. Fabian, M. Soltanolkotabi",
        2024,
        "arXiv:2403.17902",
    ),
    models={"serpent": Serpent, "serpent_small": serpent_small},
    cases={
        "serpent": {"dim": 4, "depths": (1, 1), "state": 2, "patch_size": 1},
        "serpent_small": {"in_channels": 1},
    },
)
