"""A linear layer with a weight of dense blocks, most of them zero, in plain torch, and the packing of its weight.

    y = x Wᵀ + b,  W (N, K) of blocks of `tall` rows and `wide` columns                  (1)

Packed, W is the blocks that are kept, along rows of blocks, each (wide, tall): `values` (n, wide, tall); the number of
each one's column of blocks, `columns` (n,), ascending in a row; and where each row of blocks starts, `starts`
(N/tall + 1,).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.ops.backends import ShapeError, check_shape

__all__ = ["Blocks", "block_linear_reference", "pack_blocks", "unpack_blocks"]


class Blocks(NamedTuple):
    """A packed weight.

    Args:
        values: the kept blocks, (n, wide, tall).
        starts: number of the first block of each row of blocks, and n, (N/tall + 1,) int64.
        columns: column of blocks of each block, (n,) int64.
    """

    values: Tensor
    starts: Tensor
    columns: Tensor


def pack_blocks(weight: Tensor, block: tuple[int, int]) -> Blocks:
    """Keep the blocks of a weight that are not all zero.

    Args:
        weight: weight, (N, K).
        block: rows and columns of a block; must divide the weight.

    Returns:
        The packed weight.

    Raises:
        ShapeError: blocks that do not divide the weight.
    """
    tall, wide = block
    if weight.ndim != 2 or tall < 1 or wide < 1 or weight.shape[0] % tall or weight.shape[1] % wide:
        raise ShapeError(
            f"a weight of {tuple(weight.shape)} does not divide into blocks of {block}; choose other blocks"
        )
    # (rows of blocks, columns of blocks, wide, tall)
    blocks = weight.unflatten(0, (-1, tall)).unflatten(2, (-1, wide)).permute(0, 2, 3, 1)
    kept = (blocks != 0).any(-1).any(-1)
    starts = F.pad(kept.sum(1).cumsum(0), (1, 0))
    return Blocks(blocks[kept].contiguous(), starts, kept.nonzero()[:, 1].contiguous())


def unpack_blocks(blocks: Blocks, width: int) -> Tensor:
    """The inverse of `pack_blocks`.

    Args:
        blocks: the packed weight.
        width: number of inputs, K.

    Returns:
        Weight, (N, K), with gradients to the values.
    """
    values, starts, columns = blocks
    wide, tall = values.shape[1:]
    rows = starts.shape[0] - 1
    at = torch.repeat_interleave(torch.arange(rows, device=starts.device), starts.diff(), output_size=len(values))
    whole = values.new_zeros(rows * (width // wide), wide, tall)
    whole = whole.index_copy(0, at * (width // wide) + columns, values)
    # (rows of blocks, columns of blocks, wide, tall) to (N, K)
    return whole.unflatten(0, (rows, -1)).permute(0, 3, 1, 2).reshape(rows * tall, width)


def check(x: Tensor, blocks: Blocks, bias: Tensor | None) -> None:
    """Check shapes.

    Args:
        x: inputs, (…, K).
        blocks: the packed weight.
        bias: bias, (N,), or None.

    Raises:
        ShapeError: shapes that do not fit.
    """
    values, starts, columns = blocks
    if values.ndim != 3 or starts.ndim != 1 or not len(starts):
        raise ShapeError(
            f"blocks must be values (n, wide, tall), starts (rows + 1,) and columns (n,), got {tuple(values.shape)}, "
            f"{tuple(starts.shape)} and {tuple(columns.shape)}; make them by pack_blocks"
        )
    check_shape("columns", columns, (len(values),), "one for each block")
    if x.ndim < 1 or x.shape[-1] % values.shape[1]:
        raise ShapeError(f"x must be (…, K) with K a multiple of {values.shape[1]}, got {tuple(x.shape)}")
    if bias is not None:
        check_shape("bias", bias, ((len(starts) - 1) * values.shape[2],), "one value for each output")


def block_linear_reference(x: Tensor, blocks: Blocks, bias: Tensor | None) -> Tensor:
    """Equation 1, with the whole weight.

    Args:
        x: inputs, (…, K).
        blocks: the packed weight.
        bias: bias, (N,), or None.

    Returns:
        Outputs, (…, N).
    """
    return F.linear(x, unpack_blocks(blocks, x.shape[-1]), bias)
