"""Selective scan, equation by equation: the plain form that every other backend is compared with.

*Source*: A. Gu, T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752,
section 3.2 and algorithm 2.
*Differs from the paper*: the input matrix is discretised as delta·B (Euler), as in the authors' code, not with
zero-order hold.
*Provenance*: written from the paper.

    delta = softplus(delta + bias)                                          (1)
    h_t = exp(delta_t · A) ∘ h_{t-1} + delta_t · u_t · B_t                  (2)
    y_t = C_tᵀ h_t + D ∘ u_t                                                (3)
    out_t = y_t ∘ silu(z_t)                                                 (4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan_reference"]


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step by step, in float32 (float64 if `u` is).

    Args:
        u: input, (batch, dim, L).
        delta: step sizes, (batch, dim, L).
        A: decay of each state, (dim, states), negative.
        B: input weights, (batch, groups, states, L), each group serving dim / groups neighbouring channels, or
            (dim, states) if they do not depend on the input.
        C: output weights, the same.
        D: skip weights, (dim,).
        z: gate, (batch, dim, L).
        delta_bias: bias added to delta, (dim,).
        delta_softplus: whether equation (1) is applied.
        initial_state: h before the first step, (batch, dim, states); None for zeros.

    Returns:
        Output, (batch, dim, L), in the dtype of `u`; last state, (batch, dim, states).
    """
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, step, decay = u.to(wide), delta.to(wide), A.to(wide)
    if delta_bias is not None:
        step = step + delta_bias.to(wide)[:, None]
    if delta_softplus:
        step = F.softplus(step)  # (1)
    batch, dim, length = u.shape

    def spread(weights: Tensor) -> Tensor:
        """To (batch, dim, states, L)."""
        if weights.ndim == 2:
            return weights.to(wide)[None, :, :, None].expand(batch, -1, -1, length)
        return weights.to(wide).repeat_interleave(dim // weights.shape[1], dim=1)

    weights_in, weights_out = spread(B), spread(C)
    state = x.new_zeros(batch, dim, A.shape[1]) if initial_state is None else initial_state.to(wide)
    outputs = []
    # unbound once: the gradient of indexing would be a tensor of the whole length at each step
    times = (w.unbind(-1) for w in (step[:, :, None], x[:, :, None], weights_in, weights_out))
    for now, x_t, in_t, out_t in zip(*times, strict=True):
        state = torch.exp(now * decay) * state + now * x_t * in_t  # (2)
        outputs.append((out_t * state).sum(-1))  # (3)
    y = torch.stack(outputs, -1) if outputs else x.new_zeros(u.shape)
    if D is not None:
        y = y + D.to(wide)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(wide))  # (4)
    return y.to(u.dtype), state
