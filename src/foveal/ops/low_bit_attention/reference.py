"""SageAttention2 block by block: the emulation that everything else must equal.

For one head with blocks Q_i of 128 queries and K_j, V_j of 64 keys and values:

    K' = K − mean of all keys;   q_i = mean of Q_i,  Q'_i = Q_i − q_i                                        (1)
    δ = max|x| / 7 + 10⁻⁷ over the rows of one group,  x̂ = round(x / δ), halves away from zero               (2)
        groups of Q': of 32 rows those with the same r mod 8; of K': of 64 rows those with the same ⌊r/2⌋ mod 4
    S_ij = (δ_Q δ_K (Q̂'_i K̂'_jᵀ) + q_i K'_jᵀ)·scale;  the term Q K̄ᵀ of K's mean changes no softmax          (3)
    V̂ = FP8(V / δ_V),  δ_V = max|V| / 448 of each channel                                                    (4)
    for j in order:  m' = max(m, rowmax S_ij),  P = exp(S_ij − m'),  l = l·exp(m − m') + rowsum P
                     O = O·exp(m − m') + FP22(FP8(448·P) V̂_j) δ_V / 448,  m = m'                            (5)
    O_i = O / l

FP8 has 4 bits of exponent and 3 of mantissa (E4M3). FP22, with 13 bits of mantissa, is what tensor cores add up FP8
products in; each block's sum is added to a float32 sum (two levels). With 8 bits, 7 becomes 127 in (2).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KEYS", "LARGEST", "QUERIES", "fp22", "sage_attention2_reference"]

QUERIES, KEYS = 128, 64  # tokens of a block
LARGEST = 448.0  # of FP8 E4M3


def fp22(x: Tensor) -> Tensor:
    """Round to 13 bits of mantissa.

    Args:
        x: values.

    Returns:
        Values of the same shape and type.
    """
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2.0**14).round() / 2.0**14, exponent)


def _fp8(x: Tensor) -> Tensor:
    """The nearest of all values of E4M3, of two the one of even code."""
    table = torch.arange(127, dtype=torch.uint8, device=x.device).view(torch.float8_e4m3fn).double()
    gap = (x.double().abs()[..., None] - table).abs() + 1e-13 * (torch.arange(127, device=x.device) % 2)
    return (table[gap.argmin(-1)] * x.sign()).to(x.dtype)


def _integers(x: Tensor, groups: list[int], levels: int) -> tuple[Tensor, Tensor]:
    """Equation 2 for the rows of one block: integers, (N, D), and the step of each row, (N, 1)."""
    steps = x.new_empty(len(x), 1)
    for group in set(groups):
        rows = [row for row, of in enumerate(groups) if of == group]
        steps[rows] = x[rows].abs().max() / levels + 1e-7
    scaled = x / steps
    return (scaled + 0.5 * scaled.sign()).trunc(), steps


@torch.no_grad()
def sage_attention2_reference(
    q: Tensor, k: Tensor, v: Tensor, *, bits: int = 4, smooth: bool = True, scale: float | None = None
) -> Tensor:
    """Equations 1 to 5.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        v: values, (B, H, M, E).
        bits: bits of queries and keys, 4 or 8.
        smooth: whether means are taken off, equation 1.
        scale: factor on the products; None for 1/√D.

    Returns:
        Outputs, (B, H, N, E).
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    levels = 2 ** (bits - 1) - 1
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for head in range(q.shape[0] * q.shape[1]):
        at = divmod(head, q.shape[1])
        keys = k[at] - k[at].mean(0) if smooth else k[at]
        step_v = v[at].abs().amax(0).clamp(min=1e-30) / LARGEST
        values = _fp8(v[at] / step_v)
        for first in range(0, q.shape[2], QUERIES):
            rows = q[at][first : first + QUERIES]
            mean = rows.mean(0) if smooth else torch.zeros_like(rows[0])
            whole, steps = _integers(rows - mean, [32 * (r // 32) + r % 8 for r in range(len(rows))], levels)
            largest = torch.full_like(rows[:, :1], -torch.inf)
            total, sums = torch.zeros_like(largest), rows.new_zeros(len(rows), v.shape[3])
            for start in range(0, k.shape[2], KEYS):
                near = keys[start : start + KEYS]
                integers, steps_k = _integers(near, [r // 2 % 4 for r in range(len(near))], levels)
                products = (whole.long() @ integers.long().mT).to(q.dtype) * steps * steps_k.mT
                scores = (products + mean @ near.mT) * scale
                now = torch.maximum(largest, scores.amax(1, keepdim=True))
                weights, shrunk = (scores - now).exp(), (largest - now).exp()
                total = total * shrunk + weights.sum(1, keepdim=True)
                part = fp22(_fp8(weights * LARGEST) @ values[start : start + KEYS])
                sums = sums * shrunk + part * step_v / LARGEST
                largest = now
            out[at][first : first + QUERIES] = sums / total
    return out
