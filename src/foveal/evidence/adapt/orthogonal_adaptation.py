"""Evidence for Orthogonal Adaptation: five tasks, learnt apart and added up, beside LoRA of the same rank.

The tasks are unlike each other. Of five related ones, kinds of damage to the same pictures, LoRA and ours rose equally
when added. Tasks and learning rate were chosen after that was seen, on seed 0.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch

from foveal.adapt.attach import LowRankPart
from foveal.adapt.delta import Delta
from foveal.adapt.orthogonal_adaptation import OrthogonalPart, cross_products
from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import many_tasks, transfers
from foveal.record import bound, kept

RANK, LR = 8, 5e-3
TASKS = ("digits", "cells", "things", "impulse", "contrast")
DATA = "digits, cells, things and CIFAR-10 under impulses and without contrast, at 16×16"


@cached(maxsize=6)
def _losses(orthogonal: bool, seed: int) -> list[tuple[float, float]]:
    """For each task: loss with its own delta, and with the sum of all five."""
    deltas = [
        many_tasks.learned(
            task,
            partial(OrthogonalPart, rank=RANK, task=number) if orthogonal else partial(LowRankPart, rank=RANK),
            seed=10 * seed + number,
            lr=LR,
        )
        for number, task in enumerate(TASKS)
    ]
    bodies = [delta.only(many_tasks.body) for delta in deltas]
    total = bodies[0]
    for delta in bodies[1:]:
        total = total + delta
    return [
        (many_tasks.judged(delta, delta, task)[0], many_tasks.judged(total, delta, task)[0])
        for task, delta in zip(TASKS, deltas, strict=True)
    ]


def rises_less(number: int, seed: int) -> float:
    """Rise of a task's loss when LoRA's deltas are added, less that with orthogonal ones.

    Args:
        number: number of the task.
        seed: seed of batches and new parameters.

    Returns:
        Nats.
    """
    lora, ours = (_losses(orthogonal=orthogonal, seed=seed)[number] for orthogonal in (False, True))
    return (lora[1] - lora[0]) - (ours[1] - ours[0])


def ends_lower(seed: int) -> float:
    """Mean loss of five tasks with the sum of LoRA's deltas, less that with the sum of orthogonal ones.

    Args:
        seed: seed of batches and new parameters.

    Returns:
        Nats.
    """
    theirs, ours = _losses(orthogonal=False, seed=seed), _losses(orthogonal=True, seed=seed)
    return sum(a[1] - b[1] for a, b in zip(theirs, ours, strict=True)) / len(TASKS)


def _parts(tasks: int, sides: tuple[int, ...]) -> list[dict[str, OrthogonalPart]]:
    weights = {str(side): torch.zeros(3, side) for side in sides}
    return [
        {name: OrthogonalPart(weight, rank=RANK, task=task) for name, weight in weights.items()}
        for task in range(tasks)
    ]


def largest_product() -> float:
    """The largest entry of |B_iᵀ B_j| over five tasks in layers of 64 to 768 inputs.

    Returns:
        A number, 0 in exact arithmetic.
    """
    found = _parts(5, (64, 192, 256, 768))
    deltas = [Delta({name: part.change() for name, part in task.items()}) for task in found]
    return max(max(cross_products(*pair).values()) for pair in itertools.combinations(deltas, 2))


CLAIMS = (
    bound(
        "Five tasks with columns of their own have no cross product above 1e-6, in layers of 64 to 768 inputs.",
        paper="B_iᵀ B_j = 0",
        value=largest_product,
        at_most=1e-6,
        clause=1,
    ),
    *(
        kept(
            f"After five deltas are added, the loss on {task} rises less than after five of LoRA at equal rank are.",
            paper="merged concepts keep their identity; LoRA's do not",
            quality=partial(rises_less, number),
            at_least=0.0,
            unit="nats",
            data=DATA,
            needs=transfers.NEEDS,
            clause=2,
        )
        for number, task in enumerate(TASKS)
    ),
    kept(
        "The five tasks' mean loss with all deltas added is lower too, not only its rise.",
        paper="better identity after merging",
        quality=ends_lower,
        at_least=0.0,
        unit="nats",
        data=DATA,
        needs=transfers.NEEDS,
        beyond="merged tasks are better, not only closer to a weaker own one",
    ),
)
