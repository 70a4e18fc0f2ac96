"""CIFAR-10 at half its size, 16×16 pictures: a quarter of the work where comparisons take many students.

Teachers, students and rivals all see the same small pictures. The floor is chance, 10 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import resnet20
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["NEEDS", "accuracy", "pictures", "teacher"]

NEEDS = cifar10.NEEDS
TEACHER_STEPS = 1500


@cached(maxsize=4)
def pictures(part: str, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The pictures of CIFAR-10, averaged over 2×2 pixels.

    Args:
        part: "train" or "test".
        limit: number of pictures to take from the start (they are shuffled); None takes all.

    Returns:
        Pictures, (n, 3, 16, 16), normalised as in `cifar10.pictures`, channels last in memory; labels, (n,) int64.
    """
    x, labels = cifar10.pictures(part, limit=limit)
    return F.avg_pool2d(x, 2).contiguous(memory_format=torch.channels_last), labels


def accuracy(model: nn.Module, *, limit: int = 2000) -> float:
    """Accuracy on the first test pictures.

    Args:
        model: network, (B, 3, 16, 16) to (B, 10).
        limit: number of test pictures.

    Returns:
        Accuracy, percent.
    """
    return cifar10.accuracy(model, pictures("test", limit=limit))


@cached(maxsize=4)
def teacher(
    build: Callable[[], nn.Module] = resnet20,
    *,
    name: str = "resnet20",
    steps: int = TEACHER_STEPS,
    seed: int = 100,
    lr: float = 2e-3,
) -> nn.Module:
    """A trained teacher, kept in the cache.

    Args:
        build: builder of the network, (B, 3, 16, 16) to (B, 10).
        name: text that tells the network from others, with its sizes.
        steps: number of steps of 64 pictures.
        seed: seed of weights and batches.
        lr: peak learning rate.

    Returns:
        The teacher in eval mode; do not modify it.
    """
    return trained_once(
        build,
        lambda: cifar10.train_classifier(build, steps=steps, seed=seed, lr=lr, data=pictures("train")),
        modules=[__name__, "foveal.evidence.rivals.small"],
        key=f"half-size teacher {name} steps {steps} seed {seed} lr {lr}",
    )
