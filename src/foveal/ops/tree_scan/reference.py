"""Scan of a tree of tokens, node by node: the plain form that the fast one is compared with.

*Source*: Y. Wu, Z. Qin, A. Wong, S. Soatto, "STree: Speculative Tree Decoding for Hybrid State-Space Models", NeurIPS
2025 (arXiv:2505.14969); the recurrence is that of Mamba-2, see `foveal.ops.ssd.reference`.
*Differs from the paper*: nothing; this is what the paper avoids, one state for each node.
*Provenance*: written from the formula

    S_t = exp(dt_t · A) S_parent(t) + dt_t · x_t B_tᵀ,   S_parent = initial state at a root        (1)
    y_t = S_t C_t + D ∘ x_t                                                                        (2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.ssd.reference import prepared, skipped

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["tree_scan_reference"]


def tree_scan_reference(
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
    """Equations (1) and (2), one node after the other.

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
    batch, _, heads, channels = x.shape
    ins, outs = (w.to(wide_x.dtype).repeat_interleave(heads // w.shape[2], dim=2) for w in (B, C))
    zero = wide_x.new_zeros(batch, heads, channels, B.shape[3])
    first = zero if initial_state is None else initial_state.to(wide_x.dtype)
    states: list[Tensor] = []
    outputs = []
    for t, parent in enumerate(parents.tolist()):
        now = step[:, t, :, None, None]
        kept = torch.exp(now * decay[:, None, None]) * (first if parent < 0 else states[parent])
        states.append(kept + now * wide_x[:, t, :, :, None] * ins[:, t, :, None])  # (1)
        outputs.append((states[t] * outs[:, t, :, None]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(wide_x)
    return skipped(y, wide_x, D).to(x.dtype)  # (2)
