"""State space duality with the compiled kernel, registered with torch for autograd and `torch.compile`.

The kernel, kernels/cpp/decayed_attention.cpp, computes F of `foveal.ops.ssd.attention`. Exported graphs use the matrix
products of `eager`, which every runtime supports.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveal.ops.native import library
from foveal.ops.native import why_not as not_installed
from foveal.ops.ssd.attention import attend_gradients

__all__ = ["attend_native", "missing", "why_not"]


def why_not(x: Tensor) -> str | None:
    """Why the kernel cannot run.

    Args:
        x: input of the call.

    Returns:
        None if it can, else the reason and what to do.
    """
    return _unfit(x) or not_installed()


def missing(x: Tensor) -> bool:
    """Whether the kernel could run this call if it were installed.

    Args:
        x: input of the call.

    Returns:
        True if nothing else prevents it.
    """
    return _unfit(x) is None and not_installed() is not None


def _unfit(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it is for tensors on the CPU, and x is on {x.device}"
    if x.dtype == torch.float64:
        return "it computes in float32, and x is float64"
    if torch.compiler.is_exporting():
        return "an exported graph must hold torch's own operators"
    return None


@torch.library.custom_op("foveal::decayed_attention", mutates_args=(), device_types="cpu")
def _attend(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, start: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    from foveal_kernels.calls import Attention

    found = library()
    assert found is not None  # guaranteed by `why_not`
    given = [t.contiguous() for t in (q, k, v, rates, start)]
    (batch, length, heads), states, channels = rates.shape, q.shape[3], v.shape[3]
    made = v.new_empty(batch, length, heads, channels), v.new_empty(start.shape)
    shape = (batch, length, heads, q.shape[2], k.shape[2], v.shape[2], states, channels, int(backward))
    call = Attention(*shape, *(t.data_ptr() for t in (*given, *made)))
    if found.foveal_decayed_attention(ctypes.byref(call), torch.get_num_threads()):
        raise MemoryError("out of memory in ssd; use a smaller batch")
    return made


@_attend.register_fake
def _(
    q: Tensor,  # noqa: ARG001
    k: Tensor,  # noqa: ARG001
    v: Tensor,
    rates: Tensor,
    start: Tensor,
    backward: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return v.new_empty(*rates.shape, v.shape[3]), v.new_empty(start.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.backward = inputs[5]


def _gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    return *attend_gradients(_attend, saved[:5], saved[5:], gradients, ctx.backward), None  # type: ignore[arg-type]


_attend.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.foveal.decayed_attention)
def _flops(
    q: tuple[int, ...],
    k: tuple[int, ...],  # noqa: ARG001
    v: tuple[int, ...],
    rates: tuple[int, ...],
    *_: Any,
    **__: Any,
) -> int:
    batch, length, heads = rates
    return 2 * 3 * batch * length * heads * q[3] * v[3]


def attend_native(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """F in forward time, with the compiled kernel.

    Args:
        q: queries, (batch, length, groups, states).
        k: keys, (batch, length, groups, states).
        v: values, (batch, length, groups, channels).
        rates: log decays, (batch, length, heads).
        start: state before the first step, (batch, heads, states, channels).

    Returns:
        y, (batch, length, heads, channels), and the last state, (batch, heads, states, channels).
    """
    return _attend(q, k, v, rates, start, False)
