"""AdaptConf: a strong student learns from a weaker teacher, and partly from its own predictions, picture by picture.

*Source*: J. Guo et al., "Vision Superalignment: Weak-to-Strong Generalization for Vision Foundation Models", 2024
(arXiv:2402.03749), section 3. With the student's logits s, (B, classes), the teacher's t, labels y, predictions
a = argmax s and b = argmax t, and H the cross-entropy of one picture:

    α = exp(H(s, a) / τ) / (exp(H(s, a) / τ) + exp(H(s, b) / τ)) = σ((s_b - s_a) / τ),  without a gradient, (B,)
    loss = mean of H(s, y) + w mean of ((1 - α) T² KL(softmax(t/T) ‖ softmax(s/T)) + α H(s, a))

Both cross-entropies share their normaliser, so α needs two logits only, and is 1/2 where the predictions agree.
AugConf, the variant for comparison, replaces α by one number for all pictures that grows during the first epochs.

*Differs from the paper*: nothing. By this formula, that of the authors' code too, α is never above 1/2 and falls where
a confident student disagrees: there the teacher counts more, not less, than the text's motivation lets expect.
*Provenance*: written from the paper; τ = 0.5, T = 1, w = 1 and AugConf's ramp over 30% of the epochs as in the
authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Objective
from foveal.record import Method, Paper
from foveal.shrink.distill.distillation import Views

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["adaptconf", "augconf", "confidence", "ramp", "weak_to_strong"]


def confidence(student: Tensor, teacher: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Share α of the student's own prediction in what it learns.

    Args:
        student: the student's logits, (B, classes).
        teacher: the teacher's logits, (B, classes).
        threshold: τ, above 0; small values make α fall faster where predictions disagree.

    Returns:
        α of each picture, (B,), in [0, 1/2], without a gradient.

    Raises:
        ValueError: a threshold that is not above 0.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}; the paper takes 0.5")
    student = student.detach()
    theirs = student.gather(1, teacher.argmax(1, keepdim=True))[:, 0]
    return torch.sigmoid((theirs - student.amax(1)) / threshold)


def weak_to_strong(student: Tensor, teacher: Tensor, alpha: Tensor | float, *, temperature: float = 1.0) -> Tensor:
    """Soft targets of the teacher with weight 1 - α, hard labels of the student itself with weight α.

    Args:
        student: the student's logits, (B, classes).
        teacher: the teacher's logits, (B, classes).
        alpha: α of each picture, (B,), or one number for all.
        temperature: T of the soft targets, above 0.

    Returns:
        Scalar, the mean over the batch.
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher.detach() / temperature, 1),
        reduction="none",
        log_target=True,
    ).sum(1)
    own = F.cross_entropy(student, student.argmax(1), reduction="none")
    return ((1 - alpha) * temperature**2 * divergence + alpha * own).mean()


def adaptconf(views: Views, *, threshold: float = 0.5, temperature: float = 1.0, weight: float = 1.0) -> Tensor:
    """Cross-entropy with the labels plus `weak_to_strong` with the `confidence` of each picture.

    Args:
        views: what student and teacher make of a batch.
        threshold: τ of the confidence, above 0.
        temperature: T of the soft targets, above 0.
        weight: w, weight of what is learnt without the labels.

    Returns:
        Scalar.
    """
    alpha = confidence(views.student, views.teacher, threshold=threshold)
    without = weak_to_strong(views.student, views.teacher, alpha, temperature=temperature)
    return F.cross_entropy(views.student, views.targets) + weight * without


def ramp(share: float, *, rate: float = 0.3, most: float = 0.5) -> float:
    """α of AugConf in the course of the training.

    Args:
        share: share of the training that is over, in [0, 1].
        rate: share of the training during which α grows, in (0, 1].
        most: α from then on, in [0, 1].

    Returns:
        α.
    """
    return most * min(1.0, share / rate)


def augconf(views: Views, *, alpha: float, temperature: float = 1.0, weight: float = 1.0) -> Tensor:
    """Cross-entropy with the labels plus `weak_to_strong` with one α for all pictures.

    Args:
        views: what student and teacher make of a batch.
        alpha: α, from `ramp`.
        temperature: T of the soft targets, above 0.
        weight: w, weight of what is learnt without the labels.

    Returns:
        Scalar.
    """
    without = weak_to_strong(views.student, views.teacher, alpha, temperature=temperature)
    return F.cross_entropy(views.student, views.targets) + weight * without


def _drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(6, 5, generator=generator) for _ in range(2))
    return {"student": student, "teacher": teacher, "targets": torch.arange(6) % 5}


def _seen(loss: Callable[[Views], Tensor]) -> Callable[..., Tensor]:
    return lambda student, teacher, targets: loss(Views(student, targets, student, teacher))


METHOD = Method(
    id=17,
    name="AdaptConf",
    kind="objective",
    summary="A strong student learns from a weak teacher and, picture by picture, from its own predictions.",
    paper=Paper(
        "Vision Superalignment: Weak-to-Strong Generalization for Vision Foundation Models",
        "J. Guo et al.",
        2024,
        "arXiv:2402.03749",
    ),
    cases={
        "adaptconf": Objective(_seen(adaptconf), _drawn, ("student",)),
        "augconf": Objective(_seen(lambda views: augconf(views, alpha=0.3)), _drawn, ("student",)),
    },
)
