"""Bayer filters: mosaic, planes of half the size, and two linear demosaicings; see `foveal.nn.isp`."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PATTERNS", "demosaic", "mosaic", "pack", "unpack"]

PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")  # colours of the upper left 2×2 pixels, row by row

# Interpolation at a pixel from the mosaic around it, 5×5: its own colour; green at red or blue; a colour that lies left
# and right; a colour above and below; the colour on the diagonals. In eighths, as in the paper's figure.
_CROSS = [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]
_ROW = [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
_DIAGONAL = [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]


@cache
def _colours(pattern: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Indices of the colours of a pattern's 2×2 pixels, 0 red, 1 green, 2 blue."""
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
    a, b, c, d = ("RGB".index(letter) for letter in pattern)
    return (a, b), (c, d)


def _tiled(cells: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last two axes, 2×2, over a map of any size."""
    return cells.repeat(*[1] * (cells.ndim - 2), -(-height // 2), -(-width // 2))[..., :height, :width]


def mosaic(x: Tensor, pattern: str = "RGGB") -> Tensor:
    """Keep the colour that a Bayer filter lets through at each pixel.

    Args:
        x: picture, (B, 3, H, W).
        pattern: one of `PATTERNS`.

    Returns:
        RAW, (B, 1, H, W).
    """
    index = _tiled(torch.tensor(_colours(pattern), device=x.device), *x.shape[-2:])
    return x.gather(1, index.expand(len(x), 1, -1, -1))


def _places(pattern: str) -> list[tuple[int, int]]:
    """Rows and columns of red, green beside red, green beside blue, blue within 2×2 pixels."""
    colours = _colours(pattern)
    row, column = next((i, j) for i in range(2) for j in range(2) if colours[i][j] == 0)
    return [(row, column), (row, 1 - column), (1 - row, column), (1 - row, 1 - column)]


def pack(raw: Tensor, pattern: str = "RGGB") -> Tensor:
    """RAW to four planes of half its size: red, green beside red, green beside blue, blue.

    Args:
        raw: RAW, (B, 1, H, W), H and W even.
        pattern: one of `PATTERNS`.

    Returns:
        Planes, (B, 4, H/2, W/2).

    Raises:
        ValueError: an odd height or width, or more than one channel.
    """
    if raw.shape[1] != 1 or raw.shape[2] % 2 or raw.shape[3] % 2:
        raise ValueError(f"RAW to pack must be (B, 1, H, W), H and W even, got {tuple(raw.shape)}; crop it")
    return torch.cat([raw[:, :, i::2, j::2] for i, j in _places(pattern)], 1)


def unpack(planes: Tensor, pattern: str = "RGGB") -> Tensor:
    """Undo `pack`.

    Args:
        planes: planes, (B, 4, H, W).
        pattern: one of `PATTERNS`.

    Returns:
        RAW, (B, 1, 2H, 2W).

    Raises:
        ValueError: not four planes.
    """
    if planes.shape[1] != 4:
        raise ValueError(f"planes to unpack must be (B, 4, H, W), got {tuple(planes.shape)}; see pack")
    order = [_places(pattern).index((i, j)) for i in range(2) for j in range(2)]
    return F.pixel_shuffle(planes[:, order], 2)


def demosaic(raw: Tensor, pattern: str = "RGGB", *, method: str = "malvar") -> Tensor:
    """Fill in the two colours that a Bayer filter took, by a fixed 5×5 or 3×3 convolution; borders are mirrored.

    Measured values stay as they are, so `mosaic(demosaic(raw))` is `raw`. Results may leave [0, 1] at edges.

    Args:
        raw: RAW, (B, 1, H, W), H and W at least 3.
        pattern: one of `PATTERNS`.
        method: "malvar" (5×5, corrected by the gradient of the measured colour) or "bilinear" (3×3).

    Returns:
        Picture, (B, 3, H, W).

    Raises:
        ValueError: an unknown method, more than one channel, or fewer than 3×3 pixels.
    """
    if method not in ("malvar", "bilinear"):
        raise ValueError(f"method must be malvar or bilinear, got {method!r}")
    if raw.shape[1] != 1 or min(raw.shape[2:]) < 3:
        raise ValueError(f"RAW to demosaic must be (B, 1, H, W), at least 3×3, got {tuple(raw.shape)}")
    kernels = raw.new_tensor([[[0.0] * 5] * 5, _CROSS, _ROW, list(zip(*_ROW, strict=True)), _DIAGONAL]) / 8
    kernels[0, 2, 2] = 1
    if method == "bilinear":  # the mean of the neighbours that have the colour
        near = torch.zeros(5, 5, dtype=torch.bool, device=raw.device)
        near[1:4, 1:4] = True
        kernels[1:] = (kernels[1:] > 0) & near
        kernels[1:, 2, 2] = 0
        kernels = kernels / kernels.sum((1, 2), keepdim=True)
    # (B, 5, H, W)
    found = F.conv2d(F.pad(raw, (2, 2, 2, 2), mode="reflect"), kernels[:, None])
    colours = _colours(pattern)

    def which(colour: int, i: int, j: int) -> int:
        own = colours[i][j]
        if own == colour:
            return 0
        if own == 1:
            return 2 if colours[i][1 - j] == colour else 3
        return 1 if colour == 1 else 4

    cells = torch.tensor([[[which(c, i, j) for j in range(2)] for i in range(2)] for c in range(3)], device=raw.device)
    return found.gather(1, _tiled(cells, *raw.shape[2:]).expand(len(raw), -1, -1, -1))
