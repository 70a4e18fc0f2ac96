"""Evidence for FIT: how attention and time grow with the number of patches, and against attention among all of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call, seconds
from foveal.measure.cost import count_macs
from foveal.models.backbone.fit import FIT
from foveal.record import equal, grows, kept, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, LAYERS, LATENTS = 32, ((1, 2), (1, 1)), 2
ROOTS = (2, 3, 4, 5, 6)  # g: maps of g³ × g³ patches in groups of g², so that n = L^(1/3) exactly
CLOCKED = ((32, 4), (64, 4), (100, 5), (125, 5))  # sides of the map and of a group: 1,024 to 15,625 patches


def _fit(side: int, group: int, *, dim: int = DIM) -> nn.Module:
    """A network whose patches are pixels."""
    words = {"patch_size": 1, "group_size": group, "latents": LATENTS, "grid": (side, side), "num_classes": 0}
    return FIT(dim=dim, layers=LAYERS, num_heads=2, **words)  # type: ignore[arg-type]


def _attention_macs(model: nn.Module, side: int) -> float:
    """Multiply-adds of products between tokens: those of batched products, of which linear layers have none."""
    from torch.utils.flop_counter import FlopCounterMode

    ghost = model.to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(torch.empty(1, 3, side, side, device="meta"))
    found = counter.get_flop_counts()["Global"]
    return sum(count for name, count in found.items() if "bmm" in str(name) or "attention" in str(name)) / 2


def _counted(root: int) -> float:
    return _attention_macs(_fit(root**3, root), root**3)


def _by_formula(root: int) -> float:
    """2 C times: local layers L n, reading and writing L m, global layers (L m / n)²."""
    patches, group = root**6, root**2
    local, wide = sum(first for first, _ in LAYERS), sum(second for _, second in LAYERS)
    crossed = 2 * len(LAYERS) - 1  # each stage reads, and all but the last write
    latents = patches // group * LATENTS
    return float(2 * DIM * (local * patches * group + crossed * patches * LATENTS + wide * latents**2))


def _all_counted(side: int) -> float:
    """The same of a network with attention among all patches."""
    return _attention_macs(small_vit(dim=DIM, depth=4, num_heads=2, patch=1, img_size=side), side)


def _seconds(size: tuple[int, int]) -> float:
    side, group = size
    return seconds(call(lambda: _fit(side, group, dim=64), 1, 3, side, side), repeats=2)


def _small() -> nn.Module:
    """Sixteen groups of four patches with one latent each."""
    words = {"patch_size": 4, "group_size": 2, "latents": 1, "grid": (8, 8), "num_classes": 10}
    return FIT(dim=48, layers=((1, 4), (1, 4)), num_heads=3, **words)  # type: ignore[arg-type]


def _whole() -> nn.Module:
    return small_vit(dim=48, depth=4)


def _difference(seed: int) -> float:
    ours, theirs = (cifar10.accuracy(cifar10.trained(build, steps=500, seed=seed)) for build in (_small, _whole))
    return ours - theirs


def _cost(build: Callable[[], nn.Module]) -> float:
    return float(count_macs(build(), (1, 3, 32, 32)))


def _tensor(cost: Callable[[int], float]) -> Tensor:
    return torch.tensor([cost(root) for root in ROOTS], dtype=torch.float64)


CLAIMS = (
    equal(
        "Multiply-adds of attention are 2 C times L n, L m and (L m / n)² for each layer.",
        ours=partial(_tensor, _counted),
        theirs=partial(_tensor, _by_formula),
        tolerance=0.0,
        clause=1,
    ),
    grows(
        "They grow as L^(4/3) in groups of L^(1/3) patches, from 729 to 46,656 patches.",
        paper="O(L^(4/3))",
        cost=_counted,
        sizes=ROOTS[1:],
        of=lambda root: root**6,
        exponent=(1.28, 4 / 3 + 0.01),
        clause=1,
    ),
    grows(
        "Those of attention among all patches grow as L².",
        paper="O(L²)",
        cost=_all_counted,
        sizes=(8, 16, 32),
        of=lambda side: side**2,
        exponent=(1.99, 2.01),
        beyond="what it is compared with",
    ),
    grows(
        "The time of a network grows with an exponent below 1.4 from 1,024 to 15,625 patches.",
        paper="O(L^(4/3))",
        cost=_seconds,
        sizes=CLOCKED,
        of=lambda size: size[0] ** 2,
        exponent=(0.0, 1.4),
        rounds=5,
        clause=2,
    ),
    smaller(
        "The network that is trained takes no more multiply-adds than the one with attention among all patches.",
        paper="equal FLOPs",
        ours=lambda: _cost(_small),
        theirs=lambda: _cost(_whole),
        clause=3,
    ),
    kept(
        "It is at most one point below attention among all patches.",
        paper="on a par",
        quality=_difference,
        at_least=-1.0,
        unit="points",
        data="500 steps on CIFAR-10, the first 2,000 test pictures",
        needs=cifar10.NEEDS,
        clause=3,
    ),
)
