"""Linear layers whose weight consists of dense blocks, most of them zero and not stored."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.ops.backends import Backend, check_alike, choose, in_full_precision, reasons
from foveal.ops.block_sparse.native import WHOLE, block_linear_native, missing, why_not
from foveal.ops.block_sparse.reference import Blocks, block_linear_reference, check, pack_blocks, unpack_blocks
from foveal.ops.native import tell_once

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Blocks", "block_linear", "explain", "pack_blocks", "unpack_blocks"]


def _backends(tall: int) -> tuple[Backend, ...]:
    return (
        Backend("native", block_linear_native, partial(why_not, tall=tall)),
        Backend("eager", block_linear_reference, lambda _: None),  # torch's own product serves as both
        Backend("reference", block_linear_reference, lambda _: None),
    )


def block_linear(x: Tensor, blocks: Blocks, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Linear layer with a packed weight: y = x Wᵀ + b.

    Args:
        x: inputs, (…, K).
        blocks: weight of `pack_blocks`, (N, K) when unpacked.
        bias: bias, (N,), or None.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Outputs, (…, N).

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the backend is unknown or the tensors are on two devices.
        BackendError: if the backend cannot run here.

    Example:
        >>> import torch
        >>> from foveal.ops.block_sparse import block_linear, pack_blocks
        >>> blocks = pack_blocks(torch.tensor([[0.0, 0.0, 1.0, 2.0]]), (1, 2))
        >>> block_linear(torch.ones(1, 4), blocks)
        tensor([[3.]])
    """
    check(x, blocks, bias)
    check_alike({"x": x, "blocks.values": blocks.values, "bias": bias})
    tall = blocks.values.shape[2]
    chosen = choose(_backends(tall), backend, x)
    if backend == "auto" and missing(x, tall):
        tell_once("block_linear")
    with in_full_precision(x):
        return chosen.run(x, blocks, bias)


def explain(x: Tensor | None = None, tall: int = WHOLE) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        x: input of the call; None stands for a float32 tensor on the CPU.
        tall: rows of a block.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(_backends(tall), torch.empty(1, 1) if x is None else x)
