"""SageAttention2 in vectorised torch: all queries at once, keys block after block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.ops.low_bit_attention.reference import KEYS, LARGEST, QUERIES, fp22

__all__ = ["fp8", "grouped_integers", "sage_attention2_eager"]


def fp8(x: Tensor) -> Tensor:
    """Round to FP8 E4M3.

    Args:
        x: values in [−448, 448].

    Returns:
        Values of the same shape and type.
    """
    return x.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).to(x.dtype)


def grouped_integers(x: Tensor, bits: int, *, keys: bool) -> tuple[Tensor, Tensor]:
    """Integers of tokens with one step for each group of rows that one thread of the GPU holds: equation 2.

    Args:
        x: tokens, (B, H, N, D).
        bits: bits of an integer.
        keys: whether these are keys, groups of 16 rows, or queries, groups of 4.

    Returns:
        Integers, (B, H, N, D), in the type of `x`, and the step of each token, (B, H, N, 1).
    """
    count, levels = x.shape[2], 2 ** (bits - 1) - 1
    # (B, H, blocks, 8, 4, 2, D) for keys, (B, H, blocks, 4, 8, D) for queries
    shape, over = ((-1, 8, 4, 2), (3, 5, 6)) if keys else ((-1, 4, 8), (3, 5))
    groups = F.pad(x, (0, 0, 0, -count % (KEYS if keys else 32))).unflatten(2, shape)
    steps = groups.abs().amax(over, keepdim=True) / levels + 1e-7
    steps = steps.expand(*groups.shape[:-1], 1).flatten(2, -2)[:, :, :count]
    scaled = x / steps
    return (scaled + 0.5 * scaled.sign()).trunc(), steps


@torch.no_grad()
def sage_attention2_eager(
    q: Tensor, k: Tensor, v: Tensor, *, bits: int = 4, smooth: bool = True, scale: float | None = None
) -> Tensor:
    """`sage_attention2_reference`, vectorised.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        v: values, (B, H, M, E).
        bits: bits of queries and keys, 4 or 8.
        smooth: whether means are taken off.
        scale: factor on the products; None for 1/√D.

    Returns:
        Outputs, (B, H, N, E).
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    tokens, mean = q.shape[2], torch.zeros_like(q[:, :, :1])
    if smooth:
        k = k - k.mean(2, keepdim=True)
        mean = torch.cat([part.mean(2, keepdim=True) for part in q.split(QUERIES, 2)], 2)
        q = q - mean.repeat_interleave(QUERIES, 2)[:, :, :tokens]
    queries, steps = grouped_integers(q, bits, keys=False)
    integers, steps_k = grouped_integers(k, bits, keys=True)
    step_v = v.abs().amax(2, keepdim=True).clamp(min=1e-30) / LARGEST
    values = fp8(v / step_v)
    # (B, H, blocks, M), then (B, H, N, M) block after block
    shift = mean @ k.mT
    largest = torch.full_like(q[..., :1], -torch.inf)
    total, sums = torch.zeros_like(largest), torch.zeros_like(q[..., :1]).expand(*q.shape[:3], v.shape[3])
    for start in range(0, k.shape[2], KEYS):
        near = slice(start, start + KEYS)
        products = (queries @ integers[:, :, near].mT) * steps * steps_k[:, :, near].mT
        moved = shift[..., near]
        if moved.shape[2] > 1:
            moved = moved.repeat_interleave(QUERIES, 2)[:, :, :tokens]
        scores = (products + moved) * scale
        now = torch.maximum(largest, scores.amax(3, keepdim=True))
        weights, shrunk = (scores - now).exp(), (largest - now).exp()
        total = total * shrunk + weights.sum(3, keepdim=True)
        part = fp22(fp8(weights * LARGEST) @ values[:, :, near])
        sums = sums * shrunk + part * step_v / LARGEST
        largest = now
    return sums / total
