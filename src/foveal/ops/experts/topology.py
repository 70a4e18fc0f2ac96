"""Products with block-sparse matrices whose blocks' places are drawn up anew for every batch.

A matrix S of R × C blocks of b × b numbers stores n blocks, in the order of its rows: values, (n, b, b). Its topology
tells where they stand, by rows and by columns at once, so that S and Sᵀ are read from one copy of the values:

    sdd(x, w)   S = x wᵀ, the stored blocks alone      x (R·b, K), w (C·b, K)    (1)
    dsd(S, d)   S d                                    d (C·b, M) to (R·b, M)    (2)
    dsd(S, d, transpose=True)   Sᵀ d                   d (R·b, M) to (C·b, M)    (3)

The gradients of each are the others: of (1) dx = dS w and dw = dSᵀ x; of (2) dS = dy dᵀ and dd = Sᵀ dy. A product runs
over runs of rows (or columns) of blocks that store the same columns (rows), one matrix product a run; the rows of an
expert are one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.ops.backends import ShapeError, check_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Topology", "block_diagonal", "dsd", "from_mask", "sdd", "unpack"]


class Topology(NamedTuple):
    """Where the blocks of a matrix stand: compressed rows with the row of each block, and the transpose.

    Args:
        block: side of a block, b.
        offsets: first block of each row of blocks, (R + 1,) int64.
        rows: row of each block, (n,) int64.
        columns: column of each block, (n,) int64, ascending in a row.
        column_offsets: first block of each column in the order of the columns, (C + 1,) int64.
        transposed: the blocks in the order of the columns, (n,) int64.
    """

    block: int
    offsets: Tensor
    rows: Tensor
    columns: Tensor
    column_offsets: Tensor
    transposed: Tensor


def from_mask(mask: Tensor, block: int) -> Topology:
    """Topology of a matrix given by which of its blocks are stored.

    Args:
        mask: True for stored blocks, (R, C).
        block: side of a block, b.

    Returns:
        The topology.

    Raises:
        ShapeError: a mask of other than two axes.
        ValueError: an empty block.

    Example:
        >>> import torch
        >>> from foveal.ops.experts.topology import from_mask
        >>> from_mask(torch.tensor([[True, True], [True, False]]), 16).transposed
        tensor([0, 2, 1])
    """
    if mask.ndim != 2:
        raise ShapeError(f"mask must be (rows of blocks, columns of blocks), got {tuple(mask.shape)}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    rows, columns = mask.nonzero().unbind(1)
    offsets, column_offsets = (F.pad(mask.sum(axis).cumsum(0), (1, 0)) for axis in (1, 0))
    return Topology(block, offsets, rows, columns, column_offsets, columns.argsort(stable=True))


def block_diagonal(sizes: Sequence[int], width: int, block: int, *, device: torch.device | str = "cpu") -> Topology:
    """Topology of the hidden layer of experts: the rows of each meet the columns of that expert alone.

    Args:
        sizes: number of rows of each expert, E numbers; each is filled up to a multiple of the block.
        width: columns of an expert, a multiple of the block.
        block: side of a block, b.
        device: device of the indices.

    Returns:
        The topology.

    Raises:
        ValueError: a width that the block does not divide, or an empty block.
    """
    if block < 1 or width % block:
        raise ValueError(f"width must be a multiple of the block, got {width} and {block}; choose another block")
    tall = torch.tensor([-(-size // block) for size in sizes], device=device)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), tall)
    across = torch.arange(len(sizes), device=device).repeat_interleave(width // block)
    return from_mask(owner[:, None] == across, block)


def unpack(values: Tensor, topology: Topology) -> Tensor:
    """The whole matrix.

    Args:
        values: stored blocks, (n, b, b).
        topology: their places.

    Returns:
        Matrix, (R·b, C·b).
    """
    rows, columns = len(topology.offsets) - 1, len(topology.column_offsets) - 1
    whole = values.new_zeros(rows * columns, *values.shape[1:])
    whole = whole.index_copy(0, topology.rows * columns + topology.columns, values)
    # (R, C, b, b) to (R·b, C·b)
    return whole.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2).flatten(0, 1)


class _Run(NamedTuple):
    """Rows first to last of blocks that store the same columns, and their blocks, from `start` on."""

    first: int
    last: int
    columns: list[int]
    start: int


def _runs(offsets: Tensor, columns: Tensor) -> list[_Run]:
    found: list[_Run] = []
    listed = columns.tolist()
    for row, (start, end) in enumerate(pairwise(offsets.tolist())):
        own = listed[start:end]
        if found and found[-1].last == row and found[-1].columns == own:
            found[-1] = found[-1]._replace(last=row + 1)
        elif own:
            found.append(_Run(row, row + 1, own, start))
    return found


def _picked(dense: Tensor, blocks: list[int], block: int) -> Tensor:
    """Some blocks of rows of a dense matrix, as a view where they follow each other."""
    first, count = blocks[0], len(blocks)
    if blocks[-1] - first + 1 == count:
        return dense[first * block : (first + count) * block]
    return dense.unflatten(0, (-1, block))[blocks].flatten(0, 1)


def _span(run: _Run) -> slice:
    return slice(run.start, run.start + (run.last - run.first) * len(run.columns))


class _SDD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, topology: Topology) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.topology = topology
        b = topology.block
        values = x.new_empty(len(topology.columns), b, b)
        for run in _runs(topology.offsets, topology.columns):
            made = x[run.first * b : run.last * b] @ _picked(w, run.columns, b).t()
            # (rows·b, columns·b) to (rows, columns, b, b)
            blocks = made.view(-1, b, len(run.columns), b).transpose(1, 2)
            values[_span(run)].view(blocks.shape).copy_(blocks)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        of_x = dsd(gradient, w, ctx.topology) if ctx.needs_input_grad[0] else None
        of_w = dsd(gradient, x, ctx.topology, transpose=True) if ctx.needs_input_grad[1] else None
        return of_x, of_w, None


class _DSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, topology: Topology, transpose: bool) -> Tensor:
        ctx.save_for_backward(values, dense)
        ctx.said = topology, transpose
        b, over = topology.block, topology.column_offsets if transpose else topology.offsets
        y = dense.new_zeros((len(over) - 1) * b, dense.shape[1])
        for run in _runs(over, topology.rows[topology.transposed] if transpose else topology.columns):
            blocks = values[topology.transposed[_span(run)]] if transpose else values[_span(run)]
            blocks = blocks.view(run.last - run.first, -1, b, b)
            # (rows, b, columns, b), or of the transpose
            blocks = blocks.permute(0, 3, 1, 2) if transpose else blocks.transpose(1, 2)
            left = blocks.reshape(-1, len(run.columns) * b)
            torch.mm(left, _picked(dense, run.columns, b), out=y[run.first * b : run.last * b])
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, dense = ctx.saved_tensors
        topology, transpose = ctx.said
        of_values = of_dense = None
        if ctx.needs_input_grad[0]:
            of_values = sdd(dense, gradient, topology) if transpose else sdd(gradient, dense, topology)
        if ctx.needs_input_grad[1]:
            of_dense = dsd(values, gradient, topology, transpose=not transpose)
        return of_values, of_dense, None, None


def sdd(x: Tensor, w: Tensor, topology: Topology) -> Tensor:
    """The stored blocks of x wᵀ, equation 1.

    Args:
        x: rows, (R·b, K).
        w: columns, (C·b, K).
        topology: places of the blocks.

    Returns:
        Values, (n, b, b).

    Raises:
        ShapeError: shapes that do not fit the topology.
    """
    b = topology.block
    check_shape("x", x, ((len(topology.offsets) - 1) * b, x.shape[-1]), "the rows of the topology")
    check_shape("w", w, ((len(topology.column_offsets) - 1) * b, x.shape[-1]), "the columns of the topology")
    made: Tensor = _SDD.apply(x, w, topology)  # type: ignore[no-untyped-call]
    return made


def dsd(values: Tensor, dense: Tensor, topology: Topology, *, transpose: bool = False) -> Tensor:
    """Product of a block-sparse matrix, or its transpose, and a dense one, equations 2 and 3.

    Args:
        values: stored blocks, (n, b, b).
        dense: (C·b, M), or (R·b, M) for the transpose.
        topology: places of the blocks.
        transpose: whether the sparse matrix is transposed.

    Returns:
        (R·b, M), or (C·b, M) for the transpose.

    Raises:
        ShapeError: shapes that do not fit the topology.
    """
    b = topology.block
    over = topology.offsets if transpose else topology.column_offsets
    check_shape("values", values, (len(topology.columns), b, b), "the blocks of the topology")
    check_shape("dense", dense, ((len(over) - 1) * b, dense.shape[-1]), "the inner side of the product")
    made: Tensor = _DSD.apply(values, dense, topology, transpose)  # type: ignore[no-untyped-call]
    return made
