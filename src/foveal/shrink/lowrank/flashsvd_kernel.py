"""The Triton kernel of FlashSVD's feed-forward layer; `foveal.shrink.lowrank.flashsvd` launches it.

A program handles T tokens. Their thin activations P, (T, R₁), are loaded once; then for each tile of F hidden features

    H = GELU(P U₁[tile]ᵀ + b₁[tile]),  S = S + H V₂[:, tile]ᵀ

with S, (T, R₂), in registers, so that H is never stored. Products are float32, in three tensor-core passes each.
"""

# Triton resolves every annotation of a kernel, and has none for a pointer.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803 - the head docstring's letters

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["hidden"]


@triton.jit
def hidden(
    thin,
    up,
    bias,
    down,
    out,
    tokens,
    features,
    rank,
    rank_out,
    T: tl.constexpr,
    F: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
) -> None:
    """S of T tokens. Inputs are contiguous: thin (tokens, rank), up (features, rank), down (rank_out, features)."""
    t = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    f, r1, r2 = tl.arange(0, F), tl.arange(0, R1), tl.arange(0, R2)
    known = (t < tokens)[:, None]
    p = tl.load(thin + t[:, None] * rank + r1[None, :], mask=known & (r1 < rank)[None, :], other=0.0)
    total = tl.zeros((T, R2), dtype=tl.float32)
    for first in range(0, features, F):
        at = first + f
        inside = at < features
        u = tl.load(up + at[None, :] * rank + r1[:, None], mask=inside[None, :] & (r1 < rank)[:, None], other=0.0)
        b = tl.load(bias + at, mask=inside, other=0.0)
        h = tl.dot(p, u, input_precision="tf32x3") + b[None, :]
        h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
        v = tl.load(
            down + r2[None, :] * features + at[:, None], mask=inside[:, None] & (r2 < rank_out)[None, :], other=0.0
        )
        total += tl.dot(h, v, input_precision="tf32x3")
    tl.store(out + t[:, None] * rank_out + r2[None, :], total, mask=known & (r2 < rank_out)[None, :])
