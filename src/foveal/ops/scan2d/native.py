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
    A: Tensor,  # noqa: N803 - the paper's letters
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    routes: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """The same as `selective_scan2d_reference`, as the registered operator.

    Args:
        u: (B, C, L).
        delta: (B, K, C, L).
        A: (K, C, D).
        B: (B, K, D, L).
        C: (B, K, D, L).
        D: (K, C).
        routes: (K, S).
        delta_bias: (K, C).
        delta_softplus: whether delta goes through softplus.

    Returns:
        (B, C, L), in the dtype of `u`.
    """
    one_group = (B[:, :, None], C[:, :, None])
    return selective_scan_along(u, delta, A, *one_group, D, delta_bias, delta_softplus, routes)[0]
