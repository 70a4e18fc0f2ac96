"""Selective scan for ONNX.

Inside `lowered_later`, a scan is a single custom node in the traced graph, which `foveal.export.scan` later replaces by
standard operators that step all chunks together. The expansion happens after tracing, because otherwise every size in
it would be an expression of the picture's height and width that the tracer must reason about; that took longer than the
whole rest of an export.

Outside, where nothing would replace the node (a plain `torch.onnx.export`), torch's own scan is used, which becomes
ONNX's `Scan` over the length: also standard, but slower.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["lowered_later", "selective_scan_symbolic"]

_LATER: ContextVar[bool] = ContextVar("lowered_later", default=False)


@contextmanager
def lowered_later() -> Iterator[None]:
    """Trace scans inside the block as custom nodes, which the caller replaces.

    Yields:
        Nothing.
    """
    token = _LATER.set(True)
    try:
        yield
    finally:
        _LATER.reset(token)


def _scanned(u: Tensor, delta: Tensor, rates: Tensor, weights_in: Tensor, weights_out: Tensor) -> Tensor:
    """The scan as torch's higher-order `scan`, whose body is one step; all in float32."""
    from torch._higher_order_ops.scan import scan

    groups, states = weights_in.shape[1:3]
    rates = rates.unflatten(0, (groups, -1))

    def step(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x, dt, into, out = now  # x and dt: (batch, groups, dim/groups); into and out: (batch, groups, states)
        state = (dt[..., None] * rates).exp() * state + (dt * x)[..., None] * into[:, :, None]
        return state, (state * out[:, :, None]).sum(-1)

    by_step = [t.unflatten(1, (groups, -1)).permute(3, 0, 1, 2) for t in (u, delta)]
    by_step += [t.permute(3, 0, 1, 2) for t in (weights_in, weights_out)]
    _, y = scan(step, u.new_zeros(u.shape[0], groups, rates.shape[1], states), by_step, dim=0)
    return y.permute(1, 2, 3, 0).flatten(1, 2)


def selective_scan_symbolic(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan as traced for ONNX.

    Args:
        u: input, (batch, dim, L).
        delta: final step sizes, after bias and softplus, (batch, dim, L).
        A: decay of each state, (dim, states).
        B: input weights, (batch, groups, states, L) or (dim, states).
        C: output weights, the same.
        D: skip weights, (dim,).
        initial_state: must be None.

    Returns:
        Output, (batch, dim, L), and an empty tensor instead of the last state, which is not exported.
    """
    assert initial_state is None  # `selective_scan` rejects it
    if 2 in {B.ndim, C.ndim}:  # the node supports only per-position weights, so constant ones are expanded per channel
        B, C = (
            w[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
            if w.ndim == 2
            else w.repeat_interleave(u.shape[1] // w.shape[1], 1)
            for w in (B, C)
        )
    sizes: dict[str, Any] = {"groups": B.shape[1], "channels": u.shape[1], "states": A.shape[1]}
    inputs = [t.float() for t in (u, delta, A, B, C)]
    if _LATER.get():
        name = "foveal::SelectiveScan"
        y = torch.onnx.ops.symbolic(name, inputs, sizes, dtype=torch.float32, shape=u.shape, version=1)
    else:
        y = _scanned(*inputs)
    if D is not None:
        y = y + D.float()[:, None] * u
    return y, u[:, :, :0]
