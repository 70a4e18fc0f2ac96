"""RobustifyKT: a small network, made robust cheaply, teaches the last stage of a large one that is frozen otherwise.

*Source*: N. Jain et al., "Efficiently Robustify Pre-Trained Models", ICCV 2023 (arXiv:2309.07499), section 4. The large
network is a trunk f and a last part g; both stay as they are, and a copy h of g is tuned. For pictures x with labels y
and corrupted copies x', with the small robust teacher r, logits (B, classes), and u(z) = H(softmax z) / log(classes),
the uncertainty of a prediction, in [0, 1],

    loss = cross-entropy(h(f(x')), y) + D(r(x'), h(f(x'))) + D(g(f(x)), h(f(x)))
    D(t, s) = mean over B of (1 - u(t)) T² KL(softmax(t/T) ‖ softmax(s/T))

For each picture h answers unless g is m times less uncertain: trained on clean pictures alone, g is sure of itself on
corrupted ones too. Without h the network is the original one, bit for bit.

*Differs from the paper*: uncertainty is the normalised entropy of one prediction, which costs nothing, and a margin m
decides between the heads; a third head, trained on both kinds of pictures, is left out, since h sees both here.
*Provenance*: written from the paper. T is as usual at 32×32.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Objective
from foveal.record import Method, Paper
from foveal.shrink.distill.distillation import Views

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Robustified", "certain_targets", "transfer", "uncertainty"]


def uncertainty(logits: Tensor) -> Tensor:
    """Entropy of the predicted probabilities over the largest possible one.

    Args:
        logits: logits, (B, classes).

    Returns:
        Uncertainty of each picture, (B,), in [0, 1].
    """
    log_p = F.log_softmax(logits, 1)
    return -(log_p.exp() * log_p).sum(1) / math.log(logits.shape[1])


def certain_targets(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Soft targets of a teacher, D: pictures that it is unsure of count less.

    Args:
        student: the student's logits, (B, classes).
        teacher: the teacher's logits, (B, classes).
        temperature: T, above 0.

    Returns:
        Scalar, the mean over the batch.
    """
    teacher = teacher.detach()
    divergence = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="none",
        log_target=True,
    ).sum(1)
    return temperature**2 * ((1 - uncertainty(teacher)) * divergence).mean()


def transfer(corrupted: Views, clean: Views, *, temperature: float = 4.0) -> Tensor:
    """Loss of the tuned part.

    Args:
        corrupted: what the tuned part and the small robust teacher make of corrupted pictures.
        clean: what the tuned part and the original network make of the same pictures as they were.
        temperature: T, above 0.

    Returns:
        Scalar.
    """
    labels = F.cross_entropy(corrupted.student, corrupted.targets)
    robust = certain_targets(corrupted.student, corrupted.teacher, temperature=temperature)
    return labels + robust + certain_targets(clean.student, clean.teacher, temperature=temperature)


class Robustified(nn.Module):
    """A large network with a tuned copy of its last part; in training only that copy changes.

    Args:
        trunk: first part of the network, f, (B, …) to features.
        last: last part, g, features to (B, classes).
        margin: m, at least 0: how many times less uncertain the original part must be to answer; 0 is the original
            network.

    Raises:
        ValueError: a negative margin.
    """

    def __init__(self, trunk: nn.Module, last: nn.Module, *, margin: float = 2.0) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin must be at least 0, got {margin}; 0 is the original network, 1 the surer part")
        self.margin = margin
        self.trunk, self.original = trunk.eval().requires_grad_(False), last.eval().requires_grad_(False)
        self.tuned = copy.deepcopy(last).requires_grad_(True)

    def train(self, mode: bool = True) -> Robustified:
        """Set the mode of the tuned part; the others stay in eval mode.

        Args:
            mode: whether it is trained.

        Returns:
            This network.
        """
        super().train(mode)
        self.trunk.eval()
        self.original.eval()
        return self

    def views(self, x: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Views:
        """What `transfer` sees of a batch.

        Args:
            x: pictures, (B, …).
            targets: labels, (B,).
            teacher: logits of a teacher, (B, classes); None takes those of the original network.

        Returns:
            Views of the tuned part.
        """
        with torch.no_grad():
            features = self.trunk(x)
            said = self.original(features) if teacher is None else teacher
        return Views(x, targets, self.tuned(features), said)

    def forward(self, x: Tensor) -> Tensor:
        """Classify with the tuned part, or with the original one where that is far less uncertain.

        Args:
            x: pictures, (B, …).

        Returns:
            Logits, (B, classes).
        """
        features = self.trunk(x)
        before, after = self.original(features), self.tuned(features)
        return torch.where((uncertainty(after) < self.margin * uncertainty(before))[:, None], after, before)


def _drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn: Iterator[Tensor] = (2 * torch.randn(6, 5, generator=generator) for _ in range(4))
    names = ("student", "teacher", "on_clean", "original")
    return {**dict(zip(names, drawn, strict=True)), "targets": torch.arange(6) % 5}


def _loss(student: Tensor, teacher: Tensor, on_clean: Tensor, original: Tensor, targets: Tensor) -> Tensor:
    return transfer(Views(student, targets, student, teacher), Views(on_clean, targets, on_clean, original))


METHOD = Method(
    id=218,
    name="RobustifyKT",
    kind="objective",
    summary="A small robust network teaches the last stage of a large one, which keeps its weights and its accuracy.",
    paper=Paper("Efficiently Robustify Pre-trained Models", "N. Jain et al.", 2023, "arXiv:2309.07499"),
    cases={"transfer": Objective(_loss, _drawn, ("student", "on_clean"))},
)
