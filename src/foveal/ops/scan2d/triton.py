"""Selective scan over a map by Triton kernels, for CUDA devices: the kernels themselves go along the routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveal.ops.selective_scan.triton import selective_scan_along_triton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan2d_triton"]


def selective_scan2d_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    routes: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """The same as `selective_scan2d_reference`; what a route does not visit it neither reads nor writes.

    Args:
        u: input, (B, C, L).
        delta: step sizes, (B, K, C, L).
        A: decay of each state, (K, C, D), negative.
        B: input weights, (B, K, D, L).
        C: output weights, (B, K, D, L).
        D: skip weights, (K, C).
        routes: positions as each route visits them, (K, S); -1 is left out.
        delta_bias: added to delta, (K, C).
        delta_softplus: whether delta goes through softplus.

    Returns:
        (B, C, L), in the dtype of `u`.
    """
    out, _ = selective_scan_along_triton(
        u, delta, A, B[:, :, None], C[:, :, None], D, delta_bias, delta_softplus, routes
    )
    return out
