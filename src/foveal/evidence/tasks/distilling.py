"""Distillation on CIFAR-10 in minutes: students of a small ResNet teacher, accuracy on the first 2,000 test pictures.

All students of a comparison see the same batches, by seed, and take the same number of steps; only the loss differs.
The floor is the student trained on the labels alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import resnet8, resnet20_wide
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.record import kept
from foveal.shrink.distill.distillation import Distillation, Views, soft_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from foveal.record import Claim
    from foveal.shrink.distill.distillation import Loss

__all__ = ["NEEDS", "better", "hinton", "labels_alone", "student", "teacher"]

NEEDS = cifar10.NEEDS
STEPS = 400  # of a student
TEACHER_STEPS = 2000


def labels_alone(views: Views) -> Tensor:
    """Cross-entropy with the labels; the teacher is not used.

    Args:
        views: what student and teacher make of a batch.

    Returns:
        Scalar.
    """
    return F.cross_entropy(views.student, views.targets)


def hinton(views: Views, *, temperature: float = 4.0, weight: float = 1.0) -> Tensor:
    """Vanilla distillation, the usual rival: cross-entropy plus Hinton's soft targets.

    Args:
        views: what student and teacher make of a batch.
        temperature: T of the soft targets.
        weight: weight of the soft targets.

    Returns:
        Scalar.
    """
    return labels_alone(views) + weight * soft_targets(views.student, views.teacher, temperature=temperature)


@cached(maxsize=4)
def teacher(
    build: Callable[[], nn.Module] = resnet20_wide, *, steps: int = TEACHER_STEPS, seed: int = 100
) -> nn.Module:
    """A trained teacher, kept in the cache.

    Args:
        build: builder of the network, a partial or a function of a module of foveal.
        steps: number of steps of 64 pictures.
        seed: seed of weights and batches.

    Returns:
        The teacher in eval mode; do not modify it.
    """
    function = build.func if isinstance(build, partial) else build
    words = (build.args, sorted(build.keywords.items())) if isinstance(build, partial) else ()
    return trained_once(
        build,
        lambda: cifar10.train_classifier(build, steps=steps, seed=seed),
        modules=[cifar10.__name__, function.__module__],
        key=f"teacher {function.__qualname__} {words} steps {steps} seed {seed}",
    )


def student(
    loss: Callable[[], Loss],
    *,
    seed: int,
    build: Callable[[], nn.Module] = resnet8,
    taught_by: Callable[[], Any] = teacher,
    student_taps: Sequence[str] = (),
    teacher_taps: Sequence[str] = (),
    steps: int = STEPS,
    batch: int = 64,
    lr: float = 2e-3,
    data: tuple[Tensor, Tensor] | None = None,
) -> nn.Module:
    """Train a student.

    Args:
        loss: builder of the loss, a function of `Views` or a module.
        seed: seed of weights and batches.
        build: builder of the student, (B, 3, 32, 32) to (B, 10).
        taught_by: builder of the teacher.
        student_taps: names of the student's modules whose outputs the loss sees.
        teacher_taps: names of the teacher's modules whose outputs the loss sees.
        steps: number of steps.
        batch: batch size, B.
        lr: peak learning rate.
        data: inputs and labels; None takes CIFAR-10's training pictures.

    Returns:
        The student in eval mode, without what the loss trained beside it.
    """
    inputs, labels = cifar10.pictures("train") if data is None else data
    guide = taught_by()
    draw = torch.Generator().manual_seed(seed)  # losses may draw numbers too, and batches must not depend on that

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from the seeded generator
        rows = torch.randint(len(labels), (batch,), generator=draw)
        flip = torch.rand(batch, generator=draw).view(-1, 1, 1, 1) < 0.5
        x = inputs[rows]
        return torch.where(flip, x.flip(-1), x), labels[rows]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = build()  # before the loss, so that all losses start from the same student
        distillation = Distillation(learner, guide, loss(), student_taps=student_taps, teacher_taps=teacher_taps)
        short_run(
            distillation,
            batches,
            lambda module, pair: module(pair),
            steps=steps,
            lr=lr,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            clip=1.0,
        )
    return learner.eval()


def better(
    says: str,
    loss: Callable[[int], nn.Module],
    *,
    than: Callable[[int], nn.Module],
    paper: str,
    by: float = 0.0,
    data: str = f"{STEPS} steps on CIFAR-10, the first 2,000 test pictures",
    **words: Any,
) -> Claim:
    """`kept`: the paired difference in accuracy of two students with the same seed.

    Args:
        says: promise, one sentence.
        loss: seed → student trained by the method; cache it, since claims share it.
        than: seed → the rival's student.
        paper: the paper's value.
        by: lower bound on the difference, percentage points.
        data: what it is measured on.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        return cifar10.accuracy(loss(seed)) - cifar10.accuracy(than(seed))

    return kept(says, paper=paper, quality=difference, at_least=by, unit="points", data=data, needs=NEEDS, **words)
