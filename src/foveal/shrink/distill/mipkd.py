"""MiPKD: a student for super-resolution learns from features and blocks that are part teacher and part student.

*Source*: S. Li et al., "Knowledge Distillation with Multi-granularity Mixture of Priors for Image Super-Resolution",
ICLR 2025 (arXiv:2404.02573), section 3. Both networks are cut into K stages. After stage k, with features S,
(B, C, H, W), of the student and T, (B, C', H, W), of the teacher, the feature prior mixer encodes both into one latent
space of D channels and mixes them by a random binary mask M, (B, D, H, W):

    Z = M ∘ E_T(T) + (1 − M) ∘ E_S(S),   L_feature = Σ_k |G(Z) − T| + |G(E_T(T)) − T|     (mixed, and auto-encoder)

The block prior mixer sends the picture through a path that takes, at random, the teacher's or the student's stage:

    h_k = T_k(h_{k−1})  or  G_k(E_S(S_k(P_k(h_{k−1})))),   L_block = |path(x) − teacher(x)|

and the whole loss is |S(x) − y| + λ₁ |S(x) − T(x)| + λ₂ L_feature + λ₃ L_block. Mixers are left behind after training.

*Differs from the paper*: encoders, decoder G and the projection P into the student's width are one 3×3 convolution
each; mask entries and routes are drawn with probability 1/2, and all λ are 1; the path starts and ends in the teacher's
first and last layers.

*Provenance*: written from the paper's description, without code.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Objective
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.shrink.distill.distillation import Views

__all__ = ["FeaturePriorMixer", "MiPKD", "mix", "routed"]


def mix(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Take each value from one of two tensors.

    Args:
        teacher: the teacher's values, (B, D, H, W).
        student: the student's values, of the same shape.
        mask: M, boolean, of the same shape.

    Returns:
        `teacher` where the mask is True, else `student`.
    """
    return torch.where(mask, teacher, student)


