"""Free Video-LLM: a clip for a language model of pictures, by the frames and the regions that the question is about.

*Source*: K. Han et al., "Free Video-LLM: Prompt-guided Visual Perception for Efficient Training-free Video LLMs", 2024
(arXiv:2410.10441), section 3. CLIP embeds the question, q (E), each frame, f (T, E), and each patch, p (T, H·W, E). The
language model reads, one after the other,

    slow    the 3 frames of largest cos(q, f), in temporal order; pairs of neighbours in a row become their maximum,
            which leaves H × W/2 tokens; of these the region of the frame
    middle  5 frames spread over the clip, pooled and cropped alike
    fast    all frames (the best by cos(q, f) if there are more than 50), averaged to 4×4 tokens, not cropped

    voters = the r·H·W/2 pooled patches of largest cos(q, p)
    region = ⌊H·√r⌉ × ⌊W/2·√r⌉ tokens around ⌊mean of the voters' rows and columns⌋, moved into the frame

For 50 frames of 24×24 patches and r = 0.8 these are (3 + 5)·21·11 + 50·16 = 2,648 tokens of 28,800. Nothing is trained.

*Differs from the paper*: nothing by default. The authors' code pools 24×24 patches to 24 rows of 12 and then reads them
as 12 rows of 24, two rows of the picture side by side, so that a crop is no rectangle of the picture; here it is one.
With as many voters as tokens in the region, a small object hardly moves the centre, and the crop is the same for nearly
every question; `voters` is a share of its own for these, such as 0.05.
*Provenance*: written from the paper and the authors' configuration (contrastive/FreeVideoLLM). On 24 random clips, read
as 12×24, tokens equal those of the authors' code to 1e-7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

__all__ = ["Clip", "FreeVideoLLM", "corners", "cropped", "halved", "likest", "region", "spread"]


def likest(text: Tensor, frames: Tensor, count: int) -> Tensor:
    """The frames that are most like the question.

    Args:
        text: embedding of the question, (E,).
        frames: embeddings of the frames, (T, E).
        count: how many; all if there are fewer.

    Returns:
        Indices in temporal order, (min(count, T),).
    """
    order = F.cosine_similarity(text, frames, dim=-1).argsort(stable=True)
    return order[max(0, len(frames) - count) :].sort().values


def spread(total: int, count: int) -> Tensor:
    """Frames at equal distances, from the first one on: ⌊i · total / count⌋.

    Args:
        total: frames of the clip, T.
        count: how many; all if there are fewer.

    Returns:
        Indices, (min(count, T),).
    """
    count = min(count, total)
    return torch.arange(count) * total // max(count, 1)


def halved(x: Tensor) -> Tensor:
    """The maximum of each pair of neighbours in a row: tokens in reading order, (T, N, C), to (T, N/2, C)."""
    return x.unflatten(1, (-1, 2)).amax(2)


def region(shape: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Rows and columns of a region.

    Args:
        shape: rows and columns of the tokens.
        ratio: share of the tokens, r, in (0, 1].

    Returns:
        Rows and columns, at least 1.
    """
    rows, columns = (max(1, round(side * math.sqrt(ratio))) for side in shape)
    return rows, columns


