"""Selective scan over a feature map with Triton kernels, for CUDA devices: the kernels follow the routes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveal.ops.selective_scan.triton import selective_scan_along_triton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan2d_triton"]


def selective_scan2d_triton(
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
    """`selective_scan2d_reference` in Triton; positions a route does not visit are neither read nor written.

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
    out, _ = selective_scan_along_triton(
        u, delta, A, B[:, :, None], C[:, :, None], D, delta_bias, delta_softplus, routes
    )
    return out
