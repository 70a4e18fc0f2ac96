"""Compression of a small vision transformer on CIFAR-10 in minutes: accuracy, bytes of the file, time beside the whole.

The network is trained once a machine; what a recipe trains sees the same batches by seed. Accuracy is that of the file,
in its fastest form, on the first 2,000 test pictures. The floor is chance, 10 %.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import STEPS as REHEARSED
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals import small
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.shrink.data import Data
from foveal.shrink.distill.distillation import Distil
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.recipe import shrink
from foveal.shrink.steps import check_order, untouched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from foveal.shrink.step import Step

__all__ = ["NEEDS", "VIT", "Finished", "data", "finished", "steps", "vit"]

NEEDS = cifar10.NEEDS
TRAINED = 1500  # steps of 64 pictures
VIT = partial(small_vit, dim=96, depth=4, num_heads=4, patch=4)


@cached(maxsize=1)
def vit() -> nn.Module:
    """The trained transformer: four blocks of 96 channels on 64 tokens.

    Returns:
        Network in eval mode, a copy.
    """
    if rehearsing():
        return small_vit(dim=16, depth=1, num_heads=2, patch=8).eval()
    model = trained_once(
        VIT,
        lambda: cifar10.train_classifier(VIT, steps=TRAINED, seed=0),
        modules=[cifar10.__name__, small.__name__],
        key=f"small_vit dim 96 depth 4 heads 4 patch 4, steps {TRAINED} seed 0",
    )
    return copy.deepcopy(model)


def steps(number: int) -> int:
    """Number of training steps of a step; two in a rehearsal.

    Args:
        number: number outside a rehearsal.

    Returns:
        Number of steps.
    """
    return REHEARSED if rehearsing() else number


def data(seed: int) -> Data:
    """CIFAR-10 for `foveal.shrink`.

    Args:
        seed: seed of the batches and of the choice of calibration pictures.

    Returns:
        Inputs, batches, loss and quality.
    """
    inputs, labels = cifar10.pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(1_000_003 * seed + step)
        rows = torch.randint(len(labels), (64,), generator=draw)
        flip = torch.rand(64, generator=draw).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, inputs[rows].flip(-1), inputs[rows]), labels[rows]

    seen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:256]
    return Data(
        inputs[seen],
        cifar10.accuracy,
        name="the first 2,000 test pictures of CIFAR-10",
        batches=batches,
        loss=F.cross_entropy,
    )


@dataclass(frozen=True)
class Finished:
    """A compressed network.

    Args:
        accuracy: accuracy of its file, percent.
        size: bytes of its file.
        milliseconds: median time of one picture in its fastest form.
    """

    accuracy: float
    size: int
    milliseconds: float


def finished(model: nn.Module, steps: Sequence[Step], seed: int) -> Finished:
    """Apply steps, write the file and measure it.

    Args:
        model: network, which is not changed.
        steps: steps; int8 last.
        seed: seed of the data.

    Returns:
        What `foveal.shrink` measures of the result; in a rehearsal what torch says of the network before int8.
    """
    check_order(steps)
    given, teacher = data(seed), copy.deepcopy(model)
    model = copy.deepcopy(model)
    for step in steps:
        named: Any = step
        if isinstance(step, Distil) and step.teacher is untouched:
            named = replace(step, teacher=teacher)
        if not isinstance(step, Quantise):
            model = named.apply(model, given).eval()
    if rehearsing():
        return Finished(given.quality(model), 4 * sum(p.numel() for p in model.parameters()), 1.0)
    last = [step for step in steps if isinstance(step, Quantise)]
    found = shrink(model, last, given, insist=True, memory=False, seconds=1.0).last
    return Finished(found.quality, found.size, 1e3 * found.latency.median)
