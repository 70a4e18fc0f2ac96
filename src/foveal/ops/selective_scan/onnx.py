"""Selective scan for ONNX: the arithmetic of the eager path, its three loops left as nodes for `foveal.export`.

ONNX has a `Scan` operator, and one pass over L steps would be L small steps in the engine. The sequence is cut into M
chunks of T steps instead, all chunks step together, and L is free:

    ScanStates    T steps from zero, of all chunks: the state each chunk ends with
    ScanCarry     M steps: the state each chunk begins with
    ScanOutputs   T steps from there, of all chunks: the outputs

`foveal.export` puts a standard `Scan` in the place of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CHUNK", "selective_scan_symbolic"]

CHUNK = 64  # T; a sequence of L takes 2·T + L/T steps


def _node(name: str, inputs: list[Tensor], shape: list[int]) -> Tensor:
    return torch.onnx.ops.symbolic(f"foveal::{name}", inputs, {}, dtype=torch.float32, shape=shape, version=1)


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
        Output, (B, C, L); last state, (B, C, D).
    """
    batch, dim, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    chunks = (length + CHUNK - 1) // CHUNK
    # A step of 0 leaves the state as it is.
    pad = chunks * CHUNK - length
    # (T, B, M, G, C/G, 1) and (T, B, M, G, 1, D)
    x, steps = (
        F.pad(w.float(), (0, pad))
        .reshape(batch, groups, dim // groups, chunks, CHUNK)
        .permute(4, 0, 3, 1, 2)[..., None]
        for w in (u, delta)
    )
    weights_in, weights_out = (
        F.pad(w.float(), (0, pad)).reshape(batch, groups, states, chunks, CHUNK).permute(4, 0, 3, 1, 2)[..., None, :]
        for w in (B, C)
    )
    rates = A.float().view(groups, dim // groups, states)
    drive = steps * x
    each = [batch, chunks, groups, dim // groups, states]
    start = torch.zeros(each, device=u.device)
    ends = _node("ScanStates", [start, steps, drive, weights_in, rates], each)
    left = torch.exp(steps.sum(0) * rates)
    by_chunk = [chunks, batch, groups, dim // groups, states]
    begins = _node("ScanCarry", [start[:, 0], left.transpose(0, 1), ends.transpose(0, 1)], by_chunk)
    y = _node(
        "ScanOutputs",
        [begins.transpose(0, 1), steps, drive, weights_in, weights_out, rates],
        [CHUNK, batch, chunks, groups, dim // groups],
    )
    # (T, B, M, G, C/G) to (B, C, L)
    y = y.permute(1, 3, 4, 2, 0).reshape(batch, dim, chunks * CHUNK)[..., :length]
    if D is not None:
        y = y + D.float()[:, None] * u
    last = left[:, -1] * begins[-1] + ends[:, -1]
    return y, last.reshape(batch, dim, states)
