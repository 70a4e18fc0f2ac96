"""Neighbourhood attention: each position of a map attends to a window around it, optionally dilated.

*Source*: A. Hassani et al., "Neighborhood Attention Transformer", 2023 (arXiv:2204.07143); with dilation: A. Hassani,
H. Shi, "Dilated Neighborhood Attention Transformer", 2022 (arXiv:2209.15001), section 3.1.

With dilation d, the rows of a map fall into d classes that do not see each other; a row sees the K rows of its class
nearest to it, shifted inward at the border. Columns do likewise. So every position has K² neighbours:

    p = r + d·q;  start = clamp(q - ⌊K/2⌋, 0, m_r - K);  rows r + d·(start … start + K - 1)      m_r rows in class r
    scores(p) = [query_p · key_n + bias_{n - p}]ₙ;  sum(p) = Σₙ weights(p)ₙ value_n

*Differs from the paper*: if a class has fewer than K rows, all of them are seen and the rest of the window is masked;
the papers require larger maps.
*Provenance*: written from the papers; the indexing of the bias at the border was looked up in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Neighbours", "dense_attention", "neighbourhood_scores", "neighbourhood_sum", "neighbours"]


@dataclass(frozen=True)
class Neighbours:
    """The K² neighbours of each of the L positions of a map.

    Args:
        index: positions of the neighbours, (L, K²) int64; arbitrary where masked.
        inside: mask, true where there is a neighbour, (L, K²).
        offset: relative position of each neighbour as an index into a flat (2K - 1) × (2K - 1) table, (L, K²).
    """

    index: Tensor
    inside: Tensor
    offset: Tensor


def _along(length: Tensor, kernel_size: int, dilation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours along one axis, (length, K) each: index, mask, and relative position in 0…2K - 2."""
    place = length[:, None]
    last = place[-1:]
    least, number = place % dilation, torch.div(place, dilation, rounding_mode="floor")
    count = torch.div(last - least, dilation, rounding_mode="floor") + 1
    start = torch.minimum(number - kernel_size // 2, count - kernel_size).clamp(min=0)
    seen = start + torch.arange(kernel_size, device=place.device)
    inside = seen < count
    seen = torch.minimum(seen, count - 1)
    return least + dilation * seen, inside, seen - number + kernel_size - 1


def neighbours(
    height: int,
    width: int,
    kernel_size: int,
    *,
    dilation: int | None = 1,
    device: torch.device | None = None,
) -> Neighbours:
    """Find the neighbours of every position.

    Args:
        height: H.
        width: W.
        kernel_size: K, odd.
        dilation: d, at least 1; None takes the largest, at most K, at which a window still fits into the map, for each
            axis separately.
        device: device of the tensors.

    Returns:
        The neighbours of each position in raster order.

    Raises:
        ValueError: if the kernel is even or the dilation is below 1.
    """
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
    if dilation is not None and dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}; 1 skips nothing")
    sides = []
    for length in (height, width):
        place = torch.arange(length, device=device)
        # As tensors, because the sides may be dynamic in a traced graph.
        fits = torch.div(place[-1:] + 1, kernel_size, rounding_mode="floor").clamp(1, kernel_size)
        step = fits if dilation is None else torch.full_like(fits, dilation)
        sides.append(_along(place, kernel_size, step))
    (rows, rows_inside, down), (columns, columns_inside, right) = sides

    def both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a[:, None, :, None], b[None, :, None, :]

    # (H, W, K, K) to (L, K²)
    i, j = both(rows, columns)
    index = (i * width + j).reshape(height * width, kernel_size**2)
    i, j = both(rows_inside, columns_inside)
    inside = (i & j).reshape(height * width, kernel_size**2)
    i, j = both(down, right)
    offset = (i * (2 * kernel_size - 1) + j).reshape(height * width, kernel_size**2)
    return Neighbours(index, inside, offset)


def _taken(x: Tensor, near: Neighbours) -> Tensor:
    """Gather each position's neighbours, (B, heads, L, C) to (B, heads, L, K², C)."""
    batch, heads, length, dim = x.shape
    return x.index_select(2, near.index.flatten()).reshape(batch, heads, length, near.index.shape[1], dim)


def neighbourhood_scores(query: Tensor, key: Tensor, near: Neighbours, bias: Tensor | None = None) -> Tensor:
    """Similarity of each position to its neighbours, minus infinity where masked.

    Args:
        query: queries, (B, heads, L, C), scaled.
        key: keys, (B, heads, L, C).
        near: neighbours.
        bias: relative position bias, (heads, 2K - 1, 2K - 1).

    Returns:
        (B, heads, L, K²), before softmax.
    """
    # (B, heads, L, 1, C) · (B, heads, L, C, K²)
    scores = (query[..., None, :] @ _taken(key, near).transpose(-1, -2)).squeeze(-2)
    if bias is not None:
        table = bias.flatten(1).index_select(1, near.offset.flatten())
        scores = scores + table.reshape(bias.shape[0], scores.shape[2], scores.shape[3])
    return scores.masked_fill(~near.inside, float("-inf"))


def neighbourhood_sum(weights: Tensor, value: Tensor, near: Neighbours) -> Tensor:
    """Weighted sum of each position's neighbours.

    Args:
        weights: attention weights, (B, heads, L, K²), 0 where masked.
        value: values, (B, heads, L, C).
        near: neighbours.

    Returns:
        (B, heads, L, C).
    """
    return (weights[..., None, :] @ _taken(value, near)).squeeze(-2)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    """Slow reference: attention over all pairs, with a mask derived directly from the definition.

    Args:
        query: queries, (B, heads, H·W, C), scaled.
        key: keys, (B, heads, H·W, C).
        value: values, (B, heads, H·W, C).
        bias: relative position bias, (heads, 2K - 1, 2K - 1).
        height: H.
        width: W.
        kernel_size: K, odd.
        dilation: d.

    Returns:
        (B, heads, H·W, C).
    """
    scores = query @ key.transpose(-1, -2)
    seen = torch.zeros_like(scores, dtype=torch.bool)
    for p in range(height * width):
        sides = []
        for at, length in ((p // width, height), (p % width, width)):
            alike = range(at % dilation, length, dilation)
            first = min(alike.index(at) - kernel_size // 2, len(alike) - kernel_size)
            sides.append(alike[max(first, 0) :][:kernel_size])
        for i in sides[0]:
            for j in sides[1]:
                n = i * width + j
                down, right = (i - p // width) // dilation, (j - p % width) // dilation
                scores[:, :, p, n] += bias[:, down + kernel_size - 1, right + kernel_size - 1]
                seen[:, :, p, n] = True
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value
