"""Evidence for OFA-KD: soft cross-entropy at γ = 1, an export without branches, and a CNN taught by a transformer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import onnx
import torch
import torch.nn.functional as F
from timm.layers import HybridEmbed
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import resnet8, small_vit
from foveal.evidence.tasks import cifar10_half, distilling
from foveal.export.onnx import to_onnx
from foveal.record import equal, kept
from foveal.shrink.distill.distillation import Distillation, soft_cross_entropy
from foveal.shrink.distill.ofa_kd import OFAKD, cnn_exits, ofa

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.shrink.distill.distillation import Loss, Views

STEPS = 300
STAGES = ("layer1", "layer2", "layer3")
DIM = 96  # channels of the teacher's tokens


def _vit() -> nn.Module:
    """A vision transformer with three convolutions as patch embedding, to learn in minutes: 4×4 tokens, 6 blocks."""

    def stem(dim: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(dim, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    def embed(**words: object) -> nn.Module:
        body = nn.Sequential(*stem(3, 24, 1), *stem(24, 48, 2), *stem(48, DIM, 2))
        body.num_features = DIM  # type: ignore[assignment]
        return HybridEmbed(body, feature_size=(4, 4), feature_ratio=(4, 4), **words)  # type: ignore[arg-type]

    return small_vit(dim=DIM, img_size=16, patch=1, embed_layer=embed)


def _teacher() -> nn.Module:
    return cifar10_half.teacher(_vit, name=f"transformer, 6 blocks of {DIM} after 3 convolutions", lr=1e-3)


def _ofa() -> OFAKD:
    return OFAKD(cnn_exits((16, 32, 64), features=DIM, num_classes=10), gamma=1.4)


class _Hint(nn.Module):
    """FitNet's loss (arXiv:1412.6550): the last map, projected, must be the tokens of the teacher's middle block."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(64, DIM, 1, bias=False)

    def forward(self, views: Views) -> Tensor:
        ours, theirs = self.project(views.student_features[0]), views.teacher_features[0]
        hint = F.mse_loss(ours, theirs.transpose(1, 2).unflatten(2, ours.shape[2:]))
        return distilling.labels_alone(views) + hint


@cached(maxsize=16)
def _accuracy(
    seed: int, loss: Callable[[], Loss], student_taps: tuple[str, ...] = (), teacher_taps: tuple[str, ...] = ()
) -> float:
    """Accuracy of the student of a loss, percent."""
    student = distilling.student(
        loss,
        seed=seed,
        build=resnet8,
        taught_by=_teacher,
        student_taps=student_taps,
        teacher_taps=teacher_taps,
        steps=STEPS,
        data=cifar10_half.pictures("train"),
    )
    return cifar10_half.accuracy(student)


def _kd() -> Loss:
    return distilling.hinton


def _over_kd(seed: int) -> float:
    return _accuracy(seed, _ofa, STAGES) - _accuracy(seed, _kd)


def _over_hint(seed: int) -> float:
    return _accuracy(seed, _ofa, STAGES) - _accuracy(seed, _Hint, ("layer3",), ("blocks.3",))


def _logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(9, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    return s, t, torch.arange(9) % 7


def _exported(loss: Callable[[], Loss], student_taps: tuple[str, ...] = ()) -> Tensor:
    """Numbers of nodes and of stored values in the ONNX file of a student after one step with a loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, x = resnet8(), torch.randn(2, 3, 16, 16)
        distillation = Distillation(student, resnet8(), loss(), student_taps=student_taps)
        optimizer = torch.optim.SGD(distillation.parameters(), lr=0.01)
        distillation((x, torch.tensor([3, 7]))).backward()
        optimizer.step()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        to_onnx(student.eval(), path, x)
        graph = onnx.load(path).graph
    return torch.tensor([len(graph.node), sum(onnx.numpy_helper.to_array(value).size for value in graph.initializer)])


_DATA = f"CIFAR-10 at 16×16, a small transformer teaches resnet8, {STEPS} steps, the first 2,000 test pictures"

CLAIMS = (
    equal(
        "At γ = 1 the loss is soft cross-entropy with the teacher's probabilities.",
        ours=lambda: ofa(*_logits()),
        theirs=lambda: soft_cross_entropy(_logits()[0], _logits()[1].softmax(1)),
        tolerance=1e-6,
        clause=1,
    ),
    equal(
        "A student trained with exit branches is exported with as many nodes and numbers as one of plain distillation.",
        ours=lambda: _exported(_ofa, STAGES),
        theirs=lambda: _exported(_kd),
        tolerance=0.0,
        clause=2,
    ),
    kept(
        "A CNN taught by a transformer is at least as accurate with OFA-KD as with plain distillation.",
        paper="up to 8.0 points on CIFAR-100",
        quality=_over_kd,
        at_least=0.0,
        unit="points",
        data=_DATA,
        needs=cifar10_half.NEEDS,
        clause=3,
    ),
    kept(
        "It is more accurate than with a hint loss on features, as in FitNets.",
        paper="features of different architectures do not match",
        quality=_over_hint,
        at_least=0.0,
        unit="points",
        data=_DATA,
        needs=cifar10_half.NEEDS,
        clause=3,
    ),
)
