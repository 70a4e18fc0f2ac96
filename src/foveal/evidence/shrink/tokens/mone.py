"""Evidence for MoNE: exact at full capacity, time of ViT-S/16, and a small ViT on CIFAR-10 beside the whole one.

All networks are trained from scratch with the same batches and steps: the plain one, one at a fixed capacity, its twin
whose tokens go to random experts, and one whose capacity is drawn anew for each step, which serves four budgets.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.record import bound, equal, faster, kept, smaller
from foveal.shrink.tokens.mone import MoNE, set_capacity_

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, CAPACITY = 500, 0.4
BUDGETS = (0.8, 0.6, 0.4, 0.2)  # capacities of the one network
SHAPE, IMAGENET = (1, 3, 32, 32), (1, 3, 224, 224)
DATA = f"CIFAR-10, small ViT, {STEPS} steps of 64 from scratch; all 10,000 test pictures"

whole = partial(small_vit, dim=64, depth=4, num_heads=4)


def nested(capacity: float = CAPACITY, *, by: str = "router") -> nn.Module:
    """The small ViT with nested experts."""
    return MoNE(capacity, by=by).apply(whole())


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "whole": whole,
    "nested": nested,
    "random": partial(nested, by="random"),
}


@cached(maxsize=9)
def _accuracy(seed: int, kind: str) -> float:
    network = cifar10.train_classifier(BUILDERS[kind], steps=STEPS, seed=seed)
    return cifar10.accuracy(network, cifar10.pictures("test"))


def _over(seed: int, *, than: str) -> float:
    return _accuracy(seed, "nested") - _accuracy(seed, than)


@cached(maxsize=3)
def _one_for_all(seed: int) -> nn.Module:
    """A network whose capacity is drawn from the budgets for each step."""
    inputs, labels = cifar10.pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor, float]:
        number = 10_000 * seed + step
        rows = torch.randint(len(labels), (64,), generator=torch.Generator().manual_seed(number))
        return inputs[rows], labels[rows], random.Random(number).choice(BUDGETS)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor, float]) -> Tensor:
        return F.cross_entropy(set_capacity_(network, batch[2])(batch[0]), batch[1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(nested(), batches, loss, steps=STEPS, lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98), clip=1.0)


def _least_fall(seed: int) -> float:
    """The least of the falls in accuracy from one budget to the next smaller one; negative where a smaller one wins."""
    network, pictures = _one_for_all(seed), cifar10.pictures("test")
    found = [cifar10.accuracy(set_capacity_(network, budget), pictures) for budget in BUDGETS]
    return min(more - fewer for more, fewer in pairwise(found))


def vit_s(capacity: float | None = None) -> nn.Module:
    """ViT-S/16 at 224 pixels, as timm has it or with nested experts."""
    import timm

    model = timm.create_model("vit_small_patch16_224")
    return model if capacity is None else MoNE(capacity).apply(model)


def _macs(build: partial[nn.Module], shape: tuple[int, ...]) -> float:
    return float(count_macs(build(), shape))


def _largest(*, nest: bool) -> Tensor:
    torch.manual_seed(0)
    model = small_vit(dim=64, depth=4, num_heads=4, class_token=True, global_pool="token").eval()
    with torch.no_grad():
        x = torch.randn(3, 3, 32, 32)
        return (MoNE((1.0, 0.0, 0.0, 0.0)).apply(model) if nest else model)(x)


def _new_parameters() -> float:
    """Parameters of ViT-S/16 with nested experts, less those of the plain one, the router's and one α a block."""
    plain, nest = (sum(p.numel() for p in model.parameters()) for model in (vit_s(), vit_s(CAPACITY)))
    return float(nest - plain - (384 * 4 + 4) - 12)


CLAIMS = (
    smaller(
        "The small ViT at capacity 0.4 takes at most half of the plain one's multiply-adds.",
        paper="over 2x fewer FLOPs",
        ours=partial(_macs, partial(nested), SHAPE),
        theirs=partial(_macs, whole, SHAPE),
        at_least=2.0,
        clause=1,
    ),
    kept(
        "At capacity 0.4 it loses at most 1 point against the plain one, trained for as many steps.",
        paper="as accurate",
        quality=partial(_over, than="whole"),
        at_least=-1.0,
        unit="points",
        data=DATA + "; paired",
        needs=cifar10.NEEDS,
        clause=1,
    ),
    faster(
        "ViT-S/16 at capacity 0.4 takes at most 65 % of the plain one's time, eight pictures at once.",
        paper="over 2x fewer FLOPs",
        ours=call(partial(vit_s, CAPACITY), 8, 3, 224, 224),
        theirs=call(vit_s, 8, 3, 224, 224),
        at_least=1 / 0.65,
        clause=2,
    ),
    kept(
        "One network at four capacities, 0.8 to 0.2: each smaller one is less accurate, or equally so.",
        paper="one model serves several budgets",
        quality=_least_fall,
        at_least=0.0,
        unit="points",
        data=DATA + ", capacity drawn for each step",
        needs=cifar10.NEEDS,
        clause=3,
    ),
    equal(
        "With all tokens at the largest expert a fresh network is the plain one.",
        ours=partial(_largest, nest=True),
        theirs=partial(_largest, nest=False),
        tolerance=1e-5,
        clause=4,
    ),
    kept(
        "The router's choice is more accurate than random experts of the same capacities.",
        paper="better than random routing",
        quality=partial(_over, than="random"),
        at_least=0.0,
        unit="points",
        data=DATA + "; paired",
        needs=cifar10.NEEDS,
        beyond="the router learns which tokens matter",
    ),
    smaller(
        "ViT-S/16 at capacity 0.4 takes less than half of the multiply-adds.",
        paper="over 2x fewer FLOPs",
        ours=partial(_macs, partial(vit_s, CAPACITY), IMAGENET),
        theirs=partial(_macs, partial(vit_s), IMAGENET),
        at_least=2.0,
        beyond="multiply-adds of a network of the usual size",
    ),
    bound(
        "ViT-S/16 gains no parameters but the router's and one number for each block.",
        paper="parameters shared",
        value=_new_parameters,
        at_least=0.0,
        at_most=0.0,
        beyond="parameters",
    ),
)
