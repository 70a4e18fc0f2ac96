"""Scan orders by name, of maps and of volumes, for any block that scans: those of `foveal.ops.scan2d` and more.

*Source*: "omnidirectional": S. Zhao et al., "RS-Mamba for Large Remote Sensing Image Dense Prediction", 2024
(arXiv:2404.02668). "zigzag": V. T. Hu et al., "ZigMa", 2024 (arXiv:2403.13802), along diagonals as JPEG does. Volumes:
Z. Xing et al., "SegMamba", 2024 (arXiv:2401.13560), and K. Li et al., "VideoMamba", 2024 (arXiv:2403.06977).

| order | K | routes |
|---|---|---|
| forward | 1 | rows |
| those of `foveal.ops.scan2d.routes` | | |
| omnidirectional | 8 | rows, columns, both kinds of diagonals; all backward |
| zigzag | 4 | both kinds of diagonals, every second one reversed; both backward |
| spatial-first | 2 | slice after slice, rows in each; the same backward |
| temporal-first | 2 | position after position, through all slices at each; the same backward |
| tri-oriented | 3 | spatial-first, the same backward, temporal-first |
| axes | 6 | lines along the width, along the height, along the depth; all backward |

A map of H rows and W columns is stored in raster order, and a volume of D slices, or a film of D frames, slice after
slice. A route is a list of positions, none twice.

*Differs from the papers*: nothing.
*Provenance*: written from the papers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.nn.ss2d import S6, SS2D
from foveal.ops.scan2d import ORDERS, routes, selective_scan2d

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAP_ORDERS", "VOLUME_ORDERS", "OrderedSS2D", "scan_along", "scan_routes"]


def _and_back(ways: list[Tensor]) -> Tensor:
    there = torch.stack(ways)
    return torch.cat([there, there.flip(1)])


def _omnidirectional(height: int, width: int) -> Tensor:
    return _and_back([*routes("cross", height, width)[:2], *routes("diagonal", height, width)[:2]])


def _zigzag(height: int, width: int) -> Tensor:
    place = torch.arange(height * width)
    i, j = place // width, place % width
    diagonals = i + j, i + width - 1 - j
    return _and_back([torch.argsort(d * height + torch.where(d % 2 == 1, i, height - 1 - i)) for d in diagonals])


_MAPS: dict[str, Callable[[int, int], Tensor]] = {
    "forward": lambda height, width: torch.arange(height * width)[None],
    "omnidirectional": _omnidirectional,
    "zigzag": _zigzag,
}
MAP_ORDERS = (*ORDERS, *_MAPS)
VOLUME_ORDERS = ("spatial-first", "temporal-first", "tri-oriented", "axes")


def scan_routes(order: str, *size: int, window: int = 8, step: int = 2) -> Tensor:
    """Positions of a map or a volume in the order each route visits them.

    Args:
        order: name of an order, see the table of this module and that of `foveal.ops.scan2d.routes`.
        *size: H and W for an order of maps; D, H and W for one of volumes.
        window: side of the windows of "window", at least 1.
        step: step of "atrous", at least 1.

    Returns:
        Positions, (K, S) int64, -1 for none.

    Raises:
        ValueError: if the order is unknown or for another number of axes, or the window or step is below 1.

    Example:
        >>> from foveal.nn.scan_orders import scan_routes
        >>> scan_routes("temporal-first", 2, 1, 3)[0]
        tensor([0, 3, 1, 4, 2, 5])
    """
    axes = {**dict.fromkeys(MAP_ORDERS, 2), **dict.fromkeys(VOLUME_ORDERS, 3)}
    if order not in axes:
        raise ValueError(f"order must be one of {', '.join(axes)}, got {order!r}")
    if len(size) != axes[order]:
        raise ValueError(
            f"{order} is an order of {'height and width' if axes[order] == 2 else 'depth, height and width'}, "
            f"got {len(size)} sizes"
        )
    if order in _MAPS:
        return _MAPS[order](*size)
    if order in ORDERS:
        return routes(order, *size, window=window, step=step)
    volume = torch.arange(torch.Size(size).numel()).view(size)
    spatial, temporal = volume.flatten(), volume.permute(1, 2, 0).flatten()
    if order == "tri-oriented":
        return torch.stack([spatial, spatial.flip(0), temporal])
    ways = {"spatial-first": [spatial], "temporal-first": [temporal]}
    return _and_back(ways.get(order, [spatial, volume.permute(0, 2, 1).flatten(), temporal]))


def scan_along(s6: S6, x: Tensor, order: str, *, window: int = 8, step: int = 2) -> Tensor:
    """Scan a map or a volume along the routes of an order and sum the outputs at each position.

    Args:
        s6: scans, one for each route.
        x: features, (B, C, H, W) or (B, C, D, H, W).
        order: see `scan_routes`.
        window: side of the windows of "window".
        step: step of "atrous".

    Returns:
        The shape of `x`.

    Raises:
        ValueError: as `scan_routes`, or if there are more or fewer scans than routes.
    """
    along = scan_routes(order, *x.shape[2:], window=window, step=step).to(x.device)
    if len(s6.x_proj) != len(along):
        raise ValueError(
            f"{order} has {len(along)} routes, got {len(s6.x_proj)} scans; give S6 num_routes={len(along)}"
        )
    flat = x.flatten(2)
    delta, weights_in, weights_out = s6.project(flat)
    y = selective_scan2d(
        flat, delta, -s6.A_log.exp(), weights_in, weights_out, s6.D, routes=along, delta_bias=s6.dt_bias
    )
    return y.view(x.shape)


class OrderedSS2D(SS2D):
    """`foveal.nn.ss2d.SS2D` whose map is scanned in any order of this module; (B, dim, H, W) to (B, dim, H, W).

    Args:
        dim: number of channels.
        order: see `scan_routes`, an order of maps.
        state: D, state size per scanned channel.
        expand: ratio of scanned channels to `dim`.
        window: side of the windows of "window".
        step: step of "atrous".

    Raises:
        ValueError: as `scan_routes`.
    """

    def __init__(
        self, dim: int, order: str, *, state: int = 16, expand: float = 2.0, window: int = 8, step: int = 2
    ) -> None:
        count = len(scan_routes(order, 2, 2, window=window, step=step))
        super().__init__(dim, state=state, expand=expand, order=order, num_routes=count)
        self.window, self.step = window, step

    def scan(self, x: Tensor) -> Tensor:
        """The sum of the scans at each position, (B, C, H, W) to (B, C, H, W)."""
        return scan_along(self.s6, x, self.order, window=self.window, step=self.step)
