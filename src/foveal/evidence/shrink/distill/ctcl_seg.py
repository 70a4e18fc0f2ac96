"""Evidence for CTCL-Seg: directions by hand, and two small students on CamVid alone, in mutual learning and in this.

All three runs train both students at once, from the same weights on the same batches; the weights of the terms are
a first choice, not searched for.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.segmenters import segmenter_cnn, segmenter_vit
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import segmenting
from foveal.evidence.tasks.segmenting import better, floor, score
from foveal.record import bound, equal
from foveal.shrink.distill.ctcl_seg import CollaborativeLearning, directions, region_losses

STEPS = 300
BUILDS = segmenter_cnn, segmenter_vit
WEIGHTS = 0.1, 0.1, 1.0
DATA = f"CamVid at 96×128, {STEPS} steps of 8 pictures, 233 test pictures"
NAMES = "convolutional network", "transformer"


class _Mutual(nn.Module):
    """Deep mutual learning (arXiv:1706.00384) at every pixel, and with weight 0 two students that learn alone."""

    def __init__(self, students: list[nn.Module], *, weight: float) -> None:
        super().__init__()
        self.students, self.weight = nn.ModuleList(students), weight

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        logits = [F.interpolate(net(inputs), labels.shape[1:], mode="bilinear") for net in self.students]
        loss = sum((segmenting.cross_entropy(x, labels) for x in logits), logits[0].new_zeros(()))
        if not self.weight:
            return loss
        for receiver, giver in (logits, logits[::-1]):
            log_p, log_q = giver.detach().log_softmax(1), receiver.log_softmax(1)
            loss = loss + self.weight * (log_p.exp() * (log_p - log_q)).sum(1).mean()
        return loss


@cached(maxsize=12)
def _students(seed: int, kind: str, weights: tuple[float, float, float] = WEIGHTS) -> tuple[nn.Module, ...]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pair: list[nn.Module] = [build() for build in BUILDS]
        module = (
            CollaborativeLearning(pair, low_dims=(16, 16), dims=(32, 32), weights=weights)
            if kind == "ctcl"
            else _Mutual(pair, weight=float(kind == "mutual"))
        )
        load = segmenting.batches(seed)
        short_run(module, load, lambda net, pair: net(pair), steps=STEPS, weight_decay=0.01, clip=1.0)
    return tuple(net.eval() for net in pair)


@cached(maxsize=24)
def _score(seed: int, kind: str, number: int, part: str = "test") -> float:
    return score(_students(seed, kind)[number], segmenting.pictures(part))


def _mean(seed: int, kind: str) -> float:
    return (_score(seed, kind, 0) + _score(seed, kind, 1)) / 2


def _given() -> Tensor:
    """Where the first student gives in four regions of 2×2 pixels, then where the second one does."""
    first = torch.tensor([[[1.0, 2.0, 0.0, 9.0], [3.0, 2.0, 5.0, 9.0], [1.0, 1.0, 4.0, 4.0], [1.0, 1.0, 4.0, 4.0]]])
    second = torch.tensor([[[2.0, 2.0, 3.0, 0.0], [2.0, 3.0, 1.0, 0.0], [1.0, 1.0, 9.0, 0.0], [1.0, 1.0, 9.0, 0.0]]])
    counted = torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]], dtype=torch.bool)
    ours, theirs = (region_losses(x, counted, grid=(2, 2)) for x in (first, second))
    return torch.stack(directions(ours, theirs)).float()


def _by_hand() -> Tensor:
    # Means: 2 and 2.25; 2.5 and 2 without the column that does not count; 1 and 1; none.
    return torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[0.0, 1.0], [0.0, 0.0]]]])


def _given_pixels() -> Tensor:
    first, second = torch.tensor([0.1, 0.7, 0.4, 0.0]), torch.tensor([0.2, 0.3, 0.4, 2.0])
    return torch.stack(directions(first, second)).float()


CLAIMS = (
    equal(
        "Regions go the way of the lower mean loss of the pixels that count, and nowhere where losses are equal.",
        paper="the direction is set by the student with the lower loss",
        ours=_given,
        theirs=_by_hand,
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "Pixels go the way of the lower loss.",
        paper="the direction is set by the student with the lower loss",
        ours=_given_pixels,
        theirs=lambda: torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]),
        tolerance=0.0,
        clause=1,
    ),
    *(
        better(
            f"The {name} reaches at least the mean IoU of training alone.",
            partial(_score, kind="ctcl", number=number),
            than=partial(_score, kind="alone", number=number),
            paper="above",
            data=DATA,
            clause=2,
        )
        for number, name in enumerate(NAMES)
    ),
    better(
        "The mean of both students is above that of deep mutual learning.",
        partial(_mean, kind="ctcl"),
        than=partial(_mean, kind="mutual"),
        paper="by a large margin on three sets",
        data=DATA,
        clause=3,
    ),
    bound(
        "Even the weaker student trained alone is above the most frequent class of each place.",
        paper="",
        value=lambda: min(_score(0, "alone", number) for number in range(2)) - floor(),
        at_least=0.0,
        unit="points",
        needs=segmenting.NEEDS,
        beyond="the comparison is one of networks that have learnt",
    ),
)
