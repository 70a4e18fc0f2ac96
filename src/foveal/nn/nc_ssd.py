"""The mixer of VSSD: a gated state space over the tokens of an image, non-causal or, as in Mamba-2, causal.

*Source*: Y. Shi et al., "VSSD: Vision Mamba with Non-Causal State Space Duality", ICCV 2025 (arXiv:2407.18559), section
3.2 and figure 3. With dw₃ a depthwise 3×3 convolution, H heads of P channels and N states:

    z, (x, B, C), dt = W tokens;  x, B, C = silu(dw₃(x, B, C));  dt = softplus(dt + bias)
    y_i = Σ_j (-A · dt_j) (C_i · B_j) x_j + D ∘ x_i
    out = W (norm(y) ∘ z)

*Differs from the paper*: nothing.

*Provenance*: written from the paper; the places of the activations and the initial values were looked up in the
authors' code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.ops.ssd import ssd, ssd_noncausal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NCSSD"]


class NCSSD(nn.Module):
    """Mixes the tokens of an image with a state space, (B, H·W, C) to the same.

    Args:
        dim: C.
        num_heads: number of heads; must divide 2·C.
        state: N.
        expand: ratio of inner channels to C.
        causal: whether a token sees only those before it in raster order, as in Mamba-2.
    """

    def __init__(self, dim: int, num_heads: int, *, state: int = 64, expand: int = 2, causal: bool = False) -> None:
        super().__init__()
        inner = expand * dim
        self.num_heads, self.causal = num_heads, causal
        self.parts = (inner, state, state)
        self.in_proj = nn.Linear(dim, 2 * inner + 2 * state + num_heads, bias=False)
        self.conv = nn.Conv2d(sum(self.parts), sum(self.parts), 3, padding=1, groups=sum(self.parts))
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(num_heads))
        # Step sizes log-uniform in 0.001 to 0.1; the bias is added before softplus.
        step = torch.empty(num_heads).uniform_(math.log(0.001), math.log(0.1)).exp().clamp(min=1e-4)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, length, _ = x.shape
        inner = self.parts[0]
        gate, mixed, dt = self.in_proj(x).split([inner, sum(self.parts), self.num_heads], -1)
        # (B, inner + 2N, H, W) and back to (B, L, inner + 2N)
        mixed = mixed.transpose(1, 2).reshape(batch, sum(self.parts), height, width)
        mixed = F.silu(self.conv(mixed)).flatten(2).transpose(1, 2)
        values, keys, queries = mixed.split(self.parts, -1)
        run: Callable[..., Any] = ssd if self.causal else ssd_noncausal
        # (B, L, heads, P)
        y = run(
            values.reshape(batch, length, self.num_heads, inner // self.num_heads),
            dt,
            -self.A_log.exp(),
            keys[:, :, None],
            queries[:, :, None],
            self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
        )
        return self.out_proj(self.norm(y.flatten(2)) * gate)
