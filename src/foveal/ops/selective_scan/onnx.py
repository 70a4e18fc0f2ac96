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
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
) -> tuple[Tensor, Tensor]:
    """What tracing for ONNX sees of a scan.

    Args:
        u: (B, C, L).
        delta: (B, C, L), steps as they are.
        A: (C, D).
        B: (B, G, D, L).
        C: (B, G, D, L).
        D: (C,).

    Returns:
        Output, (B, C, L); in the place of the last state, which is not exported, an empty tensor of (B, C, 0).
    """
    sizes: dict[str, Any] = {"groups": B.shape[1], "channels": u.shape[1], "states": A.shape[1]}
    inputs = [t.float() for t in (u, delta, A, B, C)]
    y = torch.onnx.ops.symbolic("foveal::SelectiveScan", inputs, sizes, dtype=torch.float32, shape=u.shape, version=1)
    if D is not None:
        y = y + D.float()[:, None] * u
    return y, u[:, :, :0]
