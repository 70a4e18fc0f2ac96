"""A small Vim trained on CIFAR-10: the state-space model that transforms are tried on. 4,000 test pictures.

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
    """The trained network; not to be changed.

    Args:
        seed: seed of weights and batches.

    Returns:
        (B, 3, 32, 32) to (B, 10), in eval mode.
    """
    return cifar10.trained(small_vim, steps=STEPS, seed=seed)


def calibration() -> Tensor:
    """Pictures that a transform may look at.

    Returns:
        (512, 3, 32, 32), of the training.
    """
    return cifar10.pictures("train")[0][:512]


@cached(maxsize=24)
def accuracy(seed: int, step: Step | None) -> float:
    """Accuracy after a step.

    Args:
        seed: see `trained`.
        step: what is done to the trained network; None for nothing.

    Returns:
        Percent of 4,000 test pictures.
    """
    return cifar10.accuracy(transformed(seed, step), cifar10.pictures("test", limit=4000))


def transformed(seed: int, step: Step | None) -> nn.Module:
    """A copy of the trained network after a step.

    Args:
        seed: see `trained`.
        step: what is done to it; None for nothing.

    Returns:
        The network.
    """
    model = copy.deepcopy(trained(seed))
    return model if step is None else step.apply(model, calibration())


def difference(says: str, step: Step, *, than: Step | None, at_least: float, paper: str, **words: Any) -> Claim:
    """`kept`: accuracy after one step less accuracy after another, same trained network.

    Args:
        says: the promise.
        step: the step.
        than: the rival; None for the network as it was.
        at_least: points.
        paper: the paper's value.
        **words: `clause` or `beyond`, `seeds`.

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
