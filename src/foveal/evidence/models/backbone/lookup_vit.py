"""Evidence for LookupViT: counts and time beside ViT-S/16, and one small network on CIFAR-10 at three sizes.

The small network has 64 patches and is trained once for grids of 2×2, 3×3 and 5×5 compressed tokens, drawn batch by
batch; the ViT of equal width and depth is trained as long. At 3×3 it takes less than half of the ViT's multiply-adds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.backbone.lookup_vit import lookup_vit, lookup_vit_base, lookup_vit_small
from foveal.record import faster, kept, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

STEPS, SIDES, MIDDLE = 850, (2, 3, 5), 3
lookup = partial(lookup_vit, dim=64, depth=4, num_heads=4, patch_size=4, grid=(8, 8), num_classes=10, sides=SIDES)
plain = partial(small_vit, dim=64, depth=4, num_heads=4)
DATA = f"CIFAR-10, 64 patches, {STEPS} steps of 64 from scratch; all 10,000 test pictures; paired"


def _vit(name: str) -> nn.Module:
    import timm

    return timm.create_model(f"vit_{name}_patch16_224")


def _at(side: int) -> nn.Module:
    network = lookup()
    network.set_side(side)
    return network


def _macs(build: Callable[[], nn.Module], side: int = 224) -> float:
    return float(count_macs(build(), (1, 3, side, side)))


@cached(maxsize=12)
def _trained(seed: int) -> dict[int, float]:
    """Accuracy of one network at each number of compressed tokens."""
    network = cifar10.train_classifier(lookup, steps=STEPS, seed=seed)
    found = {}
    for side in SIDES:
        network.set_side(side)  # type: ignore[operator]
        found[side] = cifar10.accuracy(network, cifar10.pictures("test"))
    return found


@cached(maxsize=3)
def _plain(seed: int) -> float:
    network = cifar10.train_classifier(plain, steps=STEPS, seed=seed)
    return cifar10.accuracy(network, cifar10.pictures("test"))


def _gain(seed: int, *, more: int, fewer: int) -> float:
    return _trained(seed)[more] - _trained(seed)[fewer]


CLAIMS = (
    smaller(
        "LookupViT-S/16 with 25 compressed tokens takes at most half of the multiply-adds of ViT-S/16.",
        paper="2 times fewer FLOPs",
        ours=partial(_macs, lookup_vit_small),
        theirs=partial(_macs, partial(_vit, "small")),
        at_least=2.0,
        clause=1,
    ),
    smaller(
        "LookupViT-B/16 with 25 compressed tokens takes at most half of the multiply-adds of ViT-B/16.",
        paper="2 times fewer FLOPs",
        ours=partial(_macs, lookup_vit_base),
        theirs=partial(_macs, partial(_vit, "base")),
        at_least=2.0,
        clause=1,
    ),
    smaller(
        "The small network with 9 compressed tokens takes at most half of the multiply-adds of its ViT.",
        paper="2 times fewer FLOPs",
        ours=partial(_macs, partial(_at, MIDDLE), 32),
        theirs=partial(_macs, plain, 32),
        at_least=2.0,
        clause=1,
    ),
    faster(
        "LookupViT-S/16 with 25 compressed tokens takes 1.5 times less time than ViT-S/16, one picture at a time.",
        paper="2 times fewer FLOPs",
        ours=call(lookup_vit_small, 1, 3, 224, 224),
        theirs=call(partial(_vit, "small"), 1, 3, 224, 224),
        at_least=1.5,
        clause=2,
    ),
    kept(
        "One trained network is at least as accurate with 9 compressed tokens as with 4.",
        paper="one network for several budgets",
        quality=partial(_gain, more=3, fewer=2),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "The same network is at least as accurate with 25 compressed tokens as with 9.",
        paper="one network for several budgets",
        quality=partial(_gain, more=5, fewer=3),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "With 9 compressed tokens, at less than half of the multiply-adds, it is within 1 point of the ViT.",
        paper="as accurate or better",
        quality=lambda seed: _trained(seed)[MIDDLE] - _plain(seed),
        at_least=-1.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=4,
    ),
)
