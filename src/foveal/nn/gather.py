"""Gather, compute, scatter: work on some rows of a set of tokens, windows, patches or pixels.

    y = put(x, index, f(take(x, index)))       rows outside `index` stay as they are

Shapes: B batch, N rows, K chosen rows, C channels. Rows of all pictures are addressed one after the other, because
copying whole rows (`index_select`) is several times faster on a CPU than gathering elements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["kept", "put", "routed", "take", "top"]


def _rows(index: Tensor, length: int) -> Tensor:
    """Places in the rows of all pictures, (B·K,)."""
    if index.shape[0] == 1:
        return index[0]
    return (index + torch.arange(index.shape[0], device=index.device)[:, None] * length).flatten()


def take(x: Tensor, index: Tensor) -> Tensor:
    """Copy chosen rows.

    Args:
        x: rows, (B, N, …).
        index: numbers of the rows, (B, K) int64 in 0…N − 1.

    Returns:
        Chosen rows in the order of `index`, (B, K, …).
    """
    found = x.flatten(0, 1).index_select(0, _rows(index, x.shape[1]))
    return found.view(*index.shape, *x.shape[2:])


def put(x: Tensor, index: Tensor, y: Tensor) -> Tensor:
    """Replace chosen rows.

    Args:
        x: rows, (B, N, …); not changed.
        index: numbers of the rows, each at most once in a picture, (B, K) int64.
        y: new rows, (B, K, …).

    Returns:
        Rows, (B, N, …).
    """
    return x.flatten(0, 1).index_copy(0, _rows(index, x.shape[1]), y.flatten(0, 1)).view(x.shape)


def routed(fn: Callable[[Tensor], Tensor], x: Tensor, index: Tensor) -> Tensor:
    """Apply a function to chosen rows; the others stay as they are.

    Args:
        fn: function of (B, K, …) to the same shape.
        x: rows, (B, N, …).
        index: numbers of the rows, ascending, each at most once in a picture, (B, K) int64. All of them, or none, cost
            no copy: the result is then `fn(x)`, or `x`.

    Returns:
        Rows, (B, N, …).
    """
    if index.shape[1] == x.shape[1]:
        return fn(x)
    return put(x, index, fn(take(x, index))) if index.shape[1] else x


def kept(count: int, share: float, *, least: int = 1) -> int:
    """Number of items that are left of some.

    Args:
        count: number of items.
        share: share to keep, in (0, 1].
        least: lower bound on the result.

    Returns:
        Number, rounded up; `count` for a share of 1.
    """
    return min(count, max(least, math.ceil(round(share * count, 6))))


def top(score: Tensor, count: int) -> Tensor:
    """The items with the highest scores, in their own order.

    Args:
        score: scores, (B, N).
        count: number of items to keep, in 0…N.

    Returns:
        Numbers of the items, ascending, (B, count) int64.
    """
    if count == score.shape[1]:
        return torch.arange(count, device=score.device).expand(score.shape[0], -1)
    return score.topk(count, dim=1, sorted=False).indices.sort(1).values
