"""SpargeAttn in vectorised torch: kept blocks of keys and values are gathered and attended to by torch's fused kernel.

Blocks of queries that keep equally many blocks of keys are computed together, in portions that fit the cache. With a
margin, scores are computed first, because fused attention cannot leave out blocks by their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.ops.sparse_attention.reference import rounded_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["attend", "block_map", "sparge_attention_eager"]

PORTION = 1 << 18  # gathered keys and values at a time, in numbers: they stay in a cache of 1 MiB


def _blocked(x: Tensor, size: int) -> Tensor:
    """Blocks of tokens, zeros behind the last one: (B, H, n, size, D)."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def _means(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean of each block, (B, H, n, D), and mean cosine of its pairs, (B, H, n): equation 1."""
    blocks = _blocked(x, size)
    sizes = torch.full((blocks.shape[2], 1), size, dtype=x.dtype, device=x.device)
    sizes[-1] -= -x.shape[2] % size
    # The cosines of all pairs add up to the square of the sum of the directions.
    alike = F.normalize(blocks, dim=-1).sum(3).square().sum(3) / sizes[:, 0].square()
    return blocks.sum(3) / sizes, alike


@torch.no_grad()
def block_map(q: Tensor, k: Tensor, *, tau: float, theta: float, block: tuple[int, int], scale: float) -> Tensor:
    """Blocks of the attention map that are computed: equations 1 to 3.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        tau: τ.
        theta: θ.
        block: b_q and b_k.
        scale: factor on the products.

    Returns:
        Mask, (B, H, ⌈N / b_q⌉, ⌈M / b_k⌉).
    """
    queries, alike = _means(q, block[0])
    keys, known = _means(k - k.mean(2, keepdim=True), block[1])
    unsure = ~(known > theta)[:, :, None]
    scores = (queries @ keys.mT * scale).masked_fill(unsure, -torch.inf)
    # (B, H, n, m); a row without known blocks is NaN and keeps all
    shares, order = scores.softmax(3).sort(dim=3, descending=True, stable=True)
    chosen = shares.cumsum(3) <= tau
    chosen[..., 0] = True
    if tau >= 1:
        chosen[:] = True
    kept = torch.zeros_like(chosen).scatter_(3, order, chosen)
    return kept | unsure | ~(alike > theta)[..., None]


def _portions(kept: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Rows of a mask that keep equally many blocks, and the blocks: the last one may be shorter, so it parts groups."""
    counts, ends = kept.sum(1), kept[:, -1]
    groups = 2 * counts + ends
    for group in groups.unique().tolist():
        members = (groups == group).nonzero()[:, 0]
        count, end = group // 2, bool(group % 2)
        for rows in members.split(max(1, PORTION // (count * size))):
            yield rows, kept[rows].nonzero()[:, 1].view(-1, count), end


def attend(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, *, block: tuple[int, int], scale: float, margin: float = torch.inf
) -> tuple[Tensor, int]:
    """Attention to the kept blocks: equation 4.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        v: values, (B, H, M, E).
        kept: mask of blocks, (B, H, n, m), at least one in each row.
        block: b_q and b_k.
        scale: factor on the products.
        margin: −λ.

    Returns:
        Outputs, (B, H, N, E), and the number of blocks that are multiplied with the values.
    """
    if margin == torch.inf and bool(kept.all()):
        return F.scaled_dot_product_attention(q, k, v, scale=scale), kept.numel()
    (heads, queries), keys = (kept.shape[0] * kept.shape[1], kept.shape[2]), kept.shape[3]
    rows = _blocked(q, block[0]).flatten(0, 2)
    columns, values = (_blocked(x, block[1]).flatten(0, 2) for x in (k, v))
    first = torch.arange(heads, device=q.device).repeat_interleave(queries) * keys
    spare, short = keys * block[1] - k.shape[2], queries * block[0] - q.shape[2]
    places, parts, done = [], [], 0
    for members, blocks, end in _portions(kept.flatten(0, 2), block[1] * (k.shape[3] + v.shape[3])):
        index = blocks + first[members, None]
        length = blocks.shape[1] * block[1] - (spare if end else 0)
        # (members, 1, tokens, D): the filling of a last block is at the end
        near, seen = (x[index].flatten(1, 2)[:, None, :length] for x in (columns, values))
        asked = rows[members][:, None]
        if margin == torch.inf:
            parts.append(F.scaled_dot_product_attention(asked, near, seen, scale=scale)[:, 0])
            done += blocks.numel()
        else:
            scores = F.pad(asked @ near.mT * scale, (0, spare if end else 0), value=-torch.inf)
            real = torch.ones(len(members), block[0], dtype=torch.bool, device=q.device)
            real[members % queries == queries - 1, block[0] - short :] = False
            computed = _within(scores[:, 0].unflatten(2, (-1, block[1])), real, margin)
            scores = scores.masked_fill(~computed.repeat_interleave(block[1], 1)[:, None, None], -torch.inf)
            parts.append((scores[..., :length].softmax(3) @ seen)[:, 0])
            done += int(computed.sum())
        places.append(members)
    whole = torch.cat(parts)[torch.cat(places).argsort()]
    return whole.view(*q.shape[:2], -1, v.shape[3])[:, :, : q.shape[2]], done


@torch.no_grad()
def _within(scores: Tensor, real: Tensor, margin: float) -> Tensor:
    """Which blocks have a score that is not far below the running maximum of its row: (members, blocks)."""
    # (members, b_q, blocks)
    top = scores.amax(3)
    before = F.pad(top.cummax(2).values, (1, -1), value=-torch.inf)
    return ((top - before).masked_fill(~real[:, :, None], -torch.inf) > -margin).any(1)


def sparge_attention_eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tau: float = 0.98,
    theta: float = 0.6,
    margin: float = torch.inf,
    block: tuple[int, int] = (128, 64),
    int8: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`sparge_attention_reference`, vectorised.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        v: values, (B, H, M, E).
        tau: τ.
        theta: θ.
        margin: −λ.
        block: b_q and b_k.
        int8: whether queries and keys are rounded to 8 bits in blocks.
        scale: factor on the products; None for 1/√D.

    Returns:
        Outputs, (B, H, N, E).
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    kept = block_map(q, k, tau=tau, theta=theta, block=block, scale=scale)
    if int8:
        q, k = rounded_blocks(q, block[0]), rounded_blocks(k - k.mean(2, keepdim=True), block[1])
    return attend(q, k, v, kept, block=block, scale=scale, margin=margin)[0]
