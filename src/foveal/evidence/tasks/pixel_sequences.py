"""Handwritten digits read pixel by pixel: MNIST at 14×14, row after row, 196 numbers of one channel.

Nothing says which pixels are neighbours in a column, so a network must look back 14, 28, … steps. `SequenceNet` is the
scaffold of rows that are about one operator over sequences: everything but the mixer is equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10, mnist

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LENGTH", "NEEDS", "SequenceNet", "accuracy", "halved", "sequences"]

NEEDS = mnist.NEEDS
SIDE = 14
LENGTH = SIDE**2


def halved(pictures: Tensor) -> Tensor:
    """Means of 2×2 pixels about zero mean and unit variance.

    Args:
        pictures: (n, 28, 28), values in 0…255.

    Returns:
        (n, 1, 14, 14).
    """
    return (F.avg_pool2d(pictures[:, None].float() / 255, 2) - 0.13) / 0.27


@cached(maxsize=2)
def sequences(part: str) -> tuple[Tensor, Tensor]:
    """Digits of a part as sequences.

    Args:
        part: "train" or "test".

    Returns:
        Sequences, (n, 1, 196), and labels, (n,) of int64.
    """
    pictures, labels = mnist.digits(part)
    return halved(torch.from_numpy(pictures)).flatten(2), torch.from_numpy(labels)


class _Block(nn.Module):
    """x + gelu(W gelu(mixer(norm x))): (B, C, L) to the same."""

    def __init__(self, dim: int, mixer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm, self.mixer, self.linear = nn.BatchNorm1d(dim), mixer(dim), nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.linear(F.gelu(self.mixer(self.norm(x)))))


class SequenceNet(nn.Module):
    """A small classifier of sequences whose blocks mix places by one operator: (B, 1, L) to (B, 10).

    Args:
        mixer: builder of the operator, from channels to a module (B, C, L) to the same.
        dim: C.
        depth: number of blocks.
    """

    def __init__(self, mixer: Callable[[int], nn.Module], dim: int = 32, *, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, dim, 1)
        self.blocks = nn.Sequential(*(_Block(dim, mixer) for _ in range(depth)))
        self.norm, self.head = nn.BatchNorm1d(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: sequences, (B, 1, L).

        Returns:
            Logits, (B, 10).
        """
        return self.head(self.norm(self.blocks(self.stem(x))).mean(2))


@cached(maxsize=24)
def accuracy(build: Callable[[], nn.Module], *, steps: int, seed: int, lr: float = 1e-2) -> float:
    """Train a network on the sequences and count.

    Args:
        build: builder of the network, (B, 1, 196) to (B, 10).
        steps: number of steps of 64 sequences.
        seed: seed of weights and batches.
        lr: peak learning rate.

    Returns:
        Accuracy on the 10,000 test digits, percent.
    """
    network = cifar10.train_classifier(
        build, steps=steps, seed=seed, data=sequences("train"), flip=False, lr=lr, weight_decay=0.0
    )
    return cifar10.accuracy(network, sequences("test"), batch=500)
