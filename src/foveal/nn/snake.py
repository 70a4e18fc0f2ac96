"""Four selective scans that snake over a feature map and are aware of their direction.

*Source*: C. Yang et al., "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition", BMVC 2024
(arXiv:2403.17695), sections 3.2 (continuous scanning) and 3.3 (direction-aware updating).

The routes k visit the map along rows and along columns, reversing direction at the end of each, and both backward. So
each token follows one of its four neighbours, and θ encodes which: a learned vector for each of right, left, up, down
and the first token. Step sizes, B, C, A and D are shared by all routes:

    h_i = exp(delta_i A) h_{i-1} + delta_i (B_i + θ_{k,i}) u_i        i along route k
    y = Σ_k C_iᵀ h_i + D u_i

*Differs from the paper*: nothing. The authors' code orders only u along the route, while delta, B and C stay in raster
order, and adds the bias of delta twice; `released=True` does the same, for weights trained with it.
*Provenance*: written from the paper; initial values were looked up in the authors' code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from foveal.ops import selective_scan
from foveal.ops.scan2d import gather, routes, scatter, selective_scan2d

__all__ = ["SnakeScan", "moves"]


def moves(route: Tensor, width: int) -> Tensor:
    """The direction from which a route reaches each position of a map.

    Args:
        route: positions in the order they are visited, (K, L).
        width: width of the map.

    Returns:
        In raster order, (K, L): 0 for the first position, 1 after a step right, 2 left, 3 up, 4 down.
    """
    row = route // width
    column = route - row * width  # not route % width: torch's ONNX exporter rejects it for a dynamic width
    down, right = row.diff(dim=1), column.diff(dim=1)
    came = (right == 1) * 1 + (right == -1) * 2 + (down == -1) * 3 + (down == 1) * 4
    return torch.zeros_like(route).scatter(1, route, F.pad(came, (1, 0)))


class SnakeScan(nn.Module):
    """Four scans of a map with shared weights and known directions, summed; (B, E, H, W) to (B, E, H, W).

    Args:
        dim: E.
        state: D, state size per channel.
        dt_rank: rank of the step-size projection.
        released: whether to compute as the authors' code does, see the module docstring.
    """

    def __init__(self, dim: int, *, state: int, dt_rank: int, released: bool = False) -> None:
        super().__init__()
        self.split = (dt_rank, state, state)
        self.released = released
        self.x_proj = nn.Linear(dim, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(dt_rank, dim)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(dim, 1))
        self.D = nn.Parameter(torch.ones(dim))
        self.directions = nn.Parameter(torch.zeros(5, state))
        trunc_normal_(self.x_proj.weight, std=0.02)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        # step sizes log-uniform in 0.001 to 0.1; the bias is added before softplus
        step = torch.exp(torch.rand(dim) * math.log(100) + math.log(1e-3))
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        trunc_normal_(self.directions, std=0.02)

    def project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the input-dependent parameters of the scans.

        Args:
            u: input of the scans, (B, E, L).

        Returns:
            Step sizes before softplus, (B, E, L); input and output weights B and C, (B, D, L) each.
        """
        # (B, L, R + 2·D)
        step, weights_in, weights_out = self.x_proj(u.transpose(1, 2)).split(self.split, dim=-1)
        delta = self.dt_proj(step)
        if self.released:
            delta = delta + self.dt_proj.bias
        return delta.transpose(1, 2), weights_in.transpose(1, 2), weights_out.transpose(1, 2)

    def forward(self, u: Tensor) -> Tensor:
        (height, width), flat = u.shape[2:], u.flatten(2)
        route = routes("snake", height, width, device=u.device)
        delta, weights_in, weights_out = self.project(flat)
        # (K, L, D) to (K, D, L)
        theta = self.directions[moves(route, width)].transpose(1, 2)
        count = theta.shape[0]
        decay, skip = -self.A_log.exp().repeat(count, 1), self.D.repeat(count)
        delta, weights_out = (t[:, None].expand(-1, count, -1, -1) for t in (delta, weights_out))
        if self.released:
            theta = theta.gather(2, route[:, None].expand_as(theta))
            y = selective_scan(
                gather(flat, route).flatten(1, 2),
                delta.flatten(1, 2),
                decay,
                weights_in[:, None] + theta,
                weights_out,
                skip,
                delta_softplus=True,
            )
            return scatter(y.unflatten(1, (count, -1)), route, flat.shape[2]).view(u.shape)
        y = selective_scan2d(
            flat, delta, decay, weights_in[:, None] + theta, weights_out, skip, routes=route, delta_softplus=True
        )
        return y.reshape(u.shape)
