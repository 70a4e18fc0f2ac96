"""The block-sparse linear layer with the compiled kernel, registered with torch for autograd and `torch.compile`.

kernels/cpp/block_sparse.cpp skips the blocks that are not stored. Gradients are computed in torch: that of x with the
whole weight, that of the values block by block. Exported graphs use torch's operators.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveal.ops.block_sparse.reference import Blocks, unpack_blocks
from foveal.ops.native import library
from foveal.ops.since import lacks

__all__ = ["block_linear_native", "missing", "why_not"]

WHOLE = 16  # the rows of a block must be a multiple of it


def why_not(x: Tensor, tall: int = WHOLE) -> str | None:
    """Why the kernel cannot run.

    Args:
        x: input of the call.
        tall: rows of a block.

    Returns:
        None if it can, else the reason and what to do.
    """
    return _unfit(x, tall) or lacks("foveal_block_sparse")


def missing(x: Tensor, tall: int = WHOLE) -> bool:
    """Whether the kernel could run this call if it were installed.

    Args:
        x: input of the call.
        tall: rows of a block.

    Returns:
        True if nothing else prevents it.
    """
    return _unfit(x, tall) is None and lacks("foveal_block_sparse") is not None


def _unfit(x: Tensor, tall: int) -> str | None:
    if x.device.type != "cpu":
        return f"it is for tensors on the CPU, and x is on {x.device}"
    if x.dtype != torch.float32:
        return f"it computes in float32, and x is {str(x.dtype).removeprefix('torch.')}"
    if tall % WHOLE:
        return f"it takes blocks of multiples of {WHOLE} rows, and they have {tall}"
    if torch.compiler.is_exporting():
        return "an exported graph must hold torch's own operators"
    return None


def _run(name: str, call: ctypes.Structure) -> None:
    found = library()
    assert found is not None  # guaranteed by `why_not`
    if getattr(found, name)(ctypes.byref(call), torch.get_num_threads()):
        raise MemoryError("out of memory in a block-sparse layer; use a smaller batch")


@torch.library.custom_op("foveal::block_linear", mutates_args=(), device_types="cpu")
def _linear(x: Tensor, values: Tensor, starts: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    from foveal_kernels.calls import BlockSparse

    (rows, width), (wide, tall) = x.shape, values.shape[1:]
    y = x.new_empty(rows, (len(starts) - 1) * tall)
    given = [t if t is None else t.contiguous() for t in (x, values, starts, columns, bias)]
    pointers = (None if t is None else t.data_ptr() for t in (*given, y))
    _run("foveal_block_sparse", BlockSparse(rows, width, y.shape[1], tall, wide, *pointers))
    return y


@_linear.register_fake
def _(x: Tensor, values: Tensor, starts: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], (starts.shape[0] - 1) * values.shape[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:4])


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, values, starts, columns = ctx.saved_tensors
    of_x = of_values = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = gradient @ unpack_blocks(Blocks(values, starts, columns), x.shape[1])
    if ctx.needs_input_grad[1]:
        wide, tall = values.shape[1:]
        rows = starts.shape[0] - 1
        at = torch.repeat_interleave(torch.arange(rows, device=x.device), starts.diff(), output_size=len(values))
        # (n, M, wide) and (n, M, tall)
        ins = x.unflatten(1, (-1, wide)).transpose(0, 1)[columns]
        outs = gradient.unflatten(1, (-1, tall)).transpose(0, 1)[at]
        of_values = ins.mT @ outs
    if ctx.needs_input_grad[4]:
        of_bias = gradient.sum(0)
    return of_x, of_values, None, None, of_bias


_linear.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.foveal.block_linear)
def _flops(x: tuple[int, ...], values: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * x[0] * values[0] * values[1] * values[2]


def block_linear_native(x: Tensor, blocks: Blocks, bias: Tensor | None) -> Tensor:
    """`block_linear_reference` with the compiled kernel.

    Args:
        x: inputs, (…, K), float32.
        blocks: the packed weight.
        bias: bias, (N,), or None.

    Returns:
        Outputs, (…, N).
    """
    y = _linear(x.reshape(-1, x.shape[-1]), *blocks, bias)
    return y.view(*x.shape[:-1], y.shape[1])
