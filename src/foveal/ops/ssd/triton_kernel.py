"""The Triton kernel of state space duality; `foveal.ops.ssd.triton` launches it.

A program handles some value channels of one head of one sequence, and processes it in chunks of T steps with the state
S, (states, channels), in registers. With c the cumulative sums of the log decays inside a chunk,

    Y = (Q Kᵀ ∘ exp(c_i - c_j)_{i≥j}) V + exp(c) ∘ (Q S)
    S becomes exp(c_T) S + Kᵀ (exp(c_T - c) ∘ V)

Products are float32, computed in three tensor-core passes each, because a single pass would keep only ten bits.
"""

# Triton resolves every annotation of a kernel, and has none for a pointer.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["chunks"]


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def chunks(
    query,
    key,
    value,
    rate,
    start,
    out,
    last,
    length,
    heads,
    query_groups,
    key_groups,
    value_groups,
    states,
    channels,
    T: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
) -> None:
    """All chunks of one head and P channels; every input is contiguous, (batch, length, own groups, …)."""
    batch, head = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    t, n, p = tl.arange(0, T), tl.arange(0, N), tl.program_id(1) * P + tl.arange(0, P)
    query_head = head // (heads // query_groups)
    key_head = head // (heads // key_groups)
    value_head = head // (heads // value_groups)
    state_at = ((batch * heads + head) * states + n[:, None]) * channels + p[None, :]
    state_mask = (n < states)[:, None] & (p < channels)[None, :]
    state = tl.load(start + state_at, mask=state_mask, other=0.0)
    for first in range(0, length, T):
        now = first + t
        inside = now < length
        row = batch * length + now
        of_q, of_k = (row * query_groups + query_head) * states, (row * key_groups + key_head) * states
        of_v = (row * value_groups + value_head) * channels
        wide, narrow = inside[:, None] & (n < states)[None, :], inside[:, None] & (p < channels)[None, :]
        q = tl.load(query + of_q[:, None] + n[None, :], mask=wide, other=0.0)
        k = tl.load(key + of_k[:, None] + n[None, :], mask=wide, other=0.0)
        v = tl.load(value + of_v[:, None] + p[None, :], mask=narrow, other=0.0)
        rates = tl.load(rate + row * heads + head, mask=inside, other=0.0)
        sums = tl.cumsum(rates, 0)
        whole = tl.sum(rates, 0)
        between = sums[:, None] - sums[None, :]
        mask = t[:, None] >= t[None, :]
        decays = tl.where(mask, tl.exp(tl.where(mask, between, 0.0)), 0.0)
        y = _dot(_dot(q, tl.trans(k)) * decays, v) + tl.exp(sums)[:, None] * _dot(q, state)
        tl.store(out + ((row * heads + head) * channels)[:, None] + p[None, :], y, mask=narrow)
        state = tl.exp(whole) * state + _dot(tl.trans(k), tl.exp(whole - sums)[:, None] * v)
    tl.store(last + state_at, state, mask=state_mask)
