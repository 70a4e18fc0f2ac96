"""vanillaKD: Hinton's distillation, beside the elaborate losses that it holds its own against once data are not scarce.

*Source*: Z. Hao et al., "Revisit the Power of Vanilla Knowledge Distillation: from Small Scale to Large Scale",
NeurIPS 2023 (arXiv:2305.15781), section 2: vanilla distillation, and its rivals DKD (B. Zhao et al., arXiv:2203.08679,
equation 7), DIST (T. Huang et al., arXiv:2205.10536, equations 7 to 10) and RKD (W. Park et al., arXiv:1904.05068,
equations 5 to 8). With logits s and t, (B, classes), p = softmax(s/T), q = softmax(t/T), true class y, features f:

    KD    T² KL(q ‖ p)
    DKD   T² (α KL([q_y, 1 - q_y] ‖ [p_y, 1 - p_y]) + β KL(q without y ‖ p without y)), both rescaled to sum 1
    DIST  T² (β (1 - mean over rows of ρ(p, q)) + γ (1 - mean over columns of ρ(p, q))),  ρ: Pearson's correlation
    RKD   λ_d mean of l(|f_i - f_j| / μ) + λ_a mean of l(cos of the angle at i between j and k),  l: smooth L1 distance
          between student's and teacher's, μ: mean distance of a pair

Every loss of `Views` adds the cross-entropy with the labels.

*Differs from the paper*: nothing in the losses. BCE, which replaces the cross-entropy in the longest recipe, is left
out; so are CRD and ReviewKD, the two rivals with memories and networks of their own.
*Provenance*: written from the papers; defaults of α, β, γ, λ_d and λ_a as in the authors' code, T as usual at 32×32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Objective
from foveal.record import Method, Paper
from foveal.shrink.distill.distillation import soft_targets

if TYPE_CHECKING:
    from foveal.shrink.distill.distillation import Views

__all__ = ["correlation", "decoupled", "dist", "dkd", "relations", "rkd", "vanilla_kd"]


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q ‖ p), the mean over the batch; both (B, n)."""
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def _split(log_p: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (true class, all others), (B, 2), and of the others among themselves, (B, classes - 1)."""
    true = F.one_hot(targets, log_p.shape[1]).bool()
    others = log_p[~true].view(len(log_p), -1)
    rest = others.logsumexp(1, keepdim=True)
    return torch.cat([log_p[true][:, None], rest], 1), others - rest


def decoupled(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 4.0,
) -> Tensor:
    """DKD: distillation about the true class and among the other classes, weighted apart.

    Args:
        student: the student's logits, (B, classes).
        teacher: the teacher's logits, (B, classes).
        targets: labels, (B,).
        alpha: weight of the part about the true class.
        beta: weight of the part among the other classes.
        temperature: T, above 0.

    Returns:
        Scalar.
    """
    ours = _split(F.log_softmax(student / temperature, 1), targets)
    theirs = _split(F.log_softmax(teacher.detach() / temperature, 1), targets)
    return temperature**2 * (alpha * _divergence(ours[0], theirs[0]) + beta * _divergence(ours[1], theirs[1]))


def _apart(p: Tensor, q: Tensor) -> Tensor:
    """One minus Pearson's correlation of rows, the mean over rows."""
    return 1 - F.cosine_similarity(p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True), dim=1).mean()


def correlation(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0
) -> Tensor:
    """DIST: probabilities must correlate with the teacher's, over the classes and over the batch.

    Args:
        student: the student's logits, (B, classes).
        teacher: the teacher's logits, (B, classes).
        beta: weight of the correlation over the classes of a picture.
        gamma: weight of the correlation over the pictures of a batch.
        temperature: T, above 0.

    Returns:
        Scalar.
    """
    p, q = (student / temperature).softmax(1), (teacher.detach() / temperature).softmax(1)
    return temperature**2 * (beta * _apart(p, q) + gamma * _apart(p.T, q.T))