def corners(similar: Tensor, shape: tuple[int, int], ratio: float, voters: float | None = None) -> Tensor:
    """Where the region of each frame begins.

    Args:
        similar: similarity of each token to the question, (T, h·w).
        shape: rows and columns, (h, w).
        ratio: share of the tokens that the region has.
        voters: share of the tokens around whose mean it lies; None for `ratio`.

    Returns:
        Top row and left column, (T, 2).
    """
    best = similar.topk(max(1, int(similar.shape[1] * (ratio if voters is None else voters))), dim=1).indices
    size = torch.tensor(region(shape, ratio), device=similar.device)
    centre = torch.stack((best // shape[1], best % shape[1]), 2).float().mean(1).long()  # (T, 2), rounded down
    room = torch.tensor(shape, device=similar.device) - size
    return (centre - size // 2).clamp_min(0).minimum(room)


def cropped(x: Tensor, begin: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The region of each frame.

    Args:
        x: tokens, (T, h·w, C).
        begin: top row and left column of each region, (T, 2).
        shape: rows and columns of the tokens, (h, w).
        size: rows and columns of a region.

    Returns:
        Tokens of the regions in reading order, (T, rows · columns, C).
    """
    rows, columns = (begin[:, i, None] + torch.arange(size[i], device=x.device) for i in (0, 1))
    places = (rows[:, :, None] * shape[1] + columns[:, None]).flatten(1)  # (T, rows · columns)
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


@dataclass(frozen=True)
class Clip:
    """A clip and a question as the two networks see them.

    Args:
        tokens: what the language model reads of each frame, (T, H·W, C).
        text: CLIP's embedding of the question, (E,).
        frames: its embedding of each frame, (T, E).
        patches: its embedding of each patch, (T, H·W, E).
        grid: rows and columns of a frame's patches, (H, W); None for a square.

    Raises:
        VlmError: shapes that do not fit, or an odd number of columns.
    """

    tokens: Tensor
    text: Tensor
    frames: Tensor
    patches: Tensor
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        t, n = self.tokens.shape[:2]
        e = len(self.text)
        rows, columns = self.shape
        if rows * columns != n or self.patches.shape != (t, n, e) or self.frames.shape != (t, e) or not t:
            raise VlmError(
                f"tokens (T, H·W, C), text (E,), frames (T, E) and patches (T, H·W, E) must fit, got "
                f"{[tuple(x.shape) for x in (self.tokens, self.text, self.frames, self.patches)]} on a grid of "
                f"{rows}×{columns}; give grid where it is no square"
            )
        if columns % 2:
            raise VlmError(f"columns of a frame must be even, got {columns}; pairs of neighbours become one token")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        side = math.isqrt(self.tokens.shape[1])
        return self.grid or (side, side)


@dataclass(frozen=True)
class FreeVideoLLM:
    """The three paths.

    Args:
        slow: frames chosen by the question.
        middle: frames spread over the clip.
        fast: most frames that are averaged.
        ratio: share of a frame's pooled tokens in its region, r; at 1 nothing is cropped.
        side: side of an averaged frame, in tokens.
        voters: share of the pooled patches around whose mean the region lies; None for `ratio`, as in the paper.

    Raises:
        VlmError: a number of frames below 0, no path at all, or a share outside (0, 1].
    """

    slow: int = 3
    middle: int = 5
    fast: int = 50
    ratio: float = 0.8
    side: int = 4
    voters: float | None = None

    def __post_init__(self) -> None:
        shares = [self.ratio, *([] if self.voters is None else [self.voters])]
        counts = (self.slow, self.middle, self.fast)
        if min(counts) < 0 or not any(counts) or self.side < 1 or not all(0 < s <= 1 for s in shares):
            raise VlmError(
                f"slow, middle and fast must be frames, not all 0, side at least 1 and ratio and voters in (0, 1], got "
                f"{counts}, {self.side} and {shares}"
            )

    def count(self, frames: int, grid: tuple[int, int]) -> int:
        """Tokens that the language model reads of a clip.

        Args:
            frames: T.
            grid: rows and columns of a frame's patches.

        Returns:
            Their number.
        """
        rows, columns = region((grid[0], grid[1] // 2), self.ratio)
        seen = min(self.slow, frames) + min(self.middle, frames)
        return seen * rows * columns + min(self.fast, frames) * self.side**2

    def begins(self, clip: Clip, frames: Tensor) -> Tensor:
        """Where the regions of some frames begin.

        Args:
            clip: the clip.
            frames: indices, (n,).

        Returns:
            Top row and left column among H × W/2 pooled tokens, (n, 2).
        """
        similar = F.cosine_similarity(clip.text, halved(clip.patches[frames]), dim=-1)
        return corners(similar, (clip.shape[0], clip.shape[1] // 2), self.ratio, self.voters)

    def __call__(self, clip: Clip) -> Tensor:
        """A clip to what the language model reads, (`count(T, (H, W))`, C)."""
        total, shape = len(clip.tokens), (clip.shape[0], clip.shape[1] // 2)
        found = []
        for frames in (likest(clip.text, clip.frames, self.slow), spread(total, self.middle)):
            if len(frames):
                begin, pooled = self.begins(clip, frames), halved(clip.tokens[frames])
                found.append(cropped(pooled, begin, shape, region(shape, self.ratio)).flatten(0, 1))
        if self.fast:
            # (T, H·W, C) to (T, C, 4, 4) to (T · 16, C)
            seen = clip.tokens if total <= self.fast else clip.tokens[likest(clip.text, clip.frames, self.fast)]
            small = F.adaptive_avg_pool2d(seen.transpose(1, 2).unflatten(2, clip.shape), self.side)
            found.append(small.flatten(2).transpose(1, 2).flatten(0, 1))
        return torch.cat(found)


def _at_once(tokens: Tensor, text: Tensor, frames: Tensor, patches: Tensor) -> Tensor:
    return FreeVideoLLM(2, 3, 7, 0.5, 2)(Clip(tokens, text, frames, patches, (5, 8)))


def _one_by_one(tokens: Tensor, text: Tensor, frames: Tensor, patches: Tensor) -> Tensor:
    """The same for nine frames, token by token."""
    text, frames, patches = (x.detach() for x in (text, frames, patches))
    likeness = [float(text @ f / (text.norm() * f.norm())) for f in frames]
    order = sorted(range(9), key=lambda i: likeness[i])
    found = []
    for i in (*sorted(order[-2:]), 0, 3, 6):
        pooled, places = {}, []
        for row in range(5):
            for column in range(4):
                left, right = (8 * row + 2 * column + k for k in (0, 1))
                pooled[row, column] = torch.maximum(tokens[i, left], tokens[i, right])
                patch = torch.maximum(patches[i, left], patches[i, right])
                places.append((float(text @ patch / patch.norm()), row, column))
        best = sorted(places, reverse=True)[:10]
        centre = [int(sum(place[k] for place in best) / 10) for k in (1, 2)]
        top, left = min(max(centre[0] - 2, 0), 1), min(max(centre[1] - 1, 0), 1)
        found += [pooled[row, column] for row in range(top, top + 4) for column in range(left, left + 3)]
    for i in sorted(order[-7:]):
        picture = tokens[i].unflatten(0, (5, 8))
        found += [picture[rows, columns].mean((0, 1)) for rows in (slice(3), slice(2, 5)) for columns in _HALVES]
    return torch.stack(found)


_HALVES = (slice(4), slice(4, 8))


def _clip(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"tokens": (9, 40, 3), "text": (6,), "frames": (9, 6), "patches": (9, 40, 6)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


METHOD = Method(
    id=12,
    name="FreeVideo-LLM",
    kind="operator",
    summary="A clip for a language model of pictures, by the frames and regions that the question is about.",
    paper=Paper(
        "Free Video-LLM: Prompt-guided Visual Perception for Efficient Training-free Video LLMs",
        "K. Han et al.",
        2024,
        "arXiv:2410.10441",
    ),
    cases={"three paths": Operator(_at_once, _one_by_one, _clip)},
)
