"""Selective scan in vectorised torch: always works, differentiates itself, and needs √L steps in place of L.

The sequence is cut into M chunks of T steps. All chunks step together from a zero state, which takes T steps; then the
states at the ends of the chunks are carried from chunk to chunk, which takes M; then each position gets what the state
before its chunk still contributes:

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
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same as `selective_scan_reference`, vectorised over chunks.

    Args:
        u: input, (B, C, L).
        delta: step sizes, (B, C, L).
        A: decay of each state, (C, D), negative.
        B: input weights, (B, G, D, L).
        C: output weights, (B, G, D, L).
        D: skip weights, (C,).
        z: gate, (B, C, L).
        delta_bias: added to delta, (C,).
        delta_softplus: whether delta goes through softplus.

    Returns:
        Output, (B, C, L), in the dtype of `u`; last state, (B, C, D).
    """
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    batch, dim, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    x, step, decay = u.to(wide), delta.to(wide), A.to(wide)
    if delta_bias is not None:
        step = step + delta_bias.to(wide)[:, None]
    if delta_softplus:
        step = F.softplus(step)
    if length == 0:
        return u.clone(), x.new_zeros(batch, dim, states)
    chunk = max(1, math.isqrt(length))
    chunks = -(-length // chunk)
    # A step of 0 leaves the state as it is, so the padding changes neither outputs nor the last state.
    pad = chunks * chunk - length
    # (T, B, M, G, C/G, 1) and (T, B, M, G, 1, D)
    xs, steps = (
        F.pad(w, (0, pad)).view(batch, groups, dim // groups, chunks, chunk).permute(4, 0, 3, 1, 2)[..., None]
        for w in (x, step)
    )
    ins, outs = (
        F.pad(w.to(wide), (0, pad)).view(batch, groups, states, chunks, chunk).permute(4, 0, 3, 1, 2)[..., None, :]
        for w in (B, C)
    )
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
    carried = torch.zeros_like(state[:, 0])
    before = []
    for m in range(chunks):
        before.append(carried)
        carried = left[:, m] * carried + state[:, m]
    y = torch.stack(outputs)
    if chunks > 1:
        held = torch.stack(before, 1)
        rest = [(outs[t] * torch.exp(elapsed[t] * rates) * held).sum(-1) for t in range(chunk)]
        y = y + torch.stack(rest)
    # (T, B, M, G, C/G) to (B, C, L)
    y = y.permute(1, 3, 4, 2, 0).reshape(batch, dim, chunks * chunk)[..., :length]
    if D is not None:
        y = y + D.to(wide)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(u.dtype), carried.reshape(batch, dim, states)
