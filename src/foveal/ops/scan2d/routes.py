"""Scan orders over the positions of a feature map, with gather along them and scatter back.

A map of H rows and W columns is stored in raster order: position p = i·W + j is row i, column j. A route is a list of
positions in the order they are visited; the map is indexed by it, and scattered back through the same index:

    sequence_s = map[route_s],  map[route_s] += sequence_s

Shapes here: L = H·W, K routes, S places per route.

*Source*: "cross": Y. Liu et al., "VMamba", 2024, arXiv:2401.10166, section 4.2. "snake": C. Yang et al., "PlainMamba",
2024, arXiv:2403.17695, section 3.2. "window": T. Huang et al., "LocalMamba", 2024, arXiv:2403.09338, section 3.2.
"atrous": X. Pei et al., "EfficientVMamba", 2024, arXiv:2403.09977, section 3.2. "diagonal" and "spiral": Z. Ji,
"MHS-VM", 2024, arXiv:2406.05992. "hilbert": D. Hilbert, "Ueber die stetige Abbildung einer Linie auf ein
Flächenstück", 1891.
*Differs from the papers*: border windows and maps that a step does not divide are not padded; the routes skip what is
outside.
*Provenance*: written from the papers; which routes of "atrous" follow the columns was looked up in the authors' code.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ORDERS", "gather", "routes", "scatter"]


def _and_back(*ways: Tensor) -> Tensor:
    """Each route forward, then each backward."""
    there = torch.stack(ways)
    return torch.cat([there, there.flip(1)])


def _divided(place: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder; ONNX export has no remainder for a dynamic divisor."""
    quotient = place // by
    return quotient, place - quotient * by


def _grid(height: int, width: int, device: torch.device | None) -> tuple[Tensor, Tensor, Tensor]:
    """Position, row and column of every position of the map, (L,) each."""
    place = torch.arange(height * width, device=device)
    return place, *_divided(place, width)


def _columns(height: int, width: int, device: torch.device | None) -> Tensor:
    column, row = _divided(_grid(height, width, device)[0], height)
    return row * width + column


def _raster(height: int, width: int, device: torch.device | None) -> Tensor:
    return _and_back(_grid(height, width, device)[0])


def _cross(height: int, width: int, device: torch.device | None) -> Tensor:
    return _and_back(_grid(height, width, device)[0], _columns(height, width, device))


def _snake(height: int, width: int, device: torch.device | None) -> Tensor:
    place, row, along = _grid(height, width, device)
    rows = row * width + torch.where(row % 2 == 1, width - 1 - along, along)
    column, down = _divided(place, height)
    columns = torch.where(column % 2 == 1, height - 1 - down, down) * width + column
    return _and_back(rows, columns)


def _diagonal(height: int, width: int, device: torch.device | None) -> Tensor:
    _, i, j = _grid(height, width, device)
    # i + j indexes the diagonals that rise to the right, i + W - 1 - j those that fall; i orders each from the top.
    return _and_back(torch.argsort((i + j) * height + i), torch.argsort((i + width - 1 - j) * height + i))


def _spiral(height: int, width: int, device: torch.device | None) -> Tensor:
    _, i, j = _grid(height, width, device)
    ring = torch.stack([i, j, height - 1 - i, width - 1 - j]).amin(0)
    tall, wide = height - 1 - 2 * ring, width - 1 - 2 * ring  # steps along the sides of the ring
    down, right = i - ring, j - ring
    upper = torch.where(down == 0, right, wide + down)
    lower = torch.where(down == tall, wide + tall + wide - right, 2 * wide + tall + tall - down)
    turned = torch.where((down == 0) | (right == wide), upper, lower)
    return _and_back(torch.argsort(height * width - (tall + 1) * (wide + 1) + turned))


def _hilbert(height: int, width: int, device: torch.device | None) -> Tensor:
    _, i, j = _grid(height, width, device)
    key = torch.zeros_like(i)
    # From the largest square to the smallest; maps have sides below 2¹⁶. Empty large squares only rotate the curve.
    for bit in range(15, -1, -1):
        down, right = i >> bit & 1, j >> bit & 1
        key = key * 4 + (3 * right ^ down)
        # The first quarter is mirrored about the diagonal, the last about the antidiagonal.
        flip = (down == 0) & (right == 1)
        last = (1 << bit) - 1
        a, b = i & last, j & last
        a, b = torch.where(flip, last - a, a), torch.where(flip, last - b, b)
        i, j = torch.where(down == 0, b, a), torch.where(down == 0, a, b)
    return _and_back(torch.argsort(key))


