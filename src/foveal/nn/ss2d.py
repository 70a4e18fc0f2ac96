"""SS2D, the mixer of VMamba: one selective scan along each of K routes over the feature map, summed.

*Source*: Y. Liu et al., "VMamba: Visual State Space Model", 2024 (arXiv:2401.10166), section 4.2 and appendix.

Each route k visits the positions of the map in its own order and has its own projection from the input to step sizes,
B and C. The projections act on each position separately, so all K are computed in raster order, and only the recurrence
follows the routes:

    [step, B, C]_k = W_k x,  delta_k = softplus(V_k step + v_k),  A_k = -exp(A_log_k)
    S6(x)_p = Σ_k (selective scan of x with delta_k, A_k, B_k, C_k, D_k along route k, at position p)
    SS2D(x) = W_out (norm(S6(silu(dwconv(W_in x)))) ∘ silu(W_z x))

The last factor is the gate, which VMamba's final networks omit.

`S6` is the scan without the layers around it. Networks that scan parts of a map extract them and call it on
(B, K, C, L), one sequence per route; `one_route_each` splits the channels into one group per direction.

*Differs from the paper*: nothing.
*Provenance*: written from the paper; initial values were looked up in the authors' code.
"""

from __future__ import annotations

import math

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.ops import selective_scan
from foveal.ops.scan2d import routes, selective_scan2d

__all__ = ["S6", "SS2D", "initial_step", "one_route_each", "one_route_each_back"]


def initial_step(channels: int, *, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Biases whose softplus is evenly spaced on a logarithmic scale.

    Args:
        channels: number of channels.
        low: smallest step size.
        high: largest step size.

    Returns:
        (channels,).
    """
    step = torch.exp(torch.rand(channels) * math.log(high / low) + math.log(low))
    return step + torch.log(-torch.expm1(-step))


def one_route_each(x: Tensor) -> Tensor:
    """Split the channels into four groups and flatten each in its own direction.

    Args:
        x: features, (B, 4·C, H, W).

    Returns:
        (B, 4, C, HW): by rows, by columns, by rows backward, by columns backward.
    """
    a, b, c, d = x.chunk(4, dim=1)
    routes = [a.flatten(2), b.mT.flatten(2), c.flatten(2).flip(-1), d.mT.flatten(2).flip(-1)]
    return torch.stack(routes, 1)


def one_route_each_back(y: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `one_route_each`.

    Args:
        y: sequences, (B, 4, C, HW).
        height: H.
        width: W.

    Returns:
        (B, 4·C, H, W).
    """
    a, b, c, d = y.unbind(1)
    rows, columns = (height, width), (width, height)
    b, d = b.unflatten(2, columns).mT, d.flip(-1).unflatten(2, columns).mT
    return torch.cat([a.unflatten(2, rows), b, c.flip(-1).unflatten(2, rows), d], 1)


class S6(nn.Module):
    """Selective scans along K routes, each with its own weights; (B, K, C, L) to (B, K, C, L).

    Args:
        dim: C.
        state: D, state size per channel.
        dt_rank: R, rank of the step-size projection.
        num_routes: K.
    """

    def __init__(self, dim: int, *, state: int = 16, dt_rank: int = 1, num_routes: int = 4) -> None:
        super().__init__()
        self.split = (dt_rank, state, state)
        self.x_proj = nn.Parameter(torch.empty(num_routes, sum(self.split), dim).uniform_(-1, 1) / dim**0.5)
        self.dt_proj = nn.Parameter(torch.empty(num_routes, dim, dt_rank).uniform_(-1, 1) / dt_rank**0.5)
        self.dt_bias = nn.Parameter(initial_step(num_routes * dim))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(num_routes * dim, 1))
        self.D = nn.Parameter(torch.ones(num_routes * dim))

    def _made(self, x: Tensor) -> tuple[Tensor, ...]:
        """Step sizes of rank R, (B, K, R, L), and input and output weights, (B, K, D, L) each."""
        # (B, 1 or K, C, L) to (B, K, R + 2·D, L)
        return (self.x_proj @ (x[:, None] if x.ndim == 3 else x)).split(self.split, dim=2)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the input-dependent parameters of the scans.

        Args:
            x: input, (B, C, L) shared by all routes, or (B, K, C, L) with one sequence per route.

        Returns:
            Step sizes before bias and softplus, (B, K, C, L); input and output weights B and C, (B, K, D, L) each.
        """
        step, weights_in, weights_out = self._made(x)
        # channels are contiguous in memory, as a kernel reads them along a route
        return (step.mT @ self.dt_proj.mT).mT, weights_in, weights_out

    def along(self, x: Tensor, order: str = "cross") -> Tensor:
        """Scan the whole map along K routes and sum the outputs at each position.

        Args:
            x: features, (B, C, H, W).
            order: name of the routes, as in `foveal.ops.scan2d.routes`; there must be K of them.

        Returns:
            (B, C, H, W).
        """
        flat = x.flatten(2)
        delta, weights_in, weights_out = self.project(flat)
        y = selective_scan2d(
            flat,
            delta,
            -self.A_log.exp(),
            weights_in,
            weights_out,
            self.D,
            routes=routes(order, x.shape[2], x.shape[3], device=x.device),
            delta_bias=self.dt_bias,
            delta_softplus=True,
        )
        return y.view(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        step, weights_in, weights_out = self._made(x)
        # (B, K·C, L): the K sequences are groups of channels of one scan
        y = selective_scan(
            x.flatten(1, 2),
            (self.dt_proj @ step).flatten(1, 2),
            -self.A_log.exp(),
            weights_in,
            weights_out,
            self.D,
            delta_bias=self.dt_bias,
            delta_softplus=True,
        )
        return y.view(x.shape)


class SS2D(nn.Module):
    """Mixer of a feature map, (B, dim, H, W) to (B, dim, H, W).

    Args:
        dim: number of channels.
        state: D, state size per scanned channel.
        expand: ratio of scanned channels to `dim`.
        dt_rank: rank of the step-size projection; None means `dim` / 16, rounded up.
        kernel_size: kernel size of the depthwise convolution before the scan, odd; 1 omits the convolution.
        conv_bias: whether that convolution has a bias.
        gate: whether a second projection gates the output.
        order: name of the routes, as in `foveal.ops.scan2d.routes`.
        num_routes: number of routes in `order`.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 16,
        expand: float = 2.0,
        dt_rank: int | None = None,
        kernel_size: int = 3,
        conv_bias: bool = True,
        gate: bool = True,
        order: str = "cross",
        num_routes: int = 4,
    ) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.gate = gate
        self.order = order
        self.in_proj = nn.Conv2d(dim, inner * (1 + gate), 1, bias=False)
        self.conv = (
            nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner, bias=conv_bias)
            if kernel_size > 1
            else nn.Identity()
        )
        self.act = nn.SiLU()
        rank = -(-dim // 16) if dt_rank is None else dt_rank
        self.s6 = S6(inner, state=state, dt_rank=rank, num_routes=num_routes)
        self.norm = LayerNorm2d(inner, eps=1e-5)
        self.out_proj = nn.Conv2d(inner, dim, 1, bias=False)

    def scan(self, x: Tensor) -> Tensor:
        """The sum of the scans at each position; networks with other routes override this method.

        Args:
            x: features, (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        return self.s6.along(x, self.order)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)
        z = None
        if self.gate:
            x, z = x.chunk(2, dim=1)
        y = self.norm(self.scan(self.act(self.conv(x))))
        return self.out_proj(y if z is None else y * self.act(z))
