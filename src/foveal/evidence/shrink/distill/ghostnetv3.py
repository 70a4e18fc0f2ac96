"""Evidence for GhostNetV3: counts and outputs of folding, its time, and the recipe against plain training and Mixup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import timm
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10_half
from foveal.evidence.timing import call
from foveal.record import equal, faster, kept, macs, params
from foveal.shrink.distill.distillation import Views
from foveal.shrink.distill.ghostnetv3 import STAGES, FoldBranches, _settled, ghostnet, taught

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Claim

STEPS = 200
COMPACT, WIDE = 0.25, 1.0  # widths
Mixed = tuple["Tensor", "Tensor", "Tensor", float]  # pictures, labels, labels of what was mixed in, share of the first


def _full() -> nn.Module:
    return timm.create_model("ghostnetv3_130")


def _folded() -> nn.Module:
    return FoldBranches().apply(_full())


def _logits(*, fold: bool) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = _settled(_full(), 0), torch.randn(1, 3, 96, 96)
        with torch.inference_mode():
            return (FoldBranches().apply(model) if fold else model)(x)


def _mixed(x: Tensor, labels: Tensor, draw: torch.Generator) -> Mixed:
    """Mixup or CutMix with equal probability; with weights from Beta(1, 1), which is the uniform distribution."""
    order = torch.randperm(len(x), generator=draw)
    share, which, down, right = torch.rand(4, generator=draw).tolist()
    if which < 0.5:
        return share * x + (1 - share) * x[order], labels, labels[order], share
    height, width = x.shape[2:]
    tall, broad = (round(side * (1 - share) ** 0.5) for side in (height, width))
    top, left = round(down * (height - tall)), round(right * (width - broad))
    x = x.clone()
    x[..., top : top + tall, left : left + broad] = x[order][..., top : top + tall, left : left + broad]
    return x, labels, labels[order], 1 - tall * broad / (height * width)


@cached(maxsize=32)
def _accuracy(
    seed: int, width: float = COMPACT, *, branches: bool = True, teacher: bool = False, mix: bool = False
) -> float:
    """Accuracy of a five-stage GhostNet, folded if it has branches, percent."""
    inputs, labels = cifar10_half.pictures("train")
    draw = torch.Generator().manual_seed(seed)
    guide = cifar10_half.teacher() if teacher else None

    def batches(step: int) -> Mixed:  # noqa: ARG001 - drawn from the seeded generator
        rows = torch.randint(len(labels), (min(64, len(labels)),), generator=draw)
        x, y = inputs[rows], labels[rows]
        x = torch.where(torch.rand(len(x), 1, 1, 1, generator=draw) < 0.5, x.flip(-1), x)
        return _mixed(x, y, draw) if mix else (x, y, y, 1.0)

    def loss(model: nn.Module, batch: Mixed) -> Tensor:
        x, first, second, share = batch
        made = model(x)
        if guide is not None:
            with torch.no_grad():
                said = guide(x)
            return taught(Views(x, first, made, said))
        return share * F.cross_entropy(made, first) + (1 - share) * F.cross_entropy(made, second)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ghostnet(width, branches=branches, stages=STAGES[:5], stem_stride=1, num_classes=10, drop_rate=0.0)
        short_run(model, batches, loss, steps=STEPS, weight_decay=0.05, betas=(0.9, 0.98), clip=1.0)
    return cifar10_half.accuracy(FoldBranches().apply(model) if branches else model)


def _kept(says: str, quality: Callable[[int], float], *, paper: str, clause: int) -> Claim:
    return kept(
        says,
        paper=paper,
        quality=quality,
        at_least=0.0,
        unit="points",
        data=f"CIFAR-10 at 16×16, {STEPS} steps of GhostNets of five stages, the first 2,000 test pictures",
        needs=cifar10_half.NEEDS,
        clause=clause,
    )


CLAIMS = (
    params("As trained it has 12.22 M parameters.", paper="timm", model=_full, expect=12_217_720, clause=1),
    params("Folded it has 8.95 M parameters.", paper="timm", model=_folded, expect=8_948_296, clause=1),
    equal(
        "Folding, after a training, leaves the outputs as they were.",
        ours=lambda: _logits(fold=True),
        theirs=lambda: _logits(fold=False),
        clause=1,
    ),
    faster(
        "The folded network takes less time than with its branches.",
        paper="14.46 ms on a phone",
        ours=call(_folded, 1, 3, 224, 224),
        theirs=call(_full, 1, 3, 224, 224),
        clause=2,
    ),
    macs(
        "Folded it takes 269.3 M multiply-adds.",
        paper="269 M",
        model=_folded,
        shape=(1, 3, 224, 224),
        expect="269.3 M",
        clause=3,
    ),
    _kept(
        "A compact network is more accurate with a teacher than with labels alone.",
        lambda seed: _accuracy(seed, teacher=True) - _accuracy(seed),
        paper="79.1% against 76.9%, trained ordinarily",
        clause=4,
    ),
    _kept(
        "With branches and a teacher it is more accurate than GhostNetV2 trained plainly.",
        lambda seed: _accuracy(seed, teacher=True) - _accuracy(seed, branches=False),
        paper="79.1% against 76.9%",
        clause=5,
    ),
    _kept(
        "Mixup and CutMix lower the accuracy of the compact network.",
        lambda seed: _accuracy(seed) - _accuracy(seed, mix=True),
        paper="worse accuracy",
        clause=6,
    ),
    _kept(
        "They do not lower that of a network four times as wide.",
        lambda seed: _accuracy(seed, WIDE, mix=True) - _accuracy(seed, WIDE),
        paper="used for conventional networks",
        clause=7,
    ),
)