def _window(height: int, width: int, device: torch.device | None, side: int) -> Tensor:
    _, i, j = _grid(height, width, device)
    windows = (width + side - 1) // side
    return _and_back(torch.argsort(((i // side * windows + j // side) * side + i % side) * side + j % side))


def _atrous(height: int, width: int, device: torch.device | None, step: int) -> Tensor:
    rows, columns = (height + step - 1) // step, (width + step - 1) // step
    place, row, column = _grid(rows, columns, device)
    found = []
    for k in range(step**2):
        i, j = _divided(place, rows)[::-1] if k % 2 else (row, column)
        i, j = i * step + k % step, j * step + k // step
        found.append(torch.where((i < height) & (j < width), i * width + j, -1))
    return torch.stack(found)


_PLAIN: dict[str, Callable[[int, int, torch.device | None], Tensor]] = {
    "raster": _raster,
    "cross": _cross,
    "snake": _snake,
    "diagonal": _diagonal,
    "spiral": _spiral,
    "hilbert": _hilbert,
}
_SIZED: dict[str, Callable[[int, int, torch.device | None, int], Tensor]] = {"window": _window, "atrous": _atrous}
ORDERS = (*_PLAIN, *_SIZED)


def _find(order: str, height: int, width: int, size: int, device: torch.device | None) -> Tensor:
    if order in _PLAIN:
        return _PLAIN[order](height, width, device)
    return _SIZED[order](height, width, device, size)


@lru_cache(maxsize=128)
def _kept(order: str, height: int, width: int, size: int, device: torch.device | None) -> Tensor:
    with torch.inference_mode(False):  # a cached tensor must also be usable in a later training step
        return _find(order, height, width, size, device)


def routes(
    order: str, height: int, width: int, *, window: int = 8, step: int = 2, device: torch.device | str | None = None
) -> Tensor:
    """Positions of a map in the order each route visits them. The result is cached: do not modify it in place.

    | order | K | routes |
    |---|---|---|
    | raster | 2 | rows; the same backward |
    | cross | 4 | rows, columns; both backward |
    | snake | 4 | rows, columns, every second one reversed so that each step is to a neighbour; both backward |
    | diagonal | 4 | diagonals from the upper left corner, from the upper right corner; both backward |
    | spiral | 2 | clockwise from the upper left corner inward; the same backward |
    | hilbert | 2 | Hilbert curve over the enclosing power of two, without what is outside; the same backward |
    | window | 2 | window after window, rows in each, smaller windows at the right and lower border; the same backward |
    | atrous | step² | each takes every `step`-th row and column, from its own offset; odd ones follow the columns |

    All orders but atrous visit every position on every route; atrous visits each on one route. If the map is not a
    multiple of `step`, -1 marks places outside, anywhere on a route.

    Args:
        order: name of an order in the table.
        height: H, below 2¹⁶.
        width: W, below 2¹⁶.
        window: side of the windows of "window", at least 1.
        step: step of "atrous", at least 1.
        device: device of the result.

    Returns:
        Positions, (K, S) int64, where S = H·W except for "atrous", where S = ⌈H/step⌉·⌈W/step⌉.

    Raises:
        ValueError: if the order is unknown, or the window or step is below 1.

    Example:
        >>> from foveal.ops.scan2d import routes
        >>> routes("snake", 2, 3)[0]
        tensor([0, 1, 2, 5, 4, 3])
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    for name, size in (("window", window), ("step", step)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}; 1 is every position")
    size = {"window": window, "atrous": step}.get(order, 0)
    where = None if device is None else torch.device(device)
    # While a graph is traced, sizes may be symbolic and tensors belong to that graph: do not cache.
    traced = torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor
    return (_find if traced else _kept)(order, height, width, size, where)


def _places(routes: Tensor, x: Tensor) -> Tensor:
    """Routes (K, S) as an index into the last axis of x, (B, K, C, L)."""
    return routes.clamp(min=0)[None, :, None].expand(x.shape[0], -1, x.shape[2], -1)


def gather(x: Tensor, routes: Tensor) -> Tensor:
    """Turn a map into one sequence per route.

    Args:
        x: map, (B, C, L) shared by all routes, or (B, K, C, L) with one per route.
        routes: positions, (K, S), -1 for none.

    Returns:
        (B, K, C, S), 0 where a route has -1.
    """
    wide = x[:, None].expand(-1, routes.shape[0], -1, -1) if x.ndim == 3 else x
    return wide.gather(3, _places(routes, wide)).masked_fill((routes < 0)[:, None], 0)


def scatter(y: Tensor, routes: Tensor, length: int) -> Tensor:
    """Put sequences back on the map, summed over routes.

    Args:
        y: sequences, (B, K, C, S).
        routes: positions, (K, S), -1 for none.
        length: L.

    Returns:
        (B, C, L), 0 where no route passes.
    """
    kept = y.masked_fill((routes < 0)[:, None], 0)
    out = y.new_zeros(y.shape[0], y.shape[2], length)
    # (B, K, C, S) to (B, C, K·S)
    index, values = (t.transpose(1, 2).flatten(2) for t in (_places(routes, y), kept))
    return out.scatter_add(2, index, values)
