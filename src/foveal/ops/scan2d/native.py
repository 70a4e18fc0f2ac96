"""The scan along routes with the compiled kernel, which applies the routes as it reads and writes."""

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
    """`selective_scan2d_reference` as the registered operator.

    Args:
        u: input, (batch, dim, length).
        delta: step sizes, (batch, routes, dim, length).
        A: decay of each state, (routes, dim, states), negative.
        B: input weights, (batch, routes, states, length).
        C: output weights, (batch, routes, states, length).
        D: skip weights, (routes, dim).
        routes: positions in the order each route visits them, (routes, places); -1 is skipped.
        delta_bias: bias added to delta, (routes, dim).
        delta_softplus: whether softplus is applied to delta.

    Returns:
        (batch, dim, length), in the dtype of `u`.
    """
    one_group = (B[:, :, None], C[:, :, None])
    return selective_scan_along(u, delta, A, *one_group, D, delta_bias, delta_softplus, routes)[0]
