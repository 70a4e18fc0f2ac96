"""State space duality as matrix products, differentiated by torch.

The sequence is cut into M chunks of T steps. With c_i = Σ_{t≤i} dt_t · A inside a chunk and X_j = dt_j · x_j, the
output is the chunk's own contribution, a masked attention, plus that of the state before the chunk:

    Y = (C Bᵀ ∘ exp(c_i - c_j)_{i≥j}) X + exp(c) ∘ (C Sᵀ)
    S of a chunk alone = Xᵀ (exp(c_T - c) ∘ B)

The states before all chunks follow from these by one more masked product, over chunks instead of steps. There each sum
of decays is computed directly, not as a difference of long sums, which would lose precision as L grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.ops.ssd.reference import prepared, skipped

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ssd_eager", "ssd_noncausal_eager"]


def _exp(sums: Tensor) -> Tensor:
    """The exponential, clamped to at least 1e-26: CPUs are ten to a hundred times slower on denormal numbers."""
    return sums.clamp(min=-60).exp()


def _decays(rates: Tensor) -> Tensor:
    """The exponential of the sums Σ_{j<t≤i} of `rates`, (…, M) to (…, M, M), 0 above the diagonal."""
    count = rates.shape[-1]
    sums = rates[..., None].expand(*rates.shape, count).tril(-1).cumsum(-2)
    return _exp(sums.tril()).tril()


def ssd_eager(
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
    """`ssd_reference` in chunks.

    Args:
        x: input, (batch, length, heads, channels).
        dt: step sizes, (batch, length, heads).
        A: decays, (heads,).
        B: input weights, (batch, length, groups, states).
        C: output weights, (batch, length, groups, states).
        D: skip weights, (heads,) or (heads, channels).
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.
        chunk_size: T.
        initial_state: S before the first step, (batch, heads, channels, states); None for zero.

    Returns:
        Output, (batch, length, heads, channels), in the dtype of `x`; last state, (batch, heads, channels, states).
    """
    wide_x, step, decay = prepared(x, dt, A, dt_bias, dt_softplus)
    (batch, length, heads, channels), (groups, states) = x.shape, B.shape[2:]
    each = heads // groups
    # A step of 0 leaves the state unchanged, so the padding affects neither the outputs nor the last state.
    pad = -length % chunk_size
    count = (length + pad) // chunk_size
    steps = F.pad(step, (0, 0, 0, pad)).reshape(batch, count, chunk_size, groups, each).permute(0, 1, 3, 4, 2)
    # (batch, chunks, groups, heads/groups, T)
    rates = (steps * decay.reshape(groups, each, 1)).cumsum(-1)
    # (batch, chunks, groups, heads/groups, T, channels)
    xs = F.pad(wide_x, (0, 0, 0, 0, 0, pad)).reshape(batch, count, chunk_size, groups, each, channels)
    scaled = xs.permute(0, 1, 3, 4, 2, 5) * steps[..., None]
    # (batch, chunks, groups, T, states)
    ins, outs = (
        F.pad(w.to(wide_x.dtype), (0, 0, 0, 0, 0, pad))
        .reshape(batch, count, chunk_size, groups, states)
        .transpose(2, 3)
        for w in (B, C)
    )
    # (batch, chunks, groups, heads/groups, T, T)
    within = _exp((rates[..., :, None] - rates[..., None, :]).tril()).tril()
    y = (within * (outs @ ins.transpose(-1, -2))[:, :, :, None]) @ scaled
    # (batch, chunks, groups, heads/groups·channels, states)
    left = scaled * _exp(rates[..., -1:] - rates)[..., None]
    own = left.transpose(-1, -2).reshape(batch, count, groups, each * channels, chunk_size) @ ins
    own = own.reshape(batch, count, heads, channels * states).transpose(1, 2)
    first = own.new_zeros(batch, heads, 1, channels * states)
    if initial_state is not None:
        first = initial_state.to(own.dtype).reshape(batch, heads, 1, channels * states)
    # (batch, heads, chunks + 1): the initial state counts as a chunk before the first, without decay
    ends = F.pad(rates[..., -1].reshape(batch, count, heads).transpose(1, 2), (1, 0))
    # (batch, heads, chunks + 1, channels·states): the states before each chunk, and the last
    before = _decays(ends) @ torch.cat([first, own], 2)
    held = before[:, :, :-1].transpose(1, 2).reshape(batch, count, groups, each * channels, states)
    # (batch, chunks, groups, T, heads/groups·channels) to (batch, chunks, groups, heads/groups, T, channels)
    carried = (outs @ held.transpose(-1, -2)).reshape(batch, count, groups, chunk_size, each, channels).transpose(3, 4)
    y = y + _exp(rates)[..., None] * carried
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, count * chunk_size, heads, channels)[:, :length]
    return skipped(y, wide_x, D).to(x.dtype), before[:, :, -1].reshape(batch, heads, channels, states)


def ssd_noncausal_eager(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """`ssd_noncausal_reference` as two products: the sum over tokens is one state, which all tokens read.

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
    (batch, length, heads, channels), groups = x.shape, B.shape[2]
    # (batch, groups, length, heads/groups·channels)
    weighted = (
        (wide_x * (-decay * step)[..., None]).reshape(batch, length, groups, heads // groups * channels).transpose(1, 2)
    )
    # (batch, groups, length, states)
    ins, outs = (w.to(wide_x.dtype).transpose(1, 2) for w in (B, C))
    # (batch, groups, states, heads/groups·channels), then (batch, groups, length, heads/groups·channels)
    y = outs @ (ins.transpose(-1, -2) @ weighted)
    return skipped(y.transpose(1, 2).reshape(batch, length, heads, channels), wide_x, D).to(x.dtype)
