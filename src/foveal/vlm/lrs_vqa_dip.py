"""Dynamic image pyramid: a question leads from a coarse view to the few tiles of finer ones that are encoded at all.

*Source*: J. Luo et al., "When Large Vision-Language Model Meets Large Remote Sensing Imagery: Coarse-to-Fine
Text-Guided Token Pruning", ICCV 2025 (arXiv:2503.07588), section 3. The picture is halved until its longer side is
`base` pixels; each size is cut into tiles of the encoder's side, levels 1 … L from coarse to fine. Encoded are an
overview, all of level 1, and then, level by level,

    a = mean over heads of softmax(q·Kᵀ/√d)       q of the question's last word, K of the level's N tokens        (N,)
    tiles of level l + 1 = those under the `keep`·N tokens of level l with the largest a

with q and K from the last layer of a Region Focus Module: some layers of the language model, copied and taught the
attention of those they are copied from. At the last level the same scores prune the tokens. The language model reads
the overview and what is left of the last level; without loss at `keep` = 1.

    loss = mean over layers and heads of KL(attention of the language model's layer ‖ attention of the copy's)

*Differs from the paper*: the code that trains the module is not published; the loss is the divergence of the attention
within visual tokens. Layers here are of any kind that gives away its attention (`Layer`). A token leads to the tile
under its centre; the authors round the first row and column of it. No token for the end of a row. The smallest picture
has one level, and its tokens are pruned.
*Provenance*: written from the paper and the behaviour of the authors' code (VisionXLab/LRS-VQA), whose pyramid starts
at 1,008 pixels with tiles of 336, keeps a quarter of the tokens and goes one level deeper. `levels` gives the same
sizes and grids as that code for 400 random sizes from 400 to 6,000 pixels.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError, share, top

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Layer", "Level", "Look", "RegionFocus", "cut", "distillation", "levels", "look", "under"]


@dataclass(frozen=True)
class Level:
    """A level of the pyramid.

    Args:
        size: height and width that the picture is resized to, in pixels.
        tile: side of a tile, in pixels.
    """

    size: tuple[int, int]
    tile: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles; the last ones may be padded."""
        return math.ceil(self.size[0] / self.tile), math.ceil(self.size[1] / self.tile)


def levels(size: tuple[int, int], *, tile: int = 336, base: int = 1008) -> tuple[Level, ...]:
    """The pyramid of a picture.

    Args:
        size: height and width, in pixels.
        tile: side of a tile, in pixels.
        base: longer side of the first level, in pixels; a smaller picture has one level.

    Returns:
        Levels from coarse to fine, each enlarged to fill its tiles along one side.

    Raises:
        VlmError: a number below 1.
    """
    if min(*size, tile, base) < 1:
        raise VlmError(f"sizes must be at least 1 pixel, got a picture of {size}, tiles of {tile} and a base of {base}")
    least = min(1.0, base / max(size))
    scales = [0.5**n for n in range(64) if 0.5**n >= least]
    found = []
    for scale in sorted({*scales, least}):
        height, width = (max(1, round(side * scale)) for side in size)
        rows, columns = math.ceil(height / tile), math.ceil(width / tile)
        grow = min(rows * tile / height, columns * tile / width)
        found.append(Level((max(1, round(height * grow)), max(1, round(width * grow))), tile))
    return tuple(found)


def cut(picture: Tensor, level: Level) -> Tensor:
    """Tiles of a level.

    Args:
        picture: pixels, (B, C, H, W).
        level: the level.

    Returns:
        Tiles, (B, rows, columns, C, t, t), antialiased; 0 where the picture ends.
    """
    seen = picture
    if level.size != tuple(picture.shape[2:]):
        seen = F.interpolate(picture, level.size, mode="bilinear", antialias=True, align_corners=False)
    (rows, columns), t = level.grid, level.tile
    padded = F.pad(seen, (0, columns * t - level.size[1], 0, rows * t - level.size[0]))
    return padded.unflatten(3, (columns, t)).unflatten(2, (rows, t)).permute(0, 2, 4, 1, 3, 5)


