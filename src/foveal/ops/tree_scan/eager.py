"""Scan of a tree of tokens as matrix products: no node has a state of its own.

With the topology L, L_ts = 1 where s is t or an ancestor of t, the logarithms of the decays are summed along each path,
and every node attends to its ancestors:

    c_t = Σ_s L_ts dt_s · A
    y_t = Σ_s L_ts exp(c_t - c_s) (C_t · B_s) dt_s x_s + exp(c_t) S C_t + D ∘ x_t

For a chain, L is lower triangular, and this is the masked attention of Mamba-2 with one chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.ssd.reference import prepared, skipped

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ancestors", "tree_scan_eager"]


def ancestors(parents: Tensor) -> Tensor:
    """Topology of a tree or of several.

    Args:
        parents: parent of each node, (nodes,) int64, before the node itself; -1 for none.

    Returns:
        Whether s is t or an ancestor of t, (nodes, nodes) bool, [t, s].
    """
    mask = torch.eye(len(parents), dtype=torch.bool, device=parents.device)
    for t, parent in enumerate(parents.tolist()):
        if parent >= 0:
            mask[t] |= mask[parent]
    return mask


def tree_scan_eager(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    parents: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
) -> Tensor:
    """`tree_scan_reference` in three products.

    Args:
        x: input, (batch, nodes, heads, channels).
        dt: step sizes, (batch, nodes, heads).
        A: decays, (heads,).
        B: input weights, (batch, nodes, groups, states); each group serves heads / groups adjacent heads.
        C: output weights, the same.
        D: skip weights, (heads,) or (heads, channels).
        parents: parent of each node, (nodes,) int64, -1 for none.
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.
        initial_state: state before the roots, (batch, heads, channels, states); None for zero.

    Returns:
        Output, (batch, nodes, heads, channels), in the dtype of `x`.
    """
    wide_x, step, decay = prepared(x, dt, A, dt_bias, dt_softplus)
    heads = x.shape[2]
    # (batch, heads, nodes, states)
    ins, outs = (w.to(wide_x.dtype).repeat_interleave(heads // w.shape[2], dim=2).transpose(1, 2) for w in (B, C))
    topology = ancestors(parents)
    # (batch, heads, nodes)
    summed = (topology.to(wide_x.dtype) @ (step * decay)).transpose(1, 2)
    # (batch, heads, nodes, nodes); what is no ancestor is left out before the exponential, which could overflow
    apart = (summed[..., :, None] - summed[..., None, :]).masked_fill(~topology, -torch.inf)
    scores = outs @ ins.mT * apart.exp()
    y = scores @ (step[..., None] * wide_x).transpose(1, 2)
    if initial_state is not None:
        y = y + summed.exp()[..., None] * (outs @ initial_state.to(wide_x.dtype).mT)
    return skipped(y.transpose(1, 2), wide_x, D).to(x.dtype)
