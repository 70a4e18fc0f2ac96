"""A small Vim trained on CIFAR-10: the state-space model on which transforms are tested, with 4,000 test pictures.

Accuracy is in percent; the floor is chance, 10 %.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10
from foveal.models.backbone.vim import vim
from foveal.record import kept

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foveal.record import Claim
    from foveal.shrink.step import Step

__all__ = ["DATA", "NEEDS", "calibration", "difference", "trained", "transformed"]

NEEDS = cifar10.NEEDS
STEPS = 500
DATA = f"CIFAR-10, 4,000 test pictures; {STEPS} steps, calibrated on 512 training pictures"
small_vim = partial(vim, 64, depth=4, state=8, patch_size=4, grid=(8, 8), num_classes=10)


def trained(seed: int) -> nn.Module:
    """The trained network; do not modify it.

    Args:
        seed: seed of weights and batches.

    Returns:
        Network, (B, 3, 32, 32) to (B, 10), in eval mode.
    """
    return cifar10.trained(small_vim, steps=STEPS, seed=seed)


def calibration() -> Tensor:
    """Calibration pictures for transforms.

    Returns:
        Training pictures, (512, 3, 32, 32).
    """
    return cifar10.pictures("train")[0][:512]


@cached(maxsize=24)
def accuracy(seed: int, step: Step | None) -> float:
    """Accuracy after a step.

    Args:
        seed: seed of the network, see `trained`.
        step: step to apply to the trained network; None for none.

    Returns:
        Accuracy on 4,000 test pictures, percent.
    """
    return cifar10.accuracy(transformed(seed, step), cifar10.pictures("test", limit=4000))


def transformed(seed: int, step: Step | None) -> nn.Module:
    """A copy of the trained network after a step.

    Args:
        seed: seed of the network, see `trained`.
        step: step to apply to it; None for none.

    Returns:
        Transformed network.
    """
    model = copy.deepcopy(trained(seed))
    return model if step is None else step.apply(model, calibration())


def difference(says: str, step: Step, *, than: Step | None, at_least: float, paper: str, **words: Any) -> Claim:
    """`kept`: accuracy after one step minus accuracy after another, with the same trained network.

    Args:
        says: promise, one sentence.
        step: step to test.
        than: rival step; None for the unchanged network.
        at_least: lower bound on the difference, percentage points.
        paper: the paper's value.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """
    return kept(
        says,
        paper=paper,
        quality=lambda seed: accuracy(seed, step) - accuracy(seed, than),
        at_least=at_least,
        unit="points",
        data=DATA,
        needs=NEEDS,
        **words,
    )