def under(kept: Tensor, level: Level, finer: Level) -> Tensor:
    """The tiles of the next level under chosen tokens.

    Args:
        kept: mask of the tokens of a level, (B, rows · k, columns · k).
        level: their level.
        finer: the next.

    Returns:
        Mask of the finer level's tiles, (B, rows, columns).
    """
    found = kept.new_zeros(len(kept), *finer.grid)
    k = kept.shape[1] // level.grid[0]
    places = []
    for axis in (0, 1):
        centre = (torch.arange(kept.shape[1 + axis], device=kept.device) + 0.5) * level.tile / k
        place = (centre / level.size[axis] * finer.size[axis] / finer.tile).long()
        places.append(place.clamp(max=finer.grid[axis] - 1))
    row, down, along = kept.nonzero(as_tuple=True)
    found[row, places[0][down], places[1][along]] = True
    return found


def _inside(level: Level, k: int) -> Tensor:
    """Mask of the tokens whose first pixel the picture covers, (rows · k, columns · k)."""
    down, along = (
        torch.arange(parts * k) * level.tile < side * k for parts, side in zip(level.grid, level.size, strict=True)
    )
    return down[:, None] & along


@dataclass(frozen=True)
class Look:
    """What the language model reads, and what it took.

    Args:
        tokens: those of the overview, then kept ones of the last level in reading order, (B, M, D); 0 for padding.
        real: whether a token is no padding, (B, M).
        encoded: tiles that were encoded, with the overview, (B,).
    """

    tokens: Tensor
    real: Tensor
    encoded: Tensor


def look(
    overview: Tensor,
    tiles: Sequence[Tensor],
    pyramid: Sequence[Level],
    encode: Callable[[Tensor], Tensor],
    score: Callable[[Tensor, Tensor], Tensor],
    *,
    keep: float = 0.25,
) -> Look:
    """Go from coarse to fine.

    Args:
        overview: tokens of the overview, (B, O, D).
        tiles: tiles of each level, (B, rows, columns, …).
        pyramid: the levels.
        encode: (n, …) tiles to tokens in reading order, (n, k², D).
        score: tokens, (B, N, D), and whether each is real, (B, N), to attention, (B, N). The overview's come first.
        keep: share of a level's tokens that lead on, and that are read of the last level, in (0, 1].

    Returns:
        Tokens, and the number of tiles.

    Raises:
        VlmError: `keep` outside its range, or tiles that are not those of the levels.
    """
    share(keep)
    grids = [tuple(x.shape[1:3]) for x in tiles]
    if grids != [level.grid for level in pyramid]:
        raise VlmError(f"the levels have grids {[level.grid for level in pyramid]}, got tiles of {grids}; cut anew")
    batch, chosen = len(overview), torch.ones(len(overview), *pyramid[0].grid, dtype=torch.bool, device=overview.device)
    encoded = torch.ones(batch, dtype=torch.long, device=overview.device)
    for number, (level, given) in enumerate(zip(pyramid, tiles, strict=True)):
        encoded = encoded + chosen.sum((1, 2))
        made = encode(given[chosen])
        k = math.isqrt(made.shape[1])
        dense = made.new_zeros(batch, *level.grid, k, k, made.shape[2])
        dense[chosen] = made.unflatten(1, (k, k))
        # (B, rows, columns, k, k, D) to (B, rows · k, columns · k, D)
        dense = dense.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        there = chosen.repeat_interleave(k, 1).repeat_interleave(k, 2) & _inside(level, k).to(chosen.device)
        tokens, real = dense.flatten(1, 2), there.flatten(1)
        known = torch.ones_like(overview[..., 0], dtype=torch.bool)
        scores = score(torch.cat((overview, tokens), 1), torch.cat((known, real), 1))[:, overview.shape[1] :]
        kept = top(scores, real, (real.sum(1) * keep).long().clamp(min=1))
        if number + 1 < len(pyramid):
            chosen = under(kept.view_as(there), level, pyramid[number + 1])
    order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : int(kept.sum(1).max())]
    left = kept.gather(1, order)
    read = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2])) * left[..., None]
    return Look(torch.cat((overview, read), 1), torch.cat((known, left), 1), encoded)


