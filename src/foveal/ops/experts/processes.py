"""What the processes of a group tell each other, with gradients: gather, sum and share out, exchange.

Each of W processes holds n rows. Each function is the gradient of another:

    gathered    (n, …) to (W·n, …)    the rows of all, in the order of the ranks; backward: summed
    summed      (W·n, …) to (n, …)    own rows of the sum over all; backward: gathered
    exchanged   (W, …) to (W, …)      row r goes to process r; backward: exchanged

A group of None is one process alone, for which all three change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["exchanged", "gathered", "most", "place", "summed"]


def place(group: ProcessGroup | None) -> tuple[int, int]:
    """Where this process stands.

    Args:
        group: group of processes, or None.

    Returns:
        Rank and number of processes, W.
    """
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def most(count: int, group: ProcessGroup | None, *, device: torch.device | str = "cpu") -> int:
    """The largest of all processes' numbers.

    Args:
        count: number of this process.
        group: group of processes, or None.
        device: device that the group communicates on.

    Returns:
        The largest.
    """
    if group is None:
        return count
    shared = torch.tensor(count, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX, group)
    return int(shared)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        y = x.new_empty(dist.get_world_size(group) * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(y, x.contiguous(), group)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(gradient, ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        y = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
        dist.reduce_scatter_tensor(y, x.contiguous(), group=group)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gathered(gradient, ctx.group), None


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(y, x.contiguous(), group=group)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return exchanged(gradient, ctx.group), None


def gathered(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The rows of all processes.

    Args:
        x: rows of this process, (n, …), of one shape in all.
        group: group of processes, or None.

    Returns:
        Rows, (W·n, …), in the order of the ranks.
    """
    made: Tensor = x if group is None else _Gathered.apply(x, group)  # type: ignore[no-untyped-call]
    return made


def summed(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """This process's rows of the sum over all processes.

    Args:
        x: rows to add, (W·n, …), of one shape in all.
        group: group of processes, or None.

    Returns:
        Rows, (n, …).
    """
    made: Tensor = x if group is None else _Summed.apply(x, group)  # type: ignore[no-untyped-call]
    return made


def exchanged(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """All to all: row r goes to process r, and row s comes from process s.

    Args:
        x: one row for each process, (W, …).
        group: group of processes, or None.

    Returns:
        One row from each process, (W, …).
    """
    made: Tensor = x if group is None else _Exchanged.apply(x, group)  # type: ignore[no-untyped-call]
    return made
