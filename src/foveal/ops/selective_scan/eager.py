"""Selective scan in vectorised torch: always works, is differentiated by autograd, and takes √L steps instead of L.

The sequence is cut into M chunks of T steps. All chunks step together from a zero state, which takes T steps; then the
final states are carried from chunk to chunk, which takes M steps; then the contribution of the state before its chunk
is added at each position:

    h_t = h_t(from zero) + exp(A · (delta_1 + … + delta_t)) ∘ h(end of the chunk before)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan_eager"]


def selective_scan_eager(
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
    """`selective_scan_reference`, vectorised over chunks.

    Args:
        u: input, (batch, dim, L).
        delta: step sizes, (batch, dim, L).
        A: decay of each state, (dim, states), negative.
        B: input weights, (batch, groups, states, L) or (dim, states).
        C: output weights, the same.
        D: skip weights, (dim,).
        z: gate, (batch, dim, L).
        delta_bias: bias added to delta, (dim,).
        delta_softplus: whether softplus is applied to delta.
        initial_state: state before the first step, (batch, dim, states); None for zeros.

    Returns:
        Output, (batch, dim, L), in the dtype of `u`; last state, (batch, dim, states).
    """
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    batch, dim, length = u.shape
    groups, states = next((w.shape[1] for w in (B, C) if w.ndim == 4), 1), A.shape[1]
    x, step, decay = u.to(wide), delta.to(wide), A.to(wide)
    if delta_bias is not None:
        step = step + delta_bias.to(wide)[:, None]
    if delta_softplus:
        step = F.softplus(step)
    if initial_state is None:
        first = x.new_zeros(batch, groups, dim // groups, states)
    else:
        first = initial_state.to(wide).view(batch, groups, dim // groups, states)
    if length == 0:
        return u.clone(), first.clone().view(batch, dim, states)
    chunk = max(1, math.isqrt(length))
    chunks = -(-length // chunk)
    # A step of 0 leaves the state unchanged, so the padding affects neither the outputs nor the last state.
    pad = chunks * chunk - length
    # (T, batch, M, groups, dim / groups, 1) and (T, batch, M, groups, 1, states)
    xs, steps = (
        F.pad(w, (0, pad)).view(batch, groups, dim // groups, chunks, chunk).permute(4, 0, 3, 1, 2)[..., None]
        for w in (x, step)
    )

    def by_step(weights: Tensor) -> Tensor:
        if weights.ndim == 2:
            return weights.to(wide).view(groups, dim // groups, states).expand(chunk, 1, 1, -1, -1, -1)
        cut = F.pad(weights.to(wide), (0, pad)).view(batch, groups, states, chunks, chunk)
        return cut.permute(4, 0, 3, 1, 2)[..., None, :]

    ins, outs = by_step(B), by_step(C)
    rates = decay.view(groups, dim // groups, states)
    state = x.new_zeros(batch, chunks, groups, dim // groups, states)
    since = torch.zeros_like(steps[0])
    outputs, elapsed = [], []
    for t in range(chunk):
        state = torch.exp(steps[t] * rates) * state + steps[t] * xs[t] * ins[t]
        since = since + steps[t]
        elapsed.append(since)
        outputs.append((outs[t] * state).sum(-1))
    left = torch.exp(since * rates)
    carried = first
    before = []
    for m in range(chunks):
        before.append(carried)
        carried = left[:, m] * carried + state[:, m]
    y = torch.stack(outputs)
    if chunks > 1 or initial_state is not None:
        held = torch.stack(before, 1)
        rest = [(outs[t] * torch.exp(elapsed[t] * rates) * held).sum(-1) for t in range(chunk)]
        y = y + torch.stack(rest)
    # (T, batch, M, groups, dim / groups) to (batch, dim, L)
    y = y.permute(1, 3, 4, 2, 0).reshape(batch, dim, chunks * chunk)[..., :length]
    if D is not None:
        y = y + D.to(wide)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(u.dtype), carried.reshape(batch, dim, states)
