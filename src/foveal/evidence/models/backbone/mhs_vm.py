"""Evidence of foveal.models.backbone.mhs_vm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.backbone.mhs_vm import PATTERNS, MultiHeadScan, mhs_unet, pattern, vm_unet
from foveal.nn.ss2d import SS2D
from foveal.ops.scan2d import gather, scatter
from foveal.record import equal, faster, kept, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _round_trip(*, there_and_back: bool) -> Tensor:
    """Numbers on maps of several shapes, as they are or along every route and back."""
    found = []
    for height, width in ((7, 5), (4, 9), (1, 6), (6, 1), (8, 8)):
        x = torch.randn(1, 1, height * width, generator=torch.Generator().manual_seed(0))
        for name in PATTERNS:
            for way in pattern(name, height, width).split(1):
                back = scatter(gather(x, way), way, height * width) if there_and_back else x
                found.append(back.flatten())
    return torch.cat(found)


def _count(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()))


def _timed(mixer: nn.Module) -> Callable[[], Any]:
    x = torch.randn(1, 192, 32, 32)

    def call() -> Tensor:
        with torch.inference_mode():
            return mixer(x)

    return call


def _blobs(count: int, seed: int, side: int = 32) -> tuple[Tensor, Tensor]:
    """Pictures, (n, 1, S, S), of one or two ragged blobs on waves and noise, and which pixels they fill, (n, S, S)."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=draw) * (high - low) + low

    place = (torch.arange(side) + 0.5) / side
    down, right = place[:, None].expand(1, side, side), place.expand(1, side, side)
    wave = torch.sin(uniform(5, 25) * down + uniform(5, 25) * right + uniform(0, 6.3)) * 0.5
    filled = torch.zeros(count, side, side, dtype=torch.bool)
    for _ in range(2):
        i, j = down - uniform(0.2, 0.8), right - uniform(0.2, 0.8)
        angle, leaves = torch.atan2(i, j), torch.randint(2, 7, (count, 1, 1), generator=draw)
        radius = uniform(0.08, 0.25) * (1 + uniform(0, 0.5) * torch.sin(leaves * angle + uniform(0, 6.3)))
        filled |= (i**2 + j**2).sqrt() < radius
    noise = torch.randn(count, side, side, generator=draw) * 0.7
    return (wave + noise + filled * uniform(0.5, 1.0))[:, None], filled.long()


def _dice(seed: int) -> float:
    """Percent above SS2D's."""
    from foveal.evidence.tasks.cifar10 import train_classifier

    pictures, masks = _blobs(400, seed=1000)
    found = []
    for build in (mhs_unet, vm_unet):
        model = train_classifier(
            lambda build=build: build(  # type: ignore[misc]
                dim=24, depths=(1, 1), depths_up=(1, 1), state=4, in_channels=1, num_classes=2
            ),
            steps=400,
            seed=seed,
            batch=16,
            data=_blobs(4000, seed=seed),
            flip=False,
        )
        with torch.inference_mode():
            filled = torch.cat([model(x).argmax(1) for x in pictures.split(100)])
        found.append(200 * float((filled * masks).sum() / (filled.sum() + masks.sum())))
    return found[0] - found[1]


CLAIMS = (
    params("VM-UNet.", paper="27.43 M", model=vm_unet, expect=27_427_561),
    params("With four heads in place of SS2D.", paper="fewer", model=mhs_unet, expect=17_257_129),
    smaller(
        "The module has fewer parameters than SS2D of the same width, 96.",
        paper="fewer",
        ours=lambda: _count(MultiHeadScan(96)),
        theirs=lambda: _count(SS2D(96)),
    ),
    equal(
        "Every route visits every position once: what goes along it comes back to its place.",
        ours=lambda: _round_trip(there_and_back=True),
        theirs=lambda: _round_trip(there_and_back=False),
        tolerance=0.0,
    ),
    faster(
        "The module takes less processor time than SS2D of the same width, 192 channels of 32×32.",
        paper="fewer operations",
        ours=lambda: _timed(MultiHeadScan(192).eval()),
        theirs=lambda: _timed(SS2D(192).eval()),
        threads=1,
    ),
    kept(
        "A small U-net finds blobs on a waved and noisy background at least as well as with SS2D, by Dice.",
        paper="better on ISIC 2017 and 2018",
        quality=_dice,
        at_least=0.0,
        unit="points",
        seeds=3,
        data="400 steps on drawn pictures of 32×32, 400 others for the score",
        needs=("minutes",),
    ),
)
