"""The scan along routes by the compiled kernel, which applies the routes while it reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveal.ops.selective_scan.native import selective_scan_along

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan2d_native"]


def selective_scan2d_native(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    routes: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """The same as `selective_scan2d_reference`, as the registered operator.

    Args:
        u: (batch, dim, length).
        delta: (batch, routes, dim, length).
        A: (routes, dim, states).
        B: (batch, routes, states, length).
        C: (batch, routes, states, length).
        D: (routes, dim).
        routes: (routes, places).
        delta_bias: (routes, dim).
        delta_softplus: whether delta goes through softplus.

    Returns:
        (batch, dim, length), in the dtype of `u`.
    """
    one_group = (B[:, :, None], C[:, :, None])
    return selective_scan_along(u, delta, A, *one_group, D, delta_bias, delta_softplus, routes)[0]
