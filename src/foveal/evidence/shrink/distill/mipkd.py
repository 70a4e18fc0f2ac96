"""Evidence for MiPKD: EDSR's counts, the student left behind, and a student of half the depth and a third of the width.

Students are trained without a teacher, with logits-KD, with features alone (FitNet) and with MiPKD on the same patches.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.edsr import EDSR
from foveal.evidence.tasks.distilling_photos import better, logits, pictures_alone, student, teacher
from foveal.record import equal, params
from foveal.shrink.distill.distillation import Distillation
from foveal.shrink.distill.mipkd import MiPKD

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.shrink.distill.distillation import Loss, Views

small = partial(EDSR, dim=8, depth=2)  # the teacher: 24 channels, 4 blocks
STAGES = ((("body.0",), ("body.0", "body.1")), (("body.1",), ("body.2", "body.3")))
DIMS = 8, 24
TAPS: dict[str, Any] = {
    "student_taps": [ours[-1] for ours, _ in STAGES],
    "teacher_taps": [theirs[-1] for _, theirs in STAGES],
}
mipkd = partial(MiPKD, stages=STAGES, dims=DIMS)


class _FitNet(nn.Module):
    """Picture plus squared error of the last features, projected by a 1×1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(*DIMS, 1)

    def forward(self, views: Views) -> Tensor:
        hint = F.mse_loss(self.project(views.student_features[-1]), views.teacher_features[-1])
        return pictures_alone(views) + 0.1 * hint


@cached(maxsize=16)
def _student(kind: str, seed: int) -> nn.Module:
    loss: dict[str, Callable[[nn.Module, nn.Module], Loss]] = {
        "none": lambda *_: pictures_alone,
        "logits": lambda *_: logits,
        "fitnet": lambda *_: _FitNet(),
        "mipkd": mipkd,
    }
    return student(loss[kind], seed=seed, build=small, taught_by=teacher, **TAPS)


def _seeded(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small(2)


def _trained(*, mixers: bool) -> nn.Module:
    """A student after three steps on noise: with mixers whose terms weigh nothing, or without them."""
    student, guide = _seeded(0), EDSR(2, dim=24, depth=4)
    generator = torch.Generator().manual_seed(1)
    loss = mipkd(student, guide, weights=(0.0, 0.0, 0.0)) if mixers else pictures_alone
    distillation = Distillation(student, guide, loss, **TAPS)
    optimizer = torch.optim.Adam(distillation.parameters(), lr=1e-2)
    for _ in range(3):
        low, high = (torch.rand(2, 3, side, side, generator=generator) for side in (6, 12))
        optimizer.zero_grad()
        distillation((low, high)).backward()
        optimizer.step()
    return student.eval()


def _plain(student: nn.Module) -> Tensor:
    """Output of a plain network that takes over the student's state, all of it."""
    plain = small(2)
    plain.load_state_dict(student.state_dict(), strict=True)
    with torch.inference_mode():
        return plain.eval()(torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(2)))


CLAIMS = (
    params(
        "The teacher, EDSR ×4 with 32 blocks of 256 channels, has 43,089,923 parameters.",
        paper="43.09 M",
        model=partial(EDSR, 4, dim=256, depth=32),
        expect=43_089_923,
        clause=1,
    ),
    params(
        "The student, EDSR ×4 with 32 blocks of 64 channels, has 2,699,267 parameters.",
        paper="2.70 M",
        model=partial(EDSR, 4, dim=64, depth=32),
        expect=2_699_267,
        clause=1,
    ),
    equal(
        "A student trained beside mixers is a plain network, and one trained without them, to the bit.",
        ours=lambda: _plain(_trained(mixers=True)),
        theirs=lambda: _plain(_trained(mixers=False)),
        tolerance=0.0,
        clause=2,
    ),
    better(
        "MiPKD's student is above the student without a teacher.",
        partial(_student, "mipkd"),
        than=partial(_student, "none"),
        paper="above",
        clause=3,
    ),
    better(
        "MiPKD's student is not below logits-KD's.",
        partial(_student, "mipkd"),
        than=partial(_student, "logits"),
        paper="above",
        clause=3,
    ),
    better(
        "MiPKD's student is not below FitNet's.",
        partial(_student, "mipkd"),
        than=partial(_student, "fitnet"),
        paper="above",
        beyond="beats other distillation in compound compression",
    ),
)
