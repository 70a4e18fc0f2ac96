"""Dynamic-VLM: frames averaged to as many tokens as a budget leaves for each, many in short clips and few in long ones.

*Source*: H. Wang et al., "Dynamic-VLM: Simple Dynamic Visual Token Compression for VideoLLM", ICCV 2025
(arXiv:2412.09530), section 3. Of a clip's frames, each h×w tokens of C channels, x (T, h·w, C), a language model reads

    n = min(⌊budget / T⌋, most)          tokens that a frame may have; 3,200 and 576 in the paper's configuration
    s = ⌊√n⌋
    y = project(average(x))              (T · s², out_channels); the average over areas whose borders are, for the i-th
                                         of s rows, ⌊i·h/s⌋ and ⌈(i + 1)·h/s⌉, and columns alike
    tokens = T · s² ≤ budget

In training, n = min(⌊budget / T⌋, n′) with n′ drawn evenly from least … most for each clip, so that one network reads
all sizes. The projector is two linear layers and a GELU.

*Differs from the paper*: the paper also tries merging and pruning and prefers averaging; only this is here. A clip of
more frames than the budget has tokens is refused; the authors' code then exceeds the budget. A frame never gets more
rows or columns of tokens than it has.
*Provenance*: written from the paper and the authors' configuration (Hon-Wong/ByteVideoLLM). For 1 to 128 frames, tokens
equal those of the authors' code bit for bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Compressor", "compress", "side"]


def side(frames: int, *, budget: int = 3200, most: int = 576) -> int:
    """Rows, and columns, of tokens that each frame of a clip becomes.

    Args:
        frames: T.
        budget: most tokens of a clip.
        most: most tokens of a frame.

    Returns:
        s.

    Raises:
        VlmError: a number below 1, or more frames than tokens.
    """
    if min(frames, most) < 1 or frames > budget:
        raise VlmError(
            f"frames must be in 1…{budget}, the budget, and most at least 1, got {frames} and {most}; "
            "take fewer frames or a larger budget"
        )
    return math.isqrt(min(budget // frames, most))


def compress(x: Tensor, side: int, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Average each frame's tokens to a smaller grid.

    Args:
        x: tokens in reading order, (T, h·w, C).
        side: rows and columns wanted, s.
        grid: h and w; None for a square.

    Returns:
        Tokens, (T, min(s, h) · min(s, w), C).

    Raises:
        VlmError: a grid that does not fit the tokens.
    """
    rows, columns = grid or (math.isqrt(x.shape[1]),) * 2
    if rows * columns != x.shape[1]:
        raise VlmError(f"a frame has {x.shape[1]} tokens, which is no grid of {rows}×{columns}; give grid=(h, w)")
    if side >= max(rows, columns):
        return x
    # (T, h·w, C) to (T, C, h, w) to (T, s², C)
    frames = x.transpose(1, 2).unflatten(2, (rows, columns))
    return F.adaptive_avg_pool2d(frames, (min(side, rows), min(side, columns))).flatten(2).transpose(1, 2)


class Compressor(nn.Module):
    """Clips of any length to at most `budget` tokens each.

    Args:
        dim: channels of a frame's tokens, C.
        out_channels: channels of the language model.
        budget: most tokens of a clip.
        most: most tokens of a frame.
        least: fewest tokens of a frame that training draws.

    Raises:
        ValueError: `least` outside 1 … `most`.
    """

    def __init__(self, dim: int, out_channels: int, *, budget: int = 3200, most: int = 576, least: int = 100) -> None:
        super().__init__()
        if not 1 <= least <= most:
            raise ValueError(f"least must be in 1…{most}, the most tokens of a frame, got {least}")
        self.budget, self.most, self.least = budget, most, least
        self.project = nn.Sequential(nn.Linear(dim, out_channels), nn.GELU(), nn.Linear(out_channels, out_channels))

    def side(self, frames: int) -> int:
        """Rows and columns of tokens of a frame, drawn anew in training."""
        drawn = int(torch.randint(self.least, self.most + 1, ())) if self.training else self.most
        return side(frames, budget=self.budget, most=drawn)

    def forward(self, clips: Sequence[Tensor], grid: tuple[int, int] | None = None) -> list[Tensor]:
        """Clips, each (T, h·w, C), to tokens, each (T · s², out_channels)."""
        return [self.project(compress(x, self.side(len(x)), grid=grid)).flatten(0, 1) for x in clips]


def _one_by_one(x: Tensor, side: int) -> Tensor:
    """`compress` of frames of 5×7, area by area."""
    picture, found = x.unflatten(1, (5, 7)), []
    for i in range(side):
        for j in range(side):
            top, bottom, left, right = (
                k for n, at in ((5, i), (7, j)) for k in (at * n // side, -(-(at + 1) * n // side))
            )
            found.append(picture[:, top:bottom, left:right].mean((1, 2)))
    return torch.stack(found, 1)


def _both(function: Any, x: Tensor) -> Tensor:
    return torch.cat([function(x, s) for s in (1, 2, 3, 5)], 1)


def _frames(seed: int) -> dict[str, Any]:
    return {"x": torch.randn(3, 35, 2, generator=torch.Generator().manual_seed(seed))}


METHOD = Method(
    id=115,
    name="Dynamic-VLM",
    kind="operator",
    summary="Frames averaged to as many tokens as a budget leaves for each: many for short clips, few for long ones.",
    paper=Paper(
        "Dynamic-VLM: Simple Dynamic Visual Token Compression for VideoLLM",
        "H. Wang et al.",
        2024,
        "arXiv:2412.09530",
    ),
    cases={
        "frames": Operator(
            lambda x: _both(lambda y, s: compress(y, s, grid=(5, 7)), x), lambda x: _both(_one_by_one, x), _frames
        )
    },
)
