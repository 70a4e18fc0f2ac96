"""Parity: is the number of ones in a sequence odd? Accuracy in percent on 2,000 sequences; sequences are drawn.

Each of 16 symbols is 1, 0 or blank with equal probability, as in the experiments of AdaTape. No symbol alone says
anything, so what is not counted is guessed. The floor is chance, 50 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["LENGTH", "NEEDS", "SYMBOLS", "accuracy", "sequences", "trained"]

NEEDS = ("minutes",)
LENGTH, SYMBOLS = 16, 3
TEST = 2 * 10**6  # seed of the test sequences


def sequences(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences and whether their number of ones is odd.

    Args:
        count: number of sequences, n.
        seed: of the symbols.

    Returns:
        Sequences, one-hot for blank, 0 and 1, (n, 16, 3); labels, (n,) int64, 0 or 1.
    """
    symbols = torch.randint(SYMBOLS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(symbols, SYMBOLS).float(), (symbols == SYMBOLS - 1).sum(1) % 2


@cached(maxsize=16)
def trained(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor],
    *,
    steps: int,
    seed: int,
) -> nn.Module:
    """A network trained on 64 new sequences a step; claims about one network share it.

    Args:
        build: builder of the network, (B, 16, 3) to (B, 2).
        loss: function of network, and of sequences and labels.
        steps: number of steps.
        seed: seed of weights and sequences.

    Returns:
        The network in eval mode; do not modify it.
    """

    def batches(step: int) -> tuple[Tensor, Tensor]:
        return sequences(64, seed=10**4 * seed + step)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(build(), batches, loss, steps=steps, betas=(0.9, 0.98), clip=1.0)


def accuracy(model: nn.Module) -> float:
    """Share of the test sequences that the network classifies correctly.

    Args:
        model: network, (B, 16, 3) to (B, 2).

    Returns:
        Accuracy, percent.
    """
    x, labels = sequences(2000, seed=TEST)
    with torch.inference_mode():
        return 100 * float((model(x).argmax(1) == labels).float().mean())
