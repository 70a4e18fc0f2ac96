"""The protocol of distillation: one student, one teacher, one loss of what both make of a batch.

A loss is any function of a `Views`; a loss that is a module (projectors, exit branches) is trained with the student and
left behind afterwards. A teacher is any callable; a module is put in eval mode and receives no gradients.

    distillation = Distillation(student, teacher, loss, student_taps=["layer3"], teacher_taps=["blocks.11"])
    value = distillation((pictures, labels))  # scalar; optimise distillation.parameters()
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.shrink.data import Data
from foveal.shrink.distill.taps import Taps
from foveal.train.loop import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.shrink.step import Inputs

__all__ = ["Distil", "Distillation", "Loss", "Views", "soft_cross_entropy", "soft_targets"]


@dataclass(frozen=True)
class Views:
    """What student and teacher make of one batch.

    Args:
        inputs: batch of inputs, (B, …).
        targets: labels, (B,), or target pictures.
        student: the student's output, with its graph.
        teacher: the teacher's output, without a graph.
        student_features: outputs of the student's taps, in their order.
        teacher_features: outputs of the teacher's taps, in their order, without a graph.
    """

    inputs: Tensor
    targets: Tensor
    student: Tensor
    teacher: Tensor
    student_features: tuple[Tensor, ...] = ()
    teacher_features: tuple[Tensor, ...] = ()


if TYPE_CHECKING:
    Loss = Callable[[Views], Tensor]
else:
    Loss = Any


class Distillation(nn.Module):
    """A student in training: batches in, loss out. Its parameters are the student's and, for a module, the loss's.

    Args:
        student: network to train, available again as `.student`.
        teacher: callable from inputs to outputs; a module is set to eval mode.
        loss: function of `Views`; a module is trained too.
        student_taps: names of the student's modules whose outputs the loss sees.
        teacher_taps: names of the teacher's modules whose outputs the loss sees; the teacher must be a module.

    Raises:
        TypeError: taps of a teacher that is not a module.
        ValueError: a tap that does not exist.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Callable[[Tensor], Tensor],
        loss: Loss,
        *,
        student_taps: Sequence[str] = (),
        teacher_taps: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if teacher_taps and not isinstance(teacher, nn.Module):
            raise TypeError(f"taps need a teacher that is an nn.Module, got {type(teacher).__name__}")
        self.student, self.loss = student, loss
        self._teacher = (teacher.eval() if isinstance(teacher, nn.Module) else teacher,)  # a tuple hides its parameters
        self._student_taps = Taps(student, student_taps)
        self._teacher_taps = Taps(teacher, teacher_taps) if isinstance(teacher, nn.Module) else None

    @property
    def teacher(self) -> Callable[[Tensor], Tensor]:
        """The teacher."""
        return self._teacher[0]

    def views(self, inputs: Tensor, targets: Tensor) -> Views:
        """Run student and teacher.

        Args:
            inputs: batch of inputs, (B, …).
            targets: their targets, (B, …).

        Returns:
            What the loss sees.
        """
        with ExitStack() as stack:
            if self._teacher_taps is not None:
                stack.enter_context(self._teacher_taps)
            with torch.no_grad():
                taught = self.teacher(inputs)
        with self._student_taps:
            made = self.student(inputs)
        hints = self._teacher_taps.values() if self._teacher_taps is not None else ()
        return Views(inputs, targets, made, taught, self._student_taps.values(), hints)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of the student on a batch.

        Args:
            batch: inputs and targets.

        Returns:
            Scalar.
        """
        return self.loss(self.views(*batch))


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Mean cross-entropy with soft targets.

    Args:
        logits: logits, (B, classes).
        probabilities: target probabilities, (B, classes).

    Returns:
        Scalar.
    """
    return -(probabilities * F.log_softmax(logits, -1)).sum(-1).mean()


def soft_targets(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Hinton's distillation loss, T²·KL(softmax(t/T) ‖ softmax(s/T)) (arXiv:1503.02531, section 2).

    Args:
        student: the student's logits, (B, classes).
        teacher: the teacher's logits, (B, classes).
        temperature: T, above 0.

    Returns:
        Scalar, the mean over the batch.
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.log_softmax(teacher / temperature, -1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


@dataclass(frozen=True)
class Distil:
    """Step: train the model as the student of a teacher.

    Args:
        teacher: callable from inputs to outputs.
        loss: builder of the loss, a function of `Views`; None is the data's own loss plus `soft_targets`.
        steps: number of training steps, at least 1.
        lr: peak learning rate of AdamW, above 0.
        weight_decay: weight decay of parameters with two or more axes.
        student_taps: names of the student's modules whose outputs the loss sees.
        teacher_taps: names of the teacher's modules whose outputs the loss sees.

    Raises:
        ValueError: a number outside its range.
    """

    teacher: Callable[[Tensor], Tensor]
    loss: Callable[[], Loss] | None = None
    steps: int = 500
    lr: float = 1e-3
    weight_decay: float = 0.05
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Train the model.

        Args:
            model: student.
            data: `Data` with `batches` and `loss`.

        Returns:
            The student in eval mode; the same object.

        Raises:
            ValueError: data without labelled batches.
        """
        if not isinstance(data, Data) or data.batches is None or data.loss is None:
            raise ValueError("Distil trains and needs Data with batches and loss; give both")
        supervised = data.loss
        loss = (
            self.loss()
            if self.loss is not None
            else lambda views: supervised(views.student, views.targets) + soft_targets(views.student, views.teacher)
        )
        distillation = Distillation(
            model, self.teacher, loss, student_taps=self.student_taps, teacher_taps=self.teacher_taps
        )
        learnt = [p for p in distillation.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
        ]
        fit(
            distillation,
            lambda module, batch: module(batch),
            data.batches,
            [torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr)],
            steps=self.steps,
            warmup=min(20, self.steps),
            clip=1.0,
        )
        return model.eval()
