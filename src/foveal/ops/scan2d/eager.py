"""Selective scan over a feature map in vectorised torch: the routes are groups of channels of one scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.ops.scan2d.routes import gather, scatter
from foveal.ops.selective_scan.eager import selective_scan_eager

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan2d_eager"]


def selective_scan2d_eager(
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
    """`selective_scan2d_reference`, vectorised.

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
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    steps = delta.to(wide)
    if delta_bias is not None:
        steps = steps + delta_bias.to(wide)[..., None]
    if delta_softplus:
        steps = F.softplus(steps)
    # A skipped place gets a step of 0, which leaves the state unchanged.
    x, steps, weights_in, weights_out = (gather(t, routes) for t in (u.to(wide), steps, B, C))
    # (batch, routes, dim, places) to (batch, routes·dim, places)
    y, _ = selective_scan_eager(
        x.flatten(1, 2),
        steps.flatten(1, 2),
        A.flatten(0, 1),
        weights_in,
        weights_out,
        None if D is None else D.flatten(),
    )
    return scatter(y.view(x.shape), routes, u.shape[2]).to(u.dtype)
