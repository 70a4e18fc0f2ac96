"""Digits of MNIST, turned by up to 60°, at 0.5 to 1.1 of their size and shifted: accuracy in percent on 1,000.

6,000 training pictures of 28×28; each digit is turned once, so that all networks see the same pictures.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10, mnist

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["NEEDS", "pictures", "score"]

NEEDS = mnist.NEEDS
COUNT = {"train": 6000, "test": 1000}


@cached(maxsize=2)
def pictures(part: str) -> tuple[Tensor, Tensor]:
    """Turned digits.

    Args:
        part: "train" or "test".

    Returns:
        Pictures, (n, 1, 28, 28), about zero mean and unit variance; labels, (n,) int64.

    Raises:
        DataError: the data is not on this machine.
    """
    shown, labels = mnist.digits(part)
    x = torch.from_numpy(shown[: COUNT[part]]).float()[:, None] / 255
    generator = torch.Generator().manual_seed(COUNT[part])
    turn, size, down, across = torch.rand(4, len(x), generator=generator)
    turn, size = (2 * turn - 1) * math.pi / 3, 0.5 + 0.6 * size
    cos, sin = turn.cos() / size, turn.sin() / size
    rows = torch.stack([cos, -sin, 0.4 * across - 0.2, sin, cos, 0.4 * down - 0.2], 1).view(-1, 2, 3)
    turned = F.grid_sample(x, F.affine_grid(rows, list(x.shape), align_corners=False), align_corners=False)
    return (turned - 0.1) / 0.25, torch.from_numpy(labels[: COUNT[part]])


@cached(maxsize=32)
def score(build: Callable[[], nn.Module], *, steps: int, seed: int) -> float:
    """Accuracy of a network after a short training on batches of 64.

    Args:
        build: builder of the network, (B, 1, 28, 28) to (B, 10).
        steps: number of training steps.
        seed: seed of weights and batches.

    Returns:
        Percent of the test pictures.
    """
    model = cifar10.train_classifier(
        build, steps=steps, seed=seed, data=pictures("train"), flip=False, lr=5e-3, weight_decay=0.01
    )
    return cifar10.accuracy(model, pictures("test"))