class FeaturePriorMixer(nn.Module):
    """Features of student and teacher to the two terms of L_feature, see the formula above.

    Args:
        student_dim: C, channels of the student's features.
        teacher_dim: C', channels of the teacher's features.
        latent: D, channels of the latent space; None takes C'.
    """

    def __init__(self, student_dim: int, teacher_dim: int, *, latent: int | None = None) -> None:
        super().__init__()
        dim = latent or teacher_dim
        self.encode_student = nn.Conv2d(student_dim, dim, 3, padding=1)
        self.encode_teacher = nn.Conv2d(teacher_dim, dim, 3, padding=1)
        self.decode = nn.Conv2d(dim, teacher_dim, 3, padding=1)
        self.project = nn.Conv2d(teacher_dim, student_dim, 3, padding=1)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mix, decode and compare.

        Args:
            student: S, (B, C, H, W).
            teacher: T, (B, C', H, W); no gradient reaches it.
            mask: M, boolean, (B, D, H, W); None draws it.

        Returns:
            Error of the mixed features and of the auto-encoder, scalars.
        """
        teacher = teacher.detach()
        theirs, ours = self.encode_teacher(teacher), self.encode_student(student)
        if mask is None:
            mask = torch.rand_like(theirs) < 0.5
        mixed, copied = self.decode(mix(theirs, ours, mask)), self.decode(theirs)
        return F.l1_loss(mixed, teacher), F.l1_loss(copied, teacher)

    def detour(self, features: Tensor, stage: Sequence[nn.Module]) -> Tensor:
        """The student's stage in place of the teacher's: project, run, encode, decode.

        Args:
            features: the teacher's features before the stage, (B, C', H, W).
            stage: the student's modules, run in order.

        Returns:
            Features in the teacher's space, (B, C', H, W).
        """
        x = self.project(features)
        for module in stage:
            x = module(x)
        return self.decode(self.encode_student(x))


def routed(
    teacher: nn.Module,
    x: Tensor,
    *,
    student: nn.Module,
    stages: Sequence[tuple[Sequence[str], Sequence[str]]],
    mixers: Sequence[FeaturePriorMixer],
    route: Sequence[bool],
) -> Tensor:
    """Run the teacher with some of its stages replaced by the student's.

    Args:
        teacher: network, whose parameters get no gradients.
        x: pictures, (B, in_channels, H, W).
        student: network whose stages are taken.
        stages: names of the student's and of the teacher's modules of each stage, in order.
        mixers: mixer of each stage.
        route: for each stage, whether the student's is taken.

    Returns:
        The teacher's output along that path.
    """
    entered: dict[int, Tensor] = {}

    def enter(k: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:  # noqa: ARG001 - torch's signature
            entered[k] = inputs[0]

        return hook

    def leave(k: int) -> Any:
        parts = [student.get_submodule(name) for name in stages[k][0]]

        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:  # noqa: ARG001
            return mixers[k].detour(entered[k], parts)

        return hook

    with ExitStack() as stack:
        for k in (k for k, taken in enumerate(route) if taken):
            names = stages[k][1]
            for handle in (
                teacher.get_submodule(names[0]).register_forward_pre_hook(enter(k)),
                teacher.get_submodule(names[-1]).register_forward_hook(leave(k)),
            ):
                stack.callback(handle.remove)
        frozen = {name: p.detach() for name, p in teacher.named_parameters()}
        return torch.func.functional_call(teacher, frozen, (x,))


class MiPKD(nn.Module):
    """The loss, for `Distillation` with the last module of each stage as taps; trained beside the student.

    Args:
        student: student.
        teacher: teacher.
        stages: names of the student's and of the teacher's modules of each stage, in order; a stage maps features to
            features of the same shape.
        dims: channels of the student's and of the teacher's features.
        weights: λ₁, λ₂, λ₃: weights of output, features and blocks.
        latent: channels of the latent space; None takes the teacher's.

    Raises:
        ValueError: no stages.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        stages: Sequence[tuple[Sequence[str], Sequence[str]]],
        dims: tuple[int, int],
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        latent: int | None = None,
    ) -> None:
        super().__init__()
        if not stages:
            raise ValueError("MiPKD needs one stage or more, got none; name the modules of each")
        self._networks = (student, teacher)  # a tuple hides their parameters
        self.stages, self.weights = stages, weights
        self.mixers = nn.ModuleList(FeaturePriorMixer(*dims, latent=latent) for _ in stages)

    def forward(self, views: Views) -> Tensor:
        """Loss of a batch.

        Args:
            views: what student and teacher make of a batch, with the last module of each stage as taps.

        Returns:
            Scalar.

        Raises:
            ValueError: another number of taps than of stages.
        """
        found = len(views.student_features), len(views.teacher_features)
        if found != (len(self.stages), len(self.stages)):
            raise ValueError(f"MiPKD needs one tap for each of its {len(self.stages)} stages, got {found}")
        mixers: Any = list(self.mixers)
        features = [
            error
            for mixer, ours, theirs in zip(mixers, views.student_features, views.teacher_features, strict=True)
            for error in mixer(ours, theirs)
        ]
        student, teacher = self._networks
        route = (torch.rand(len(self.stages)) < 0.5).tolist()
        path = views.teacher  # what the path of teachers alone gives
        if any(route):
            path = routed(teacher, views.inputs, student=student, stages=self.stages, mixers=mixers, route=route)
        terms = (
            F.l1_loss(views.student, views.teacher),
            torch.stack(features).sum(),
            F.l1_loss(path, views.teacher),
        )
        total = F.l1_loss(views.student, views.targets)
        for weight, term in zip(self.weights, terms, strict=True):
            total = total + weight * term
        return total


def _feature_prior(student: Tensor, teacher: Tensor) -> Tensor:
    """Both terms of a drawn mixer with a drawn mask."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = FeaturePriorMixer(2, 3, latent=4).to(student.dtype)
        mixed, copied = mixer(student, teacher, torch.rand(2, 4, 5, 3) < 0.5)
    return mixed + copied


def _features(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "student": torch.randn(2, 2, 5, 3, generator=generator),
        "teacher": torch.randn(2, 3, 5, 3, generator=generator),
    }


METHOD = Method(
    id=9,
    name="MiPKD",
    kind="objective",
    summary="A student learns from features and blocks that are at random the teacher's or its own.",
    paper=Paper(
        "Knowledge Distillation with Multi-granularity Mixture of Priors for Image Super-Resolution",
        "S. Li et al.",
        2025,
        "arXiv:2404.02573",
    ),
    cases={"feature_prior_mixer": Objective(_feature_prior, _features, learns=("student",))},
)
