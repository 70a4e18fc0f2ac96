"""SESR: wide linear blocks in training, each collapsed to one small convolution afterwards.

*Source*: K. Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022
(arXiv:2103.09404), sections 3 and 4. A 5×5 block to f features, m 3×3 blocks each with a short residual and a PReLU, a
residual from the first features to the last, a 5×5 block to C·s² channels, the input added to each of them, depth to
space; x: (B, C, H, W), features: (B, f, H, W):

    features₀ = block₅(x - ½);  featuresᵢ = PReLU(block₃(featuresᵢ₋₁) + featuresᵢ₋₁)
    out = shuffle(block₅(featuresₘ + features₀) + x)

Every block is a k×k convolution to p = 256 channels and a 1×1 convolution back. It is multiplied out, including the
residual, before the convolution in every training step (algorithms 1 and 2), so that training costs as little as the
collapsed network; `expanded` computes it uncollapsed.

*Differs from the paper*: takes RGB by default (`in_channels=1` is the paper's luminance); one shuffle by 4 where the
authors' code shuffles twice by 2, which orders the last block's channels differently; no clipping of the output; the
last block is initialised near zero.

*Provenance*: written from the paper; the place of the PReLUs and the shift by ½ were looked up in the authors' code.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.collapsible import CollapsibleConv2d
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SESR", "sesr_m3", "sesr_m7", "sesr_m11", "sesr_xl"]


class SESR(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s, at least 1.
        features: f, width of the collapsed network.
        depth: m, number of 3×3 blocks.
        expand: p, width inside a block in training.
        in_channels: C, 3 for RGB or 1 for luminance.

    Raises:
        ValueError: if the scale is below 1.
    """

    def __init__(
        self, scale: int = 2, *, features: int = 16, depth: int = 5, expand: int = 256, in_channels: int = 3
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.scale = scale
        self.first = CollapsibleConv2d(in_channels, features, 5, expand=expand, bias=False)
        self.blocks = nn.ModuleList(
            CollapsibleConv2d(features, features, 3, expand=expand, residual=True, bias=False) for _ in range(depth)
        )
        self.activations = nn.ModuleList(nn.PReLU(features) for _ in range(depth))
        self.last = CollapsibleConv2d(features, in_channels * scale**2, 5, expand=expand, bias=False)
        with torch.no_grad():
            self.last.narrow.mul_(0.1)

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels."""
        return len(self.blocks) + 4

    def _through(self, x: Tensor, maps: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        first, *middle, last = maps
        begin = features = first(x - 0.5)
        for block, activation in zip(middle, self.activations, strict=True):
            features = activation(block(features))
        # (B, C·s², H, W)
        out = last(features + begin) + x.repeat_interleave(self.scale**2, dim=1)
        return F.pixel_shuffle(out, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self._through(x, [self.first, *self.blocks, self.last])

    def expanded(self, x: Tensor) -> Tensor:
        """The forward pass with every block as two convolutions, for comparison.

        Args:
            x: picture, (B, C, H, W).

        Returns:
            The same as the forward pass, (B, C, s·H, s·W), up to rounding.
        """
        return self._through(x, [block.expanded for block in (self.first, *self.blocks, self.last)])  # type: ignore[misc, operator]

    def collapse(self) -> SESR:
        """The same network with one plain convolution per block.

        Returns:
            A copy whose `first`, `blocks` and `last` are `nn.Conv2d`, without `expanded`.
        """
        network = copy.deepcopy(self)
        network.first = self.first.collapse()  # type: ignore[assignment]
        network.last = self.last.collapse()  # type: ignore[assignment]
        network.blocks = nn.ModuleList(block.collapse() for block in self.blocks)  # type: ignore[misc, operator]
        return network


# The paper's names give m; its M5 is `SESR` itself.
sesr_m3 = partial(SESR, depth=3)  # SESR-M3
sesr_m7 = partial(SESR, depth=7)  # SESR-M7
sesr_m11 = partial(SESR, depth=11)  # SESR-M11
sesr_xl = partial(SESR, features=32, depth=11)  # SESR-XL


METHOD = Method(
    id=216,
    name="SESR",
    kind="model",
    summary="Wide linear blocks while training that collapse to one small convolution each.",
    paper=Paper(
        "Collapsible Linear Blocks for Super-Efficient Super Resolution", "K. Bhardwaj et al.", 2022, "arXiv:2103.09404"
    ),
    models={"sesr_m3": sesr_m3, "sesr_m5": SESR, "sesr_m7": sesr_m7, "sesr_m11": sesr_m11, "sesr_xl": sesr_xl},
    cases={
        "sesr_m3": {"scale": 2, "expand": 8},
        "sesr_m5": {"scale": 2, "expand": 8, "in_channels": 1},
        "sesr_m7": {"scale": 3, "expand": 8},
        "sesr_m11": {"scale": 4, "expand": 8, "in_channels": 1},
        "sesr_xl": {"scale": 2, "expand": 8, "in_channels": 1},
    },
)
