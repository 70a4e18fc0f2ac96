"""Evidence for AdaptConf: its weight in closed form, and a student larger than its teacher, both given noisy labels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import resnet8, resnet20
from foveal.evidence.tasks import cifar10, cifar10_half, distilling
from foveal.record import equal, kept
from foveal.shrink.distill.adaptconf import adaptconf, confidence

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foveal.shrink.distill.distillation import Loss

STEPS = 400
_KD = partial(distilling.hinton, temperature=1.0)  # T of the method, by the authors' code
PICTURES = 2000  # seen some thirteen times, so that noise can be learnt by heart, as in the paper's long trainings
NOISE = 0.4  # share of their labels that are replaced by drawn ones


def _noisy(seed: int) -> tuple[Tensor, Tensor]:
    """Training pictures and labels, of which 40% are drawn from all classes."""
    inputs, labels = cifar10_half.pictures("train", limit=PICTURES)
    generator = torch.Generator().manual_seed(1000 + seed)
    drawn = torch.randint(10, labels.shape, generator=generator)
    return inputs, torch.where(torch.rand(len(labels), generator=generator) < NOISE, drawn, labels)


@cached(maxsize=4)
def _teacher(seed: int) -> nn.Module:
    """The weak teacher, trained on the noisy labels."""
    return cifar10.train_classifier(resnet8, steps=STEPS, seed=100 + seed, data=_noisy(seed))


@cached(maxsize=16)
def _accuracy(seed: int, loss: Loss) -> float:
    """Accuracy of the strong student of a loss, percent."""
    student = distilling.student(
        lambda: loss, seed=seed, build=resnet20, taught_by=lambda: _teacher(seed), steps=STEPS, data=_noisy(seed)
    )
    return cifar10_half.accuracy(student)


def _over_teacher(seed: int) -> float:
    return _accuracy(seed, adaptconf) - cifar10_half.accuracy(_teacher(seed))


def _over_kd(seed: int) -> float:
    return _accuracy(seed, adaptconf) - _accuracy(seed, _KD)


def _logits(*, agree: bool) -> tuple[Tensor, Tensor]:
    """Logits of nine pictures; the predictions agree on all or on none."""
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(9, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    best = s.argmax(1) if agree else (s.argmax(1) + 1 + torch.arange(9) % 4) % 5
    return s, t.scatter(1, best[:, None], 20.0)


def _plain() -> Tensor:
    s, t = (x.numpy() for x in _logits(agree=False))
    log_p = s - np.log(np.exp(s).sum(1, keepdims=True))
    rows = np.arange(len(s))
    own, theirs = (np.exp(-log_p[rows, x.argmax(1)] / 0.5) for x in (s, t))
    return torch.from_numpy(own / (own + theirs))


_DATA = (
    f"{PICTURES:,} pictures of CIFAR-10 at 16×16, {NOISE:.0%} of the labels drawn at random; resnet8 teaches resnet20, "
    f"{STEPS} steps each; the first 2,000 test pictures"
)

CLAIMS = (
    equal(
        "α is exactly 1/2 where student and teacher predict the same class.",
        ours=lambda: confidence(*_logits(agree=True)),
        theirs=lambda: torch.full((9,), 0.5, dtype=torch.float64),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "Where predictions differ, α equals the ratio of exponentials of cross-entropies, written in NumPy.",
        ours=lambda: confidence(*_logits(agree=False)),
        theirs=_plain,
        clause=2,
    ),
    kept(
        "The strong student is more accurate than its weak teacher.",
        paper="CIFAR-10, symmetric noise: 96.13% with ResNet-18 teaching ResNet-34",
        quality=_over_teacher,
        at_least=0.0,
        unit="points",
        data=_DATA,
        needs=cifar10_half.NEEDS,
        clause=3,
    ),
    kept(
        "The strong student is more accurate than that of plain distillation.",
        paper="reported for few-shot, transfer, noisy labels and KD",
        quality=_over_kd,
        at_least=0.0,
        unit="points",
        data=_DATA,
        needs=cifar10_half.NEEDS,
        clause=3,
    ),
)
