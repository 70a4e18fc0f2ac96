"""FEATHER: visual tokens go in two steps, by attention without rotary positions beside an even sample of the picture.

*Source*: M. Endo et al., "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model
Acceleration", ICCV 2025 (arXiv:2412.13180), section 5.

    φ_j = mean over heads of softmax(q_last · k_j / √D), with q and k before rotary positions
    after layer K₁   the share p of highest φ, and every s-th token of every s-th row
    after layer K₂   the share p of what is left, by φ of that layer

Rotary positions make attention decay with distance, so that scores with them keep the bottom of a picture.

With one p for both steps, as in the paper (0.3, K = 8 and 16 of 32, s = 3), the share left in the end is
keep = p (p + (1 − p) / s²); p follows from it.

Shapes: B batch, N tokens.

*Differs from the paper*: `keep` is given and p follows. A picture whose grid is neither given nor a square is sampled
evenly in reading order, every s²-th token.
*Provenance*: written from the paper; layers, shares and stride as in the authors' scripts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.vlm.fastv import last_attention
from foveal.vlm.method import Cut, Seen, VlmError, count, share, top
from foveal.vlm.tiny import applied, question, reader

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Feather", "even_sample", "step_share"]


def step_share(keep: float, stride: int) -> float:
    """Share p of each step that leaves `keep` after both.

    Args:
        keep: share of the visual tokens that is left in the end, in (0, 1].
        stride: s.

    Returns:
        p with p (p + (1 − p) / s²) = keep.
    """
    grid = 1 / stride**2
    if grid == 1:
        return keep
    return (math.sqrt(grid**2 + 4 * (1 - grid) * keep) - grid) / (2 * (1 - grid))


def even_sample(visual: Tensor, stride: int, width: Tensor | None = None) -> Tensor:
    """Every s-th token of every s-th row of each picture; a picture is a run of visual tokens.

    Args:
        visual: visual tokens, (B, N).
        stride: s.
        width: columns of each token's grid, (B, N); where it is 0, a square is assumed if it fits.

    Returns:
        Mask, (B, N).
    """
    before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    starts = visual & ~before
    run = starts.cumsum(1) * visual  # number of each token's picture, from 1
    order = torch.arange(visual.shape[1], device=visual.device).expand_as(run)
    first = (order * starts).cummax(1).values
    within = order - first
    sizes = torch.zeros(run.shape[0], int(run.max()) + 1, dtype=run.dtype, device=run.device)
    sizes.scatter_add_(1, run, visual.to(run.dtype))
    size = sizes.gather(1, run).clamp_min(1)
    side = size.double().sqrt().round().to(size.dtype)
    columns = torch.where(side * side == size, side, 0)
    if width is not None:
        columns = torch.where(width > 0, width, columns)
    across = columns.clamp_min(1)
    grid = ((within // across) % stride == 0) & ((within % across) % stride == 0)
    return visual & torch.where(columns > 0, grid, within % stride**2 == 0)


@dataclass(frozen=True)
class Feather:
    """FEATHER.

    Args:
        keep: share of the visual tokens that is left after both steps, in (0, 1].
        layers: numbers of layers that read all tokens, and those left by the first step; None for a quarter and a half.
        stride: s of the even sample, at least 1.

    Raises:
        VlmError: a number outside its range.
    """

    keep: float = 0.25
    layers: tuple[int, int] | None = None
    stride: int = 3

    def __post_init__(self) -> None:
        share(self.keep)
        if self.stride < 1:
            raise VlmError(f"stride must be at least 1, got {self.stride}; 3 samples every ninth token")
        if self.layers is not None and not 1 <= self.layers[0] < self.layers[1]:
            raise VlmError(
                f"layers must be two ascending numbers from 1, got {self.layers}; the paper takes (8, 16) of 32"
            )

    def cuts(self, depth: int) -> tuple[Cut, ...]:
        """Where tokens go.

        Args:
            depth: number of layers of the decoder.

        Returns:
            Two cuts.

        Raises:
            VlmError: a decoder of fewer than three layers.
        """
        first, second = self.layers or (max(1, depth // 4), max(2, depth // 2))
        if depth < 3:
            raise VlmError(f"FEATHER drops tokens twice and needs at least 3 layers, got {depth}; take fastv")
        return tuple(Cut(layer, scored=layer - 1, rotated=False) for layer in (first, second))

    def choose(self, seen: Seen, cut: int) -> Tensor:
        """Which visual tokens stay.

        Args:
            seen: what there is to read.
            cut: number of the cut.

        Returns:
            Mask, (B, N).
        """
        assert seen.queries is not None
        assert seen.keys is not None
        score = last_attention(seen.queries, seen.keys, last=seen.last, real=seen.real, scaling=seen.scaling)
        if cut == 1:
            return top(score, seen.visual, count(seen.total, self.keep))
        best = top(score, seen.visual, count(seen.total, step_share(self.keep, self.stride)))
        return best | even_sample(seen.visual, self.stride, seen.width)


METHOD = Method(
    id=271,
    name="FEATHER",
    kind="transform",
    summary="Visual tokens go in two steps, by attention without rotary positions and an even sample of the picture.",
    cases={
        "llava": Transform(
            applied(Feather(keep=0.3, layers=(1, 2), stride=2)),
            reader,
            question,
            applied(Feather(keep=1.0, layers=(1, 2))),
            tolerance=0.0,
            twice="is accelerated already",
        )
    },
    paper=Paper(
        "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model Acceleration",
        "M. Endo et al.",
        2025,
        "arXiv:2412.13180",
    ),
)
