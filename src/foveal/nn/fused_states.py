"""A selective scan over a feature map whose hidden states are mixed spatially before they are read out.

*Source*: C. Xiao et al., "Spatial-Mamba", ICLR 2025 (arXiv:2410.15091), section 4.1; the same step with attention maps
as the mixing: M. Lou et al., "A2Mamba", 2025 (arXiv:2507.16624), section III.

    h_t = exp(delta_t · A) ∘ h_{t-1} + delta_t · u_t · B_t        rows from the top, each from the left
    h' = mix(h)                                                   (B, D·C, H, W) to the same
    y_t = C_tᵀ h'_t + W_D ∘ u_t

A scan returns outputs, not states. With a single state and C_t = 1 the output is the state; so D states of C channels
are scanned as D·C channels of one state each. This is exact, and free for D = 1, which both papers use.

*Differs from the paper*: D may be greater than 1.
*Provenance*: written from the papers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.nn.ss2d import S6
from foveal.ops import selective_scan

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FusedStates", "hidden_states"]


def hidden_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803 - the papers' letters
    B: Tensor,  # noqa: N803
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """The states of a selective scan at every step.

    Args:
        u: input, (B, C, L).
        delta: step sizes, (B, C, L).
        A: decay of each state, (C, D), negative.
        B: input weights, (B, D, L).
        delta_bias: added to delta, (C,).
        delta_softplus: whether delta goes through softplus.

    Returns:
        h, (B, D, C, L).
    """
    count = A.shape[1]
    if count > 1:
        u, delta = u.repeat(1, count, 1), delta.repeat(1, count, 1)
    # (B, D·C, L), state-major; each state is a group with its own B and C
    h = selective_scan(
        u,
        delta,
        A.t().reshape(-1, 1),
        B[:, :, None],
        B.new_ones(B.shape)[:, :, None],
        delta_bias=None if delta_bias is None else delta_bias.repeat(count),
        delta_softplus=delta_softplus,
    )
    return h.unflatten(1, (count, -1))


class FusedStates(nn.Module):
    """A raster-order scan of a feature map with spatially mixed states, (B, C, H, W) to the same.

    Args:
        dim: C.
        state: D, state size per channel.
        dt_rank: rank of the step-size projection; None means C / 16, rounded up.
    """

    def __init__(self, dim: int, *, state: int = 1, dt_rank: int | None = None) -> None:
        super().__init__()
        self.s6 = S6(dim, state=state, dt_rank=-(-dim // 16) if dt_rank is None else dt_rank, num_routes=1)

    def forward(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        batch, _, height, width = x.shape
        flat = x.flatten(2)
        # (B, 1, …, L) to (B, …, L): there is only one route
        delta, weights_in, weights_out = (made[:, 0] for made in self.s6.project(flat))
        states = hidden_states(flat, delta, -self.s6.A_log.exp(), weights_in, delta_bias=self.s6.dt_bias)
        count, dim = states.shape[1:3]
        # (B, D·C, H, W) and back to (B, D, C, L)
        mixed = mix(states.reshape(batch, count * dim, height, width)).reshape(states.shape)
        y = self.s6.D[:, None] * flat
        for each, weights in zip(mixed.unbind(1), weights_out.unbind(1), strict=True):
            y = torch.addcmul(y, each, weights[:, None])
        return y.reshape(x.shape)