class Layer(Protocol):
    """A layer of a language model that gives away its attention."""

    def __call__(self, words: Tensor, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Words, (B, Q, C), visual tokens, (B, N, C), and their mask, (B, N), to words and attention, (B, H, Q, N)."""
        ...


class RegionFocus(nn.Module):
    """Copies of layers of a language model, whose attention says where to look.

    Args:
        layers: layers of the language model, each a `Layer`.
        picked: numbers of those that are copied, ascending.

    Raises:
        VlmError: a number that no layer has.
    """

    def __init__(self, layers: Sequence[nn.Module], picked: Sequence[int]) -> None:
        super().__init__()
        if not picked or not all(0 <= n < len(layers) for n in picked):
            raise VlmError(f"picked must be numbers of the {len(layers)} layers, from 0, got {tuple(picked)}")
        self.picked = tuple(picked)
        self.layers = nn.ModuleList(copy.deepcopy(layers[n]) for n in picked)
        self.requires_grad_(True)

    def forward(self, words: Tensor, tokens: Tensor, real: Tensor) -> list[Tensor]:
        """Words, (B, Q, C), tokens, (B, N, C), and their mask, (B, N), to the last word's attention, (B, H, N) each."""
        found = []
        for layer in self.layers:
            words, attention = layer(words, tokens, real)
            found.append(attention[:, :, -1])
        return found

    def score(self, words: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        """Attention of the last layer, mean over heads, (B, N)."""
        return self(words, tokens, real)[-1].mean(1)  # type: ignore[no-any-return]


def distillation(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """How far attention is from the language model's.

    Args:
        ours: attention of each layer of the module, (B, H, N); may be a part of a row, which need not sum to 1.
        theirs: that of the layers they were copied from.

    Returns:
        Mean divergence, at least 0.
    """
    found = []
    for student, teacher in zip(ours, theirs, strict=True):
        q, p = ((x + 1e-9) / (x + 1e-9).sum(2, keepdim=True) for x in (student, teacher.detach()))
        found.append((p * (p.log() - q.log())).sum(2).mean())
    return torch.stack(found).mean()


def _encode(tiles: Tensor) -> Tensor:
    """Tiles of 2×2 pixels, (n, 1, 2, 2), to a token a pixel."""
    return tiles.flatten(2).transpose(1, 2)


def _looked(picture: Tensor) -> Tensor:
    pyramid = levels((12, 8), tile=2, base=4)
    tiles = [cut(picture, level) for level in pyramid]
    found = look(picture.mean((2, 3))[:, None], tiles, pyramid, _encode, lambda tokens, _: tokens[..., 0], keep=0.3)
    return found.tokens


def _plainly(picture: Tensor) -> Tensor:
    """`_looked`, pixel after pixel: the brightest lead on."""
    pyramid, found = levels((12, 8), tile=2, base=4), []
    for one in picture:
        places: set[tuple[int, int]] | None = None
        for number, level in enumerate(pyramid):
            seen = F.interpolate(one[None], level.size, mode="bilinear", antialias=True)[0, 0]
            all_ = [(y, x) for y in range(level.size[0]) for x in range(level.size[1])]
            there = [p for p in all_ if places is None or (p[0] // 2, p[1] // 2) in places]
            there.sort(key=lambda p: -float(seen[p].detach()))
            kept = there[: max(1, int(len(there) * 0.3))]
            if number + 1 < len(pyramid):
                finer = pyramid[number + 1].size
                places = {
                    (int((y + 0.5) / level.size[0] * finer[0] / 2), int((x + 0.5) / level.size[1] * finer[1] / 2))
                    for y, x in kept
                }
        found.append(torch.stack([one.mean(), *(seen[p] for p in sorted(kept))]))
    most = max(len(x) for x in found)
    return torch.stack([F.pad(x, (0, most - len(x))) for x in found])[..., None]


METHOD = Method(
    id=238,
    name="LRS-VQA-DIP",
    kind="operator",
    summary="A question leads from a coarse view of a large picture to the few tiles of finer ones that are encoded.",
    paper=Paper(
        "When Large Vision-Language Model Meets Large Remote Sensing Imagery: Coarse-to-Fine Text-Guided Token Pruning",
        "J. Luo et al.",
        2025,
        "arXiv:2503.07588",
    ),
    cases={
        "looked": Operator(
            _looked,
            _plainly,
            lambda seed: {"picture": torch.rand(2, 1, 12, 8, generator=torch.Generator().manual_seed(seed))},
        )
    },
)
