"""Orthogonal Adaptation: low-rank changes of different tasks read different directions, so that their sum keeps them.

*Source*: R. Po et al., "Orthogonal Adaptation for Modular Customization of Diffusion Models", CVPR 2024
(arXiv:2312.02432), section 4. The change of task i in a layer of n inputs is

    ΔW_i = A_i B_iᵀ,   A_i: (C_out, r), learnt from zero,   B_i: (n, r), r columns of one orthogonal O: (n, n), held

and merging is the plain sum Σ_i ΔW_i. For disjoint columns B_iᵀ B_j = 0, so that ΔW_i ΔW_jᵀ = 0 and inputs in the span
of B_i meet no other task's change. Nobody needs to see the other tasks: the paper draws the columns at random, so that
two tasks share r²/n of them on average. With a number for each task they are disjoint for certain.

*Differs from the paper*: B_i is scaled by 1/√3, the norm of LoRA's factor at first, so that one learning rate suits
both. Columns can be chosen by a task's number, besides at random. The model is a classifier in place of a diffusion
model, and the factors of the sum are 1 unless deltas are scaled.

*Provenance*: written from the paper, which names no code.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.adapt.delta import LowRank
from foveal.adapt.learned import attached
from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from foveal.adapt.delta import Delta
    from foveal.adapt.methods import Pictures

__all__ = ["OrthogonalPart", "columns_of", "cross_products", "orthogonal_adaptation", "orthogonal_basis"]

SCALE = 3**-0.5  # norm of a row of LoRA's inner factor at first, so that one learning rate suits both


@lru_cache(maxsize=32)
def orthogonal_basis(size: int, *, seed: int = 0) -> Tensor:
    """An orthogonal matrix that everybody draws alike.

    Args:
        size: n, at least 1.
        seed: seed of the matrix.

    Returns:
        O, (n, n), float32; do not modify it.
    """
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    return (q * r.diagonal().sign()).float()  # the signs make it uniform, and the same for every LAPACK


def columns_of(size: int, rank: int, *, task: int | None = None, seed: int = 0) -> Tensor:
    """Which columns of the basis a task takes.

    Args:
        size: n.
        rank: r, in 1…n.
        task: number of the task, below n / r; different numbers take disjoint columns. None draws them.
        seed: seed of the draw.

    Returns:
        Indices, (r,).

    Raises:
        ValueError: a rank outside 1…n, or a task for which no columns are left.
    """
    if not 1 <= rank <= size:
        raise ValueError(f"rank must be in 1…{size} for {size} inputs, got {rank}")
    if task is None:
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:rank]
    if not 0 <= task < size // rank:
        raise ValueError(
            f"task must be in 0…{size // rank - 1} for columns of its own ({size} inputs, rank {rank}), got {task}; "
            "lower the rank, or draw the columns with task=None"
        )
    return torch.arange(rank) + rank * task


class OrthogonalPart(nn.Module):
    """W + up · down, equal to W at first; `down` is a buffer, scaled rows of a shared orthogonal matrix.

    Args:
        weight: frozen weight, (C_out, C_in) or (C_out, C_in, k, k).
        rank: r, in 1…C_in·k·k.
        task: number of the task; None draws the columns.
        seed: seed of the draw.
        basis: seed of the orthogonal matrix, the same for all tasks that are to be added.
    """

    down: Tensor

    def __init__(
        self, weight: Tensor, *, rank: int = 4, task: int | None = None, seed: int = 0, basis: int = 0
    ) -> None:
        super().__init__()
        size = math.prod(weight.shape[1:])
        chosen = columns_of(size, rank, task=task, seed=seed)
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.register_buffer("down", SCALE * orthogonal_basis(size, seed=basis).T[chosen].to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Add the change.

        Args:
            weight: W.

        Returns:
            W + ΔW, of the same shape.
        """
        return weight + (self.up @ self.down).view_as(weight)

    def change(self) -> LowRank:
        """See `foveal.adapt.attach.Part`.

        Returns:
            The factors.
        """
        return LowRank(self.up.detach(), self.down.clone())


def cross_products(first: Delta, second: Delta) -> dict[str, float]:
    """How much two deltas read the same directions.

    Args:
        first: delta of one task.
        second: delta of another one.

    Returns:
        Name of each tensor that has a low-rank change in both → largest entry of |B_1ᵀ B_2|; 0 for disjoint columns.
    """
    found = {}
    for name, one in first.changes.items():
        two = second.changes.get(name)
        if isinstance(one, LowRank) and isinstance(two, LowRank):
            found[name] = float((one.down.double() @ two.down.double().T).abs().max())
    return found


def orthogonal_adaptation(
    model: nn.Module,
    pictures: Pictures,
    *,
    steps: int = 200,
    seed: int = 0,
    task: int | None = None,
    rank: int = 4,
    lr: float = 3e-3,
    num_classes: int | None = None,
) -> Delta:
    """Adapt a classifier by a delta that is to be added to those of other tasks.

    Args:
        model: classifier; it stays as it is.
        pictures: pictures with labels.
        steps: number of steps.
        seed: seed of the batches, and of the columns if they are drawn: take another one for each task.
        task: number of the task; None draws the columns.
        rank: r; layers with fewer inputs take as many.
        lr: peak learning rate.
        num_classes: number of classes; None for the model's.

    Returns:
        What would change; a head in it belongs to this task alone, so leave it out of sums by `only`.
    """

    def make(weight: Tensor) -> OrthogonalPart:
        return OrthogonalPart(weight, rank=min(rank, weight[0].numel()), task=task, seed=seed)

    return attached(model, pictures, make, method="orthogonal", steps=steps, lr=lr, seed=seed, num_classes=num_classes)


def _summed(seed: int) -> Tensor:
    """What five tasks add up to on an input that only the third one reads."""
    weight = torch.zeros(6, 20)
    parts = [OrthogonalPart(weight, rank=3, task=task) for task in range(5)]
    generator = torch.Generator().manual_seed(seed)
    for part in parts:
        nn.init.normal_(part.up, generator=generator)
    total = sum((part.change().difference() for part in parts), weight)
    return total @ parts[2].down.T


METHOD = Method(
    id=78,
    name="Orthogonal Adaptation",
    kind="procedure",
    summary="Low-rank changes of different tasks read orthogonal directions, so that they add up without cross-talk.",
    paper=Paper(
        "Orthogonal Adaptation for Modular Customization of Diffusion Models", "R. Po et al.", 2024, "arXiv:2312.02432"
    ),
    cases={"sum": Procedure(_summed, partial(columns_of, 0, 1), "rank must be in 1…0 for 0 inputs, got 1")},
)
