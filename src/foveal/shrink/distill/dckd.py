"""DCKD: a student for restoration is drawn to its teacher and pushed away from what it made some time ago.

*Source*: Y. Zhou et al., "Dynamic Contrastive Knowledge Distillation for Efficient Image Restoration", AAAI 2025
(arXiv:2412.08939), section 3. Features φᵢ are those of the encoder of a VQGAN at five scales. The student's picture S
is the anchor, the teacher's T the positive; negatives Nₙ are made by a history student from the input and from four
noised copies:

    L_contrast = Σᵢ wᵢ |φᵢ(S) − φᵢ(T)| / (Σₙ |φᵢ(S) − φᵢ(Nₙ)| + ε)
    L_codes = − mean Σⱼ p_T(j) log p_S(j),   p = softmax over the codes j of −|z − eⱼ|²
    L = |S − y| + |S − T| + |S − T′| + 0.1 L_contrast + 0.001 L_codes

T′ is the teacher's picture of the input with inverted colours, flips and transposition, undone. The history student h
follows the student s at scheduled steps, at longer and longer intervals: h ← d·h + (1 − d)·s, d = 0.1.

*Differs from the paper*: the history student follows the student itself, where the authors' code takes its running
average; p_S is normalised once, where that code does so twice. The encoder is `foveal.shrink.distill.vq`, small and
trained here without an adversary, where the authors take VQGAN's released weights.

*Provenance*: written from the paper; weights, probabilities and intervals looked up in the authors' code.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Objective
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.shrink.distill.distillation import Views
    from foveal.shrink.distill.vq import VQEncoder

__all__ = ["DCKD", "code_loss", "contrastive", "noised", "refreshes", "turned", "undone"]

WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # of the scales, the finest first; fewer scales take the last ones


def contrastive(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    negatives: Sequence[Sequence[Tensor]],
    *,
    weights: Sequence[float] = WEIGHTS,
) -> Tensor:
    """Distance to the teacher's features over the distances to the negatives', summed over scales.

    Args:
        student: φᵢ(S) of each scale, (B, C, H, W).
        teacher: φᵢ(T) of each scale.
        negatives: φᵢ(Nₙ) of each scale, for each negative.
        weights: wᵢ, one for each scale.

    Returns:
        Scalar.
    """
    total = student[0].new_zeros(())
    for scale, weight in enumerate(weights):
        near = (student[scale] - teacher[scale]).abs().mean()
        far = torch.stack([(student[scale] - negative[scale]).abs().mean() for negative in negatives]).sum()
        total = total + weight * near / (far + 1e-7)
    return total


def code_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of the distributions over the codes.

    Args:
        student: squared distances of the student's latent vectors to the codes, (n, codes).
        teacher: the teacher's.

    Returns:
        Scalar.
    """
    return -(F.softmax(-teacher, 1) * F.log_softmax(-student, 1)).sum(1).mean()


def turned(x: Tensor, changes: Tensor) -> Tensor:
    """Invert, flip and transpose pictures.

    Args:
        x: square pictures, (B, C, H, H), in [0, 1].
        changes: which of colours inverted, upside down, mirrored, transposed for each picture, (B, 4), boolean.

    Returns:
        Changed pictures.

    Raises:
        ValueError: pictures that are not square.
    """
    if x.shape[2] != x.shape[3]:
        raise ValueError(f"pictures must be square to be transposed, got {x.shape[2]}×{x.shape[3]}; train on patches")
    invert, upside, mirror, transpose = changes.T[..., None, None, None]
    x = torch.where(invert, 1 - x, x)
    x = torch.where(upside, x.flip(2), x)
    x = torch.where(mirror, x.flip(3), x)
    return torch.where(transpose, x.transpose(2, 3), x)


def undone(x: Tensor, changes: Tensor) -> Tensor:
    """Undo `turned`.

    Args:
        x: changed pictures, (B, C, H, H), in [0, 1].
        changes: what was changed, (B, 4), boolean.

    Returns:
        Pictures as they were.
    """
    invert, upside, mirror, transpose = changes.T[..., None, None, None]
    x = torch.where(transpose, x.transpose(2, 3), x)
    x = torch.where(mirror, x.flip(3), x)
    x = torch.where(upside, x.flip(2), x)
    return torch.where(invert, 1 - x, x)


def noised(x: Tensor) -> Tensor:
    """Add Gaussian noise of 1 to 30 levels of 255, grey with probability 1/2, drawn for each picture.

    Args:
        x: pictures, (B, C, H, W), in [0, 1].

    Returns:
        Noisy pictures in [0, 1].
    """
    level = (1 + 29 * torch.rand(len(x), 1, 1, 1)) / 255
    grey = torch.rand(len(x), 1, 1, 1) < 0.5
    noise = torch.randn_like(x)
    return (x + level * torch.where(grey, noise[:, :1], noise)).clamp(0, 1)