def _relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean, (B, B), and cosines of the angles at the first of three, (B, B, B)."""
    away = features[None] - features[:, None]  # (B, B, C)
    distance = away.norm(dim=2)
    mean = distance.sum() / (distance > 0).sum().clamp_min(1)
    unit = F.normalize(away, dim=2)
    return distance / mean.clamp_min(1e-12), unit @ unit.transpose(1, 2)


def relations(student: Tensor, teacher: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """RKD: distances and angles between the pictures of a batch must be the teacher's.

    Args:
        student: the student's features, (B, C) or, flattened here, (B, …).
        teacher: the teacher's features, (B, C') or (B, …).
        distance: weight of the distances, λ_d.
        angle: weight of the angles, λ_a.

    Returns:
        Scalar.

    Raises:
        ValueError: a batch of one, which has no relations.
    """
    if len(student) < 2:
        raise ValueError(f"relations need a batch of at least 2 pictures, got {len(student)}; drop the last batch")
    ours = _relations(student.flatten(1))
    with torch.no_grad():
        theirs = _relations(teacher.flatten(1))
    return distance * F.smooth_l1_loss(ours[0], theirs[0]) + angle * F.smooth_l1_loss(ours[1], theirs[1])


def vanilla_kd(views: Views, *, temperature: float = 4.0, weight: float = 1.0) -> Tensor:
    """Cross-entropy plus Hinton's soft targets.

    Args:
        views: what student and teacher make of a batch.
        temperature: T, above 0.
        weight: weight of the soft targets.

    Returns:
        Scalar.
    """
    taught = soft_targets(views.student, views.teacher, temperature=temperature)
    return F.cross_entropy(views.student, views.targets) + weight * taught


def dkd(views: Views, *, alpha: float = 1.0, beta: float = 2.0, temperature: float = 4.0) -> Tensor:
    """Cross-entropy plus `decoupled`.

    Args:
        views: what student and teacher make of a batch.
        alpha: weight of the part about the true class.
        beta: weight of the part among the other classes.
        temperature: T, above 0.

    Returns:
        Scalar.
    """
    taught = decoupled(views.student, views.teacher, views.targets, alpha=alpha, beta=beta, temperature=temperature)
    return F.cross_entropy(views.student, views.targets) + taught


def dist(views: Views, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> Tensor:
    """Cross-entropy plus `correlation`.

    Args:
        views: what student and teacher make of a batch.
        beta: weight of the correlation over the classes of a picture.
        gamma: weight of the correlation over the pictures of a batch.
        temperature: T, above 0.

    Returns:
        Scalar.
    """
    taught = correlation(views.student, views.teacher, beta=beta, gamma=gamma, temperature=temperature)
    return F.cross_entropy(views.student, views.targets) + taught


def _embedding(features: tuple[Tensor, ...], whose: str) -> Tensor:
    if not features:
        raise ValueError(f"rkd compares features and the {whose} has no taps; name the last stage in {whose}_taps")
    last = features[-1]
    return last.mean((2, 3)) if last.ndim == 4 else last


def rkd(views: Views, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Cross-entropy plus `relations` of the last taps; maps are averaged over their positions first.

    Args:
        views: what student and teacher make of a batch, with at least one tap each.
        distance: weight of the distances, λ_d.
        angle: weight of the angles, λ_a.

    Returns:
        Scalar.
    """
    ours = _embedding(views.student_features, "student")
    theirs = _embedding(views.teacher_features, "teacher")
    return F.cross_entropy(views.student, views.targets) + relations(ours, theirs, distance=distance, angle=angle)


def _drawn(seed: int, *, same: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(6, 5, generator=generator) for _ in range(2))
    return {"student": student, "teacher": student.clone() if same else teacher}


def _labelled(seed: int, *, same: bool = False) -> dict[str, Tensor]:
    return {**_drawn(seed, same=same), "targets": torch.arange(6) % 5}


METHOD = Method(
    id=23,
    name="vanillaKD",
    kind="objective",
    summary="Distillation from soft labels, beside DKD, DIST and RKD, whose lead vanishes as data and recipe grow.",
    paper=Paper(
        "Revisit the Power of Vanilla Knowledge Distillation: from Small Scale to Large Scale",
        "Z. Hao et al.",
        2023,
        "arXiv:2305.15781",
    ),
    cases={
        "kd": Objective(
            lambda student, teacher: soft_targets(student, teacher.detach()),
            _drawn,
            ("student",),
            best=lambda seed: _drawn(seed, same=True),
        ),
        "dkd": Objective(decoupled, _labelled, ("student",), best=lambda seed: _labelled(seed, same=True)),
        "dist": Objective(correlation, _drawn, ("student",), best=lambda seed: _drawn(seed, same=True)),
        "rkd": Objective(relations, _drawn, ("student",), best=lambda seed: _drawn(seed, same=True)),
    },
)
