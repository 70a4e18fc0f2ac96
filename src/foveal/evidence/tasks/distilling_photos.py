"""Distillation for super-resolution in minutes: small EDSRs taught by a larger one, see `photos` for data and score.

All students of a comparison start from the same weights and see the same patches, by seed, and take the same number of
steps; only the loss differs. The floor is the student trained on the pictures alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.edsr import EDSR
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.evidence.trained_once import trained_once
from foveal.record import kept
from foveal.shrink.distill.distillation import Distillation, Views

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from foveal.record import Claim
    from foveal.shrink.distill.distillation import Loss

__all__ = ["NEEDS", "STEPS", "better", "logits", "pictures_alone", "small", "student", "teacher"]

NEEDS = photos.NEEDS
STEPS = 300  # of a student
TEACHER_STEPS = 1500
small = partial(EDSR, dim=8, depth=3)  # the usual student: narrower and shallower than the teacher


def pictures_alone(views: Views) -> Tensor:
    """Absolute error against the picture; the teacher is not used.

    Args:
        views: what student and teacher make of a batch.

    Returns:
        Scalar.
    """
    return F.l1_loss(views.student, views.targets)


def logits(views: Views) -> Tensor:
    """Vanilla distillation, called logits-KD: absolute error against the picture plus that against the teacher's.

    Args:
        views: what student and teacher make of a batch.

    Returns:
        Scalar.
    """
    return pictures_alone(views) + F.l1_loss(views.student, views.teacher)


@cached(maxsize=4)
def teacher(scale: int = 2, *, dim: int = 24, depth: int = 4, steps: int = TEACHER_STEPS, seed: int = 100) -> nn.Module:
    """A trained EDSR, kept in the cache.

    Args:
        scale: s.
        dim: channels.
        depth: number of blocks.
        steps: number of steps of eight patches.
        seed: seed of weights and patches.

    Returns:
        The teacher in eval mode; do not modify it.
    """
    build = partial(EDSR, dim=dim, depth=depth)
    return trained_once(
        partial(build, scale),
        lambda: photos.trained(build, scale, steps=steps, seed=seed),
        modules=[photos.__name__, EDSR.__module__],
        key=f"EDSR ×{scale} dim {dim} depth {depth} steps {steps} seed {seed}",
    )


def student(
    loss: Callable[[nn.Module, nn.Module], Loss],
    *,
    seed: int,
    scale: int = 2,
    build: Callable[..., nn.Module] = small,
    taught_by: Callable[[int], nn.Module] = teacher,
    student_taps: Sequence[str] = (),
    teacher_taps: Sequence[str] = (),
    steps: int = STEPS,
    lr: float = 2e-3,
) -> nn.Module:
    """Train a student.

    Args:
        loss: builder of the loss, a function of `Views` or a module, from student and teacher.
        seed: seed of weights and patches.
        scale: s.
        build: builder of the student, called with `scale`.
        taught_by: builder of the teacher, called with `scale`.
        student_taps: names of the student's modules whose outputs the loss sees.
        teacher_taps: names of the teacher's modules whose outputs the loss sees.
        steps: number of steps of eight patches.
        lr: peak learning rate.

    Returns:
        The student in eval mode, without what the loss trained beside it.
    """
    guide = taught_by(scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = build(scale)  # before the loss, so that all losses start from the same student
        made = loss(learner, guide)
        distillation = Distillation(learner, guide, made, student_taps=student_taps, teacher_taps=teacher_taps)
        short_run(
            distillation, photos.batches(scale, seed), lambda module, batch: module(batch), steps=steps, lr=lr, clip=1.0
        )
    return learner.eval()


def better(
    says: str,
    loss: Callable[[int], nn.Module],
    *,
    than: Callable[[int], nn.Module],
    paper: str,
    scale: int = 2,
    by: float = 0.0,
    steps: int = STEPS,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference in gain of two students with the same seed.

    Args:
        says: promise, one sentence.
        loss: seed → student trained by the method; cache it, since claims share it.
        than: seed → the rival's student.
        paper: the paper's value.
        scale: s.
        by: lower bound on the difference, dB.
        steps: number of steps of a student, for the claim's text.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        return photos.gain(loss(seed), scale) - photos.gain(than(seed), scale)

    data = f"{steps} steps on bsds400; first 30 of Set5, Set14 and BSD100, ×{scale}, luminance, shave {scale}; paired"
    return kept(says, paper=paper, quality=difference, at_least=by, data=data, needs=NEEDS, **words)
