"""Evidence for GLMix: its assignments and counts, and against attention among all pixels in the same network."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import Attention
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.backbone.glmix import GLMix, GLNet, assign, glnet_4g, glnet_9g, glnet_16g
from foveal.record import equal, faster, grows, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Claim

DIM, SLOTS, KERNEL = 64, 64, 5  # of GLNet-4G's first stage
SIDES = (14, 28, 56, 112)


def _sums() -> Tensor:
    """Sums of both assignments of a picture that is not square."""
    draw = torch.Generator().manual_seed(0)
    x, slots = torch.randn(2, 12, 35, generator=draw), torch.randn(2, 9, 12, generator=draw)
    gather, dispatch = assign(x, slots, 4.0)
    return torch.cat((gather.sum(2).flatten(), dispatch.sum(1).flatten()))


def _layer() -> nn.Module:
    return GLMix(DIM, 2, num_slots=SLOTS, kernel_size=KERNEL)


def _counted(side: int) -> float:
    return float(count_macs(_layer(), (1, DIM, side, side)))


def _by_formula(side: int) -> float:
    pixels = side**2
    each = 3 * SLOTS * DIM + 2 * DIM**2 + KERNEL**2 * DIM
    return float(pixels * each + SLOTS * (4 * DIM**2 + 2 * SLOTS * DIM))


def _attention() -> Callable[[Tensor], Tensor]:
    """Attention among all pixels of a map."""
    layer = Attention(DIM, 2, qkv_bias=True).eval()
    return lambda x: layer(x.flatten(2).transpose(1, 2))


def _small(mixer: str) -> nn.Module:
    mixers = (mixer, mixer)
    return GLNet(dims=(32, 64), depths=(2, 2), head_dim=16, num_slots=16, mixers=mixers, num_classes=10)


def _size(name: str, model: Callable[[], nn.Module], parameters: str, cost: str) -> tuple[Claim, Claim]:
    return (
        params(
            f"{name} with the blocks of the authors' code.",
            paper=parameters,
            model=model,
            expect=parameters,
            beyond="sizes that the paper prints",
        ),
        macs(
            f"{name} at 224×224, within 2 % of what the paper counts.",
            paper=cost,
            model=model,
            shape=(1, 3, 224, 224),
            expect=cost,
            tolerance=0.02,
            beyond="sizes that the paper prints",
        ),
    )


CLAIMS = (
    *_size("GLNet-4G", glnet_4g, "27 M", "4.5 G"),
    *_size("GLNet-9G", glnet_9g, "60 M", "9.7 G"),
    *_size("GLNet-16G", glnet_16g, "106 M", "16.7 G"),
    equal(
        "Weights of the pixels in a slot sum to one, and so do those of the slots in a pixel.",
        ours=_sums,
        theirs=lambda: torch.ones(2 * (9 + 35)),
        tolerance=1e-6,
        clause=1,
    ),
    equal(
        "Multiply-adds of the layer are N (3 M C + 2 C² + k² C) + M (4 C² + 2 M C).",
        ours=lambda: torch.tensor([_counted(side) for side in SIDES], dtype=torch.float64),
        theirs=lambda: torch.tensor([_by_formula(side) for side in SIDES], dtype=torch.float64),
        tolerance=0.0,
        clause=2,
    ),
    grows(
        "They are linear in pixels.",
        paper="linear",
        cost=_counted,
        sizes=(56, 112, 224),
        of=lambda side: side**2,
        exponent=(0.97, 1.0),
        clause=2,
    ),
    faster(
        "The layer is at least twice as fast as attention among all pixels at 56×56.",
        paper="more efficient",
        ours=call(_layer, 1, DIM, 56, 56),
        theirs=call(_attention, 1, DIM, 56, 56),
        at_least=2.0,
        clause=3,
    ),
    cifar10.better(
        partial(_small, "glmix"),
        "A small network of it is at most one point below the same network with attention among all pixels.",
        than=partial(_small, "attention"),
        steps=500,
        paper="above recent backbones",
        by=-1.0,
        clause=4,
    ),
)
