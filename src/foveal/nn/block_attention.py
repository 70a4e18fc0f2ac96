"""Attention in blocks of one direction: a block sees itself and those to the left, above and between.

*Source*: Z. Yang et al., "Inf-DiT: Upsampling Any-Resolution Image with Memory-Efficient Diffusion Transformer",
ECCV 2024 (arXiv:2405.04312). Blocks of n tokens, queries, keys and values (B, rows, columns, n, heads, d) each, already
rotated by row and column. For each relation i of a block to a neighbour there is a learnt rᵢ, (heads, d):

    softmax(q [k + r₀, left-top's k + r₁, left's k + r₂, top's k + r₃]ᵀ / √d) [v, left-top's v, left's v, top's v]

All blocks at once (`beside`), one after the other with kept keys and values (`beside_kept`), or every token with every
token under a mask (`dense`).

*Differs from the paper*: blocks outside the picture are left out.

*Provenance*: see `foveal.models.restore.inf_dit`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AROUND", "Kept", "attend", "beside", "beside_kept", "dense", "relation", "rotated"]

AROUND = ((0, 0), (1, 1), (0, 1), (1, 0))  # rows up and columns left of itself, left-top, left, top
Kept = list[tuple[Tensor, Tensor]]  # k and v of a block, for each layer


def rotated(x: Tensor, places: Tensor) -> Tensor:
    """RoPE: pairs of numbers turned, half of them by the row and half by the column.

    Args:
        x: (..., n, heads, d), d a multiple of 4.
        places: row and column of each token, (..., n, 2).

    Returns:
        (..., n, heads, d).
    """
    half = x.shape[-1] // 2
    speeds = 10000.0 ** (-torch.arange(0, half, 2, device=x.device) / half)
    # (..., n, 1, d / 2)
    angle = (places.unsqueeze(-1) * speeds).flatten(-2).unsqueeze(-2).to(x.dtype)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in heads.

    Args:
        query: (B, N, heads, d).
        key: (B, M, heads, d).
        value: (B, M, heads, d).
        mask: what is added to the scores, (B or 1, 1 or heads, 1 or N, M).

    Returns:
        (B, N, heads · d).
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _shifted(x: Tensor, up: int, left: int) -> Tensor:
    """The block above or to the left of each; zeros where there is none. (B, rows, columns, …) to the same."""
    rows, columns = x.shape[1:3]
    return F.pad(x.flatten(3), (0, 0, left, 0, up, 0))[:, :rows, :columns].view(x.shape)


def beside(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
    """Attention of all blocks of a picture at once, each to itself and its three neighbours.

    Args:
        query: (B, rows, columns, n, heads, d).
        key: the same.
        value: the same.
        offsets: r, (4, heads, d).

    Returns:
        (B, rows, columns, n, heads · d).
    """
    batch, rows, columns, n = key.shape[:4]
    keys = torch.cat([_shifted(key, *at) + r for at, r in zip(AROUND, offsets, strict=True)], 3)
    values = torch.cat([_shifted(value, *at) for at in AROUND], 3)
    there = torch.stack([_shifted(key.new_ones(1, rows, columns, 1), *at).flatten() for at in AROUND], 1)
    mask = torch.zeros_like(there).masked_fill_(there == 0, float("-inf")).repeat_interleave(n, 1)
    mask = mask.repeat(batch, 1)[:, None, None]
    q, k, v = (x.flatten(0, 2) for x in (query, keys, values))
    return attend(q, k, v, mask).unflatten(0, (batch, rows, columns))


def relation(rows: int, columns: int) -> Tensor:
    """Which of its neighbours one block is to another.

    Args:
        rows: blocks of a column.
        columns: blocks of a row.

    Returns:
        (blocks, blocks): index into r of each block seen from each, -1 where it is not seen.
    """
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
    apart = places[:, None] - places
    found = torch.full(apart.shape[:2], -1)
    for index, at in enumerate(AROUND):
        found[(apart == torch.tensor(at)).all(-1)] = index
    return found


def dense(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
    """`beside` by attention of every token to every token under a mask: slow, plain, the reference.

    Args:
        query: (B, rows, columns, n, heads, d).
        key: the same.
        value: the same.
        offsets: r, (4, heads, d).

    Returns:
        (B, rows, columns, n, heads · d).
    """
    rows, columns, n = query.shape[1:4]
    seen = relation(rows, columns).to(query.device).repeat_interleave(n, 0).repeat_interleave(n, 1)
    q, k, v = (x.flatten(1, 3).transpose(1, 2) for x in (query, key, value))
    # (B, heads, N, 4): what r adds to the scores of a query
    extra = torch.einsum("bhnd,rhd->bhnr", q, offsets)
    scores = q @ k.mT + extra.gather(3, seen.clamp_min(0).expand(*extra.shape[:2], -1, -1))
    weights = (scores / q.shape[-1] ** 0.5).masked_fill(seen < 0, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2).unflatten(1, (rows, columns, n))


def beside_kept(
    others: list[tuple[Tensor, Tensor] | None], own: Kept, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor
) -> Tensor:
    """Attention of one block to itself and to what was kept of its neighbours; adds its own to what is kept.

    Args:
        others: k and v of left-top, left and top, None for one that is not there.
        own: what is kept of this block; its k and v are appended.
        query: (B, 1, 1, n, heads, d).
        key: the same.
        value: the same.
        offsets: r, (4, heads, d).

    Returns:
        (B, 1, 1, n, heads · d).
    """
    own.append((key, value))
    seen = [((key, value), offsets[0])]
    seen += [(other, r) for other, r in zip(others, offsets[1:], strict=True) if other is not None]
    keys = torch.cat([k + r for (k, _), r in seen], 3)
    values = torch.cat([v for (_, v), _ in seen], 3)
    return attend(*(x.flatten(0, 2) for x in (query, keys, values)))[:, None, None]
