"""SpargeAttn block by block, in the order of the paper's Algorithm 1, and the order of tokens along a Hilbert curve.

With blocks Q_i of b_q queries and K_j, V_j of b_k keys and values, K without the mean of its tokens, which changes no
softmax:

    q_i = mean(Q_i),  k_j = mean(K_j),  s(X) = mean of the cosines of all pairs of rows of X                (1)
    S_ij = q_i·k_j·scale, −∞ where s(K_j) ≤ θ;   P_i = softmax over j of S_i                                (2)
    M_ij = 1 for the largest P_ij whose sum, in falling order, is at most τ, for at least one of them,
           where s(Q_i) ≤ θ, and where s(K_j) ≤ θ                                                           (3)
    for j in ascending order, where M_ij = 1:  X = Q_i K_jᵀ·scale,  d = max over rows of (rowmax X − m)
        if d > −margin:  m' = max(m, rowmax X),  P = exp(X − m'),  l = l·exp(m − m') + rowsum P             (4)
                         O = O·exp(m − m') + P V_j,  m = m'
    O_i = O / l

Blocks with M_ij = 0 cost neither product, those that (4) passes over cost the first only.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["block_map_reference", "hilbert_order", "rounded_blocks", "sparge_attention_reference"]


def hilbert_order(height: int, width: int) -> Tensor:
    """Order of the tokens of a picture along a Hilbert curve, so that consecutive ones are neighbours.

    Args:
        height: rows of tokens.
        width: columns of tokens.

    Returns:
        Token at each place of the curve, in reading order from 0, (height · width,); cells of the curve outside the
        picture are left out.
    """
    side = 1 << max(height - 1, width - 1, 1).bit_length()
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x, place = rows.clone(), columns.clone(), torch.zeros_like(rows)
    step = side // 2
    while step:
        right, down = ((x & step) > 0).long(), ((y & step) > 0).long()
        place += step * step * ((3 * right) ^ down)
        turned = down == 0
        mirrored = turned & (right == 1)
        x, y = torch.where(mirrored, side - 1 - x, x), torch.where(mirrored, side - 1 - y, y)
        x, y = torch.where(turned, y, x), torch.where(turned, x, y)
        step //= 2
    inside = (rows < height) & (columns < width)
    return (rows * width + columns)[inside][place[inside].argsort()]


def rounded_blocks(x: Tensor, size: int) -> Tensor:
    """Blocks of tokens as 8-bit integers of one step each, dequantised, with the gradient of the identity.

    Args:
        x: tokens, (B, H, N, D).
        size: tokens of a block.

    Returns:
        (B, H, N, D).
    """
    parts = []
    for block in x.detach().split(size, dim=2):
        step = block.abs().amax((2, 3), keepdim=True) / 127 + 1e-7
        parts.append((block / step + 0.5 * block.sign()).trunc() * step)
    return x + (torch.cat(parts, 2) - x).detach()


def _alike(block: Tensor) -> float:
    """Mean cosine of all pairs of rows, s."""
    unit = torch.nn.functional.normalize(block, dim=-1)
    return float((unit @ unit.mT).mean())


def block_map_reference(
    q: Tensor, k: Tensor, *, tau: float, theta: float, block: tuple[int, int], scale: float
) -> Tensor:
    """Equations 1 to 3, block by block.

    Args:
        q: queries of one head, (N, D).
        k: keys of one head, (M, D).
        tau: τ.
        theta: θ.
        block: b_q and b_k.
        scale: factor on the products.

    Returns:
        Blocks that are computed, (⌈N / b_q⌉, ⌈M / b_k⌉).
    """
    rows, columns = q.split(block[0]), (k - k.mean(0)).split(block[1])
    known = [j for j, keys in enumerate(columns) if _alike(keys) > theta]
    kept = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    for i, queries in enumerate(rows):
        kept[i] = torch.tensor([j not in known for j in range(len(columns))])
        if _alike(queries) <= theta or tau >= 1:
            kept[i] = True
        elif known:
            scores = torch.stack([queries.mean(0) @ columns[j].mean(0) * scale for j in known]).softmax(0)
            total = 0.0
            for place, share in enumerate(scores.argsort(descending=True, stable=True).tolist()):
                total += float(scores[share])
                if total <= tau or place == 0:
                    kept[i, known[share]] = True
    return kept


def sparge_attention_reference(
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
    """Equations 1 to 4, block by block.

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
    queries, keys = q, k
    if int8:
        queries, keys = rounded_blocks(q, block[0]), rounded_blocks(k - k.mean(2, keepdim=True), block[1])
    out = []
    for head in range(q.shape[0] * q.shape[1]):
        at = divmod(head, q.shape[1])
        kept = block_map_reference(
            q[at].detach(), k[at].detach(), tau=tau, theta=theta, block=block, scale=scale
        ).tolist()
        columns, values = keys[at].split(block[1]), v[at].split(block[1])
        for i, rows in enumerate(queries[at].split(block[0])):
            largest = torch.full_like(rows[:, :1], -torch.inf)
            total, sums = torch.zeros_like(largest), rows.new_zeros(len(rows), v.shape[3])
            for j in range(len(columns)):
                if not kept[i][j]:
                    continue
                scores = rows @ columns[j].mT * scale
                top = scores.detach().amax(1, keepdim=True)
                if float((top - largest).max()) <= -margin:
                    continue
                now = torch.maximum(largest, top)
                weights, shrunk = (scores - now).exp(), (largest - now).exp()
                total = total * shrunk + weights.sum(1, keepdim=True)
                sums = sums * shrunk + weights @ values[j]
                largest = now
            out.append(sums / total)
    return torch.cat(out).view(*q.shape[:3], v.shape[3])
