"""Selective scan over a feature map, route by route: the plain form that every other backend is compared with.

*Source*: Y. Liu et al., "VMamba: Visual State Space Model", 2024, arXiv:2401.10166, section 4.2.
*Differs from the paper*: the routes are arbitrary.
*Provenance*: written from the paper.

    sequence_k = map[route_k],  for u and for route k's own delta, B, C         (1)
    y_k = selective scan of the sequence with A_k, D_k                          (2)
    out[route_k] += y_k, over all k                                             (3)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.selective_scan.reference import selective_scan_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan2d_reference"]


def selective_scan2d_reference(
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
    """One route after the other, step by step, in float32 (float64 if `u` is).

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
    wide = u.to(torch.float64 if u.dtype == torch.float64 else torch.float32)
    out = torch.zeros_like(wide)
    for k, route in enumerate(routes):
        way = route[route >= 0]
        y, _ = selective_scan_reference(
            wide[..., way],  # (1)
            delta[:, k][..., way],
            A[k],
            B[:, k, None][..., way],
            C[:, k, None][..., way],
            None if D is None else D[k],
            None,
            None if delta_bias is None else delta_bias[k],
            delta_softplus,
        )  # (2)
        out = out.index_add(2, way, y)  # (3)
    return out.to(u.dtype)