def refreshes(step: int, *, intervals: Sequence[int] = (1000, 2000, 3000), phase: int = 100_000) -> bool:
    """Whether the history student follows after a step.

    Args:
        step: number of steps done, from 1.
        intervals: steps between two refreshes in each phase of the training; the last one goes on.
        phase: steps of a phase.

    Returns:
        Whether it is refreshed.
    """
    return step % intervals[min((step - 1) // phase, len(intervals) - 1)] == 0


class DCKD(nn.Module):
    """The loss, for `Distillation`; it has no parameters.

    Args:
        student: student, copied as the first history student.
        teacher: teacher.
        encoder: trained encoder of at most five scales.
        intervals: see `refreshes`.
        phase: see `refreshes`.
        decay: d.
        count: number of noised copies of the input.
        weights: weights of L_contrast and L_codes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Callable[[Tensor], Tensor],
        encoder: VQEncoder,
        *,
        intervals: Sequence[int] = (1000, 2000, 3000),
        phase: int = 100_000,
        decay: float = 0.1,
        count: int = 4,
        weights: tuple[float, float] = (0.1, 0.001),
    ) -> None:
        super().__init__()
        history = copy.deepcopy(student).eval()
        self._networks = (student, teacher, encoder.eval(), history)  # a tuple hides their parameters
        self.intervals, self.phase, self.decay = tuple(intervals), phase, decay
        self.count, self.weights, self.steps = count, weights, 0

    @property
    def history(self) -> nn.Module:
        """The history student."""
        return self._networks[3]

    @torch.no_grad()
    def follow(self) -> None:
        """Move the history student towards the student."""
        student = self._networks[0]
        for old, new in zip(self.history.parameters(), student.parameters(), strict=True):
            old.copy_(torch.lerp(old, new, 1 - self.decay))
        for kept, now in zip(self.history.buffers(), student.buffers(), strict=True):
            kept.copy_(now)

    @torch.no_grad()
    def negatives(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """What the history student makes of the input and of its noised copies.

        Args:
            inputs: pictures, (B, C, h, w).

        Returns:
            1 + count pictures, (B, C, H, W).
        """
        return self.history(torch.cat([inputs, *(noised(inputs) for _ in range(self.count))])).chunk(self.count + 1)

    def forward(self, views: Views) -> Tensor:
        """Loss of a batch; in training mode a step of the schedule.

        Args:
            views: what student and teacher make of a batch.

        Returns:
            Scalar.
        """
        if self.training:
            if self.steps and refreshes(self.steps, intervals=self.intervals, phase=self.phase):
                self.follow()
            self.steps += 1
        _, teacher, encoder, _ = self._networks
        with torch.no_grad():
            changes = torch.rand(len(views.inputs), 4) < 0.5
            restored = undone(teacher(turned(views.inputs, changes)), changes)
            taught = encoder.features(views.teacher)
            others = [encoder.features(x) for x in self.negatives(views.inputs)]
            wanted = encoder.distances(encoder.latent(taught[-1]))
        made = encoder.features(views.student)
        pixels = sum(F.l1_loss(views.student, x) for x in (views.targets, views.teacher, restored))
        codes = code_loss(encoder.distances(encoder.latent(made[-1])), wanted)
        contrast = contrastive(made, taught, others, weights=WEIGHTS[-len(made) :])
        return pixels + self.weights[0] * contrast + self.weights[1] * codes


def _case(student: Tensor, teacher: Tensor, negative: Tensor, codes: Tensor, wanted: Tensor) -> Tensor:
    scales = contrastive([student], [teacher.detach()], [[negative.detach()]], weights=(1.0,))
    return scales + code_loss(codes, wanted.detach())


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = {name: torch.rand(2, 3, 4, 5, generator=generator) for name in ("student", "teacher", "negative")}
    return maps | {name: torch.rand(6, 7, generator=generator) for name in ("codes", "wanted")}


METHOD = Method(
    id=1,
    name="DCKD",
    kind="objective",
    summary="A student for restoration is drawn to its teacher and pushed away from its own earlier pictures.",
    paper=Paper(
        "Dynamic Contrastive Knowledge Distillation for Efficient Image Restoration",
        "Y. Zhou et al.",
        2025,
        "arXiv:2412.08939",
    ),
    cases={"contrast_and_codes": Objective(_case, _inputs, learns=("student", "codes"))},
)
