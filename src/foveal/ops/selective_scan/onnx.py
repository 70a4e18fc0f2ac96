"""Selective scan for ONNX: one node in the traced graph, which `foveal.export.scan` replaces by standard operators.

The node is written out after tracing and not before, because every size in it would be an expression of the picture's
height and width that the tracer must prove things about; that took longer than all the rest of an export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["selective_scan_symbolic"]


def selective_scan_symbolic(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What tracing for ONNX sees of a scan.

    Args:
        u: (batch, dim, L).
        delta: (batch, dim, L), steps as they are.
        A: (dim, states).
        B: (batch, groups, states, L) or (dim, states).
        C: the same.
        D: (dim,).
        initial_state: must be None.

    Returns:
        Output, (batch, dim, L); in the place of the last state, which is not exported, an empty tensor.
    """
    assert initial_state is None  # `selective_scan` refuses it
    if 2 in {B.ndim, C.ndim}:  # the node knows weights of every place only, of every channel then
        B, C = (
            w[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
            if w.ndim == 2
            else w.repeat_interleave(u.shape[1] // w.shape[1], 1)
            for w in (B, C)
        )
    sizes: dict[str, Any] = {"groups": B.shape[1], "channels": u.shape[1], "states": A.shape[1]}
    inputs = [t.float() for t in (u, delta, A, B, C)]
    y = torch.onnx.ops.symbolic("foveal::SelectiveScan", inputs, sizes, dtype=torch.float32, shape=u.shape, version=1)
    if D is not None:
        y = y + D.float()[:, None] * u
    return y, u[:, :, :0]
