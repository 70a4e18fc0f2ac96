"""Evidence for MHS-VM: its module against SS2D in size, time and Dice of a small U-net on synthetic blobs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.tasks import blobs
from foveal.evidence.timing import call
from foveal.measure.cost import count_parameters
from foveal.models.dense.mhs_vm import PATTERNS, MHSUNet, MultiHeadScan, mhs_unet, pattern, vm_unet
from foveal.nn.ss2d import SS2D
from foveal.ops.scan2d import gather, scatter
from foveal.record import equal, faster, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _round_trip(*, there_and_back: bool) -> Tensor:
    """Numbered maps of several shapes, unchanged or along every route and back."""
    found = []
    for height, width in ((7, 5), (4, 9), (1, 6), (6, 1), (8, 8)):
        x = torch.randn(1, 1, height * width, generator=torch.Generator().manual_seed(0))
        for name in PATTERNS:
            for way in pattern(name, height, width).split(1):
                back = scatter(gather(x, way), way, height * width) if there_and_back else x
                found.append(back.flatten())
    return torch.cat(found)


def _count(build: Callable[[], nn.Module]) -> float:
    with torch.device("meta"):
        return float(count_parameters(build()))


small = partial(MHSUNet, dim=24, depths=(1, 1), depths_up=(1, 1), state=4)

CLAIMS = (
    params("VM-UNet.", paper="27.43 M", model=vm_unet, expect="27.43 M", beyond="VM-UNet as the paper counts it"),
    smaller(
        "With four heads in place of SS2D the network has fewer parameters.",
        paper="fewer",
        ours=lambda: _count(mhs_unet),
        theirs=lambda: _count(vm_unet),
        beyond="fewer parameters than VM-UNet",
    ),
    smaller(
        "The module has fewer parameters than SS2D of the same width, 96.",
        paper="fewer",
        ours=lambda: _count(partial(MultiHeadScan, 96)),
        theirs=lambda: _count(partial(SS2D, 96)),
        clause=2,
    ),
    equal(
        "Every route visits every position once: what goes along it comes back to its place.",
        ours=lambda: _round_trip(there_and_back=True),
        theirs=lambda: _round_trip(there_and_back=False),
        tolerance=0.0,
        clause=1,
    ),
    faster(
        "The module takes less processor time than SS2D of the same width, 192 channels of 32×32.",
        paper="fewer operations",
        ours=call(partial(MultiHeadScan, 192), 1, 192, 32, 32),
        theirs=call(partial(SS2D, 192), 1, 192, 32, 32),
        threads=1,
        clause=3,
    ),
    blobs.better(
        partial(small, num_heads=4),
        "A small U-net finds blobs on a waved and noisy background at least as well as with SS2D, by Dice.",
        than=partial(small, num_heads=0),
        steps=400,
        paper="better on ISIC 2017 and 2018",
        clause=4,
    ),
)
