"""The Mamba mixer over a sequence of tokens, in one direction or in both.

*Source*: A. Gu, T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023 (arXiv:2312.00752),
section 3.4; bidirectional: L. Zhu et al., "Vision Mamba", 2024 (arXiv:2401.09417), algorithm 1.

    [x, z] = W_in tokens                                         (B, N, C) to two of (B, E, N), E = expand · C
    u = silu(conv1d(x))                                          depthwise, over the last k tokens
    [step, B, C] = W_x u,  delta = softplus(W_dt step + bias),  A = -exp(A_log)
    y = (selective scan of u with delta, A, B, C, D) ∘ silu(z)
    out = W_out y;  in both directions, W_out (y + y_back) / 2

The backward direction has its own convolution, projections, A and D, and reads the tokens from last to first.

*Differs from the paper*: nothing.
*Provenance*: written from the paper. Parameters are named as in mamba_ssm, with `_b` for the backward direction as in
Vim's code, so that weights trained there load here; initial values were looked up there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.ops import selective_scan

__all__ = ["Mamba"]


class Mamba(nn.Module):
    """Mixer of tokens, (B, N, dim) to (B, N, dim).

    Args:
        dim: C.
        state: D, state size per inner channel.
        expand: ratio of inner channels to `dim`.
        kernel_size: k, number of tokens the causal convolution covers: the current one and those before it.
        dt_rank: rank of the step-size projection; None means `dim` / 16, rounded up.
        bidirectional: whether the tokens are also read backward.
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 16,
        expand: float = 2.0,
        kernel_size: int = 4,
        dt_rank: int | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        inner, rank = int(expand * dim), -(-dim // 16) if dt_rank is None else dt_rank
        self.split = (rank, state, state)
        self.bidirectional = bidirectional
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel_size, padding=kernel_size - 1, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        if bidirectional:
            self.conv1d_b = nn.Conv1d(inner, inner, kernel_size, padding=kernel_size - 1, groups=inner)
            self.x_proj_b = nn.Linear(inner, sum(self.split), bias=False)
            self.dt_proj_b = nn.Linear(rank, inner)
            self.A_b_log = nn.Parameter(self.A_log.detach().clone())
            self.D_b = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for projection in (self.dt_proj, self.dt_proj_b) if bidirectional else (self.dt_proj,):
            nn.init.uniform_(projection.weight, -(rank**-0.5), rank**-0.5)
            # step sizes log-uniform in 0.001 to 0.1; the bias is added before softplus
            step = torch.exp(torch.rand(inner) * math.log(100) + math.log(1e-3))
            with torch.no_grad():
                projection.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def parts(self, *, back: bool = False) -> tuple[nn.Module, nn.Module, nn.Module, Tensor, Tensor]:
        """The modules and parameters of one direction.

        Args:
            back: whether to return those of the backward direction.

        Returns:
            Convolution, W_x, W_dt with its bias, A_log and D.
        """
        if back:
            return self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b
        return self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D

    def project(self, u: Tensor, *, back: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the input-dependent parameters of the scan.

        Args:
            u: input of the scan, (B, E, N).
            back: whether to use the backward direction's projections.

        Returns:
            Step sizes before softplus, (B, E, N); input and output weights B and C, (B, D, N) each.
        """
        _, x_proj, dt_proj, _, _ = self.parts(back=back)
        # (B, N, R + 2·D)
        step, weights_in, weights_out = x_proj(u.transpose(1, 2)).split(self.split, dim=-1)
        return dt_proj(step).transpose(1, 2), weights_in.transpose(1, 2), weights_out.transpose(1, 2)

    def scan(self, x: Tensor, z: Tensor, *, back: bool = False) -> Tensor:
        """Convolution, recurrence and gate of one direction, in the order of the tokens given.

        Args:
            x: input of the convolution, (B, E, N).
            z: gate before its SiLU, (B, E, N).
            back: whether to use the backward direction's parameters.

        Returns:
            (B, E, N).
        """
        conv1d, _, _, decay, skip = self.parts(back=back)
        u = F.silu(conv1d(x)[..., : x.shape[-1]])
        delta, weights_in, weights_out = self.project(u, back=back)
        return selective_scan(u, delta, -decay.exp(), weights_in, weights_out, skip, z, delta_softplus=True)

    def forward(self, tokens: Tensor) -> Tensor:
        # two of (B, E, N)
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        y = self.scan(x, z)
        if self.bidirectional:
            y = (y + self.scan(x.flip(-1), z.flip(-1), back=True).flip(-1)) / 2
        return self.out_proj(y.transpose(1, 2))
