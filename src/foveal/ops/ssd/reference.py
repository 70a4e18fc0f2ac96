"""State space duality, step by step: the plain forms that the faster backends are compared with.

*Source*: T. Dao, A. Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
Space Duality" (Mamba-2), ICML 2024, arXiv:2405.21060, sections 2 and 5, for (1) to (3); Y. Shi et al., "VSSD: Vision
Mamba with Non-Causal State Space Duality", ICCV 2025, arXiv:2407.18559, section 3.2, for (4).
*Differs from the paper*: in (4) a token's weight is dt_j · -A, as in the authors' code; the paper writes 1/A_j and
calls it learned.
*Provenance*: written from the papers.

Each head has P channels and one decay A < 0; B_t and C_t, of size N, are shared by the heads of a group:

    dt = softplus(dt + bias)                                                 (1)
    S_t = exp(dt_t · A) S_{t-1} + dt_t · x_t B_tᵀ,   S_t is P by N           (2)
    y_t = S_t C_t + D ∘ x_t                                                  (3)

In the non-causal form, every token sees the same sum over all tokens, and the decay survives only as relative weights:

    y_i = Σ_j (-A · dt_j) (C_i · B_j) x_j + D ∘ x_i                          (4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["prepared", "skipped", "ssd_noncausal_reference", "ssd_reference"]


def prepared(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Equation (1), in float32, or float64 if `x` is.

    Args:
        x: input, (batch, length, heads, channels).
        dt: step sizes, (batch, length, heads).
        A: decays, (heads,).
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.

    Returns:
        x, dt and A in that precision.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = dt.to(wide)
    if dt_bias is not None:
        step = step + dt_bias.to(wide)
    return x.to(wide), F.softplus(step) if dt_softplus else step, A.to(wide)


def skipped(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """Add the skip of equations (3) and (4).

    Args:
        y: output without skip, (batch, length, heads, channels).
        x: input, (batch, length, heads, channels).
        D: skip weights, (heads,) or (heads, channels), or None.

    Returns:
        y + D ∘ x.
    """
    if D is None:
        return y
    return y + (D[:, None] if D.ndim == 1 else D).to(y.dtype) * x


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Equations (1) to (3), one step after the other.

    Args:
        x: input, (batch, length, heads, channels).
        dt: step sizes, (batch, length, heads).
        A: decays, (heads,).
        B: input weights, (batch, length, groups, states); each group serves heads / groups adjacent heads.
        C: output weights, (batch, length, groups, states).
        D: skip weights, (heads,) or (heads, channels).
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.
        chunk_size: ignored.
        initial_state: S before the first step, (batch, heads, channels, states); None for zero.

    Returns:
        Output, (batch, length, heads, channels), in the dtype of `x`; last state, (batch, heads, channels, states).
    """
    del chunk_size
    wide_x, step, decay = prepared(x, dt, A, dt_bias, dt_softplus)
    batch, length, heads, channels = x.shape
    # (batch, length, groups, states) to (batch, length, heads, states)
    ins, outs = (w.to(wide_x.dtype).repeat_interleave(heads // w.shape[2], dim=2) for w in (B, C))
    if initial_state is None:
        state = wide_x.new_zeros(batch, heads, channels, B.shape[3])
    else:
        state = initial_state.to(wide_x.dtype)
    outputs = []
    for t in range(length):
        now = step[:, t, :, None, None]
        kept = torch.exp(now * decay[:, None, None]) * state
        state = kept + now * wide_x[:, t, :, :, None] * ins[:, t, :, None]  # (2)
        outputs.append((state * outs[:, t, :, None]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(wide_x)
    return skipped(y, wide_x, D).to(x.dtype), state  # (3)


def ssd_noncausal_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """Equation (4), token by token.

    Args:
        x: input, (batch, length, heads, channels).
        dt: step sizes, (batch, length, heads).
        A: decays, (heads,).
        B: input weights, (batch, length, groups, states).
        C: output weights, (batch, length, groups, states).
        D: skip weights, (heads,) or (heads, channels).
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.

    Returns:
        Output, (batch, length, heads, channels), in the dtype of `x`.
    """
    wide_x, step, decay = prepared(x, dt, A, dt_bias, dt_softplus)
    heads = x.shape[2]
    ins, outs = (w.to(wide_x.dtype).repeat_interleave(heads // w.shape[2], dim=2) for w in (B, C))
    outputs = []
    for i in range(x.shape[1]):
        total = torch.zeros_like(wide_x[:, i])
        for j in range(x.shape[1]):
            alike = (outs[:, i] * ins[:, j]).sum(-1)
            total = total + (-decay * step[:, j] * alike)[..., None] * wide_x[:, j]
        outputs.append(total)
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(wide_x)
    return skipped(y, wide_x, D).to(x.dtype)
