"""Deblurring in minutes: luminance of photographs after a Gaussian blur of 2 pixels, rounded to 8 bits.

Networks are trained on bsds400 and tested on the upper left corners of the first 30 pictures of BSD100. The score is
the gain in luminance PSNR over the blurred picture, which is the floor, 0 dB by definition; borders of the blur's
radius are shaved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.measure import benchmarks
from foveal.measure.quality import benchmark_pairs, psnr
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = ["NEEDS", "batches", "better", "blurred", "gain", "trained"]

NEEDS = ("minutes", "bsds400", "BSD100")
SIGMA, RADIUS = 2.0, 6  # standard deviation and radius of the blur, in pixels
SIDE = 192  # side of the test crops, in pixels


def blurred(x: Tensor) -> Tensor:
    """Blur pictures and round them to 8 bits.

    Args:
        x: sharp pictures, (B, C, H, W) in [0, 1], at least 7 pixels a side.

    Returns:
        Blurred pictures of the same shape; multiples of 1/255.
    """
    place = torch.arange(2 * RADIUS + 1.0) - RADIUS
    weights = torch.exp(-place.square() / (2 * SIGMA**2))
    weights = (weights / weights.sum()).to(x)
    channels = x.shape[1]
    x = F.pad(x, (RADIUS,) * 4, mode="reflect")
    for shape in ((1, -1), (-1, 1)):
        x = F.conv2d(x, weights.view(1, 1, *shape).expand(channels, -1, -1, -1), groups=channels)
    return torch.round(x * 255) / 255


def batches(seed: int, *, patch: int = 64, batch: int = 8) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches for `short_run`.

    Args:
        seed: seed of the choice of patches.
        patch: side of a patch, in pixels.
        batch: batch size, B.

    Returns:
        Function from a step to blurred and sharp luminance, (B, 1, H, W) each.
    """
    load = photos.batches(1, seed, fraction=1.0, luminance=True, patch=patch, batch=batch)

    def pair(step: int) -> tuple[Tensor, Tensor]:
        sharp = load(step)[1]
        return blurred(sharp), sharp

    return pair


@cached(maxsize=8)
def trained(build: Callable[..., nn.Module], *, steps: int, seed: int) -> nn.Module:
    """Build a network under a seed and train it to remove the blur.

    Args:
        build: builder of the network, called with `in_channels`; (B, 1, H, W) to the same.
        steps: number of training steps of eight patches.
        seed: seed of weights and batches.

    Returns:
        The network in eval mode; do not modify it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(in_channels=1)
    return short_run(model, batches(seed), photos.absolute_error, steps=steps)


def _psnr(luminance: Tensor, sharp: NDArray[np.uint8]) -> float:
    out = luminance[0, 0].clamp(0, 1).mul(255).round().byte().numpy()
    return psnr(out, sharp, shave=RADIUS)


@cached(maxsize=1)
def _held_out() -> tuple[tuple[Tensor, NDArray[np.uint8], float], ...]:
    """Blurred luminance, sharp picture and PSNR of the blurred picture, for each test picture."""
    if rehearsing():
        pictures = [photos.patches(1, patch=24).batch(1, np.random.default_rng(7))[1][0]]
    else:
        pairs = benchmark_pairs(benchmarks.find("BSD100"), 2, limit=photos.LIMIT)
        pictures = [high[:SIDE, :SIDE] for _, _, high in pairs]
    found = [(blurred(photos.tensor(sharp[None], luminance=True)), sharp) for sharp in pictures]
    return tuple((low, sharp, _psnr(low, sharp)) for low, sharp in found)


def gain(model: nn.Module) -> float:
    """Gain of a network over the blurred picture on the test pictures.

    Args:
        model: network in eval mode, blurred luminance (1, 1, H, W) in [0, 1] to sharp luminance.

    Returns:
        Difference of luminance PSNR, dB, averaged over all pictures.
    """
    with torch.inference_mode():
        return float(np.mean([_psnr(model(low), sharp) - base for low, sharp, base in _held_out()]))


def better(
    build: Callable[..., nn.Module],
    says: str,
    *,
    than: Callable[..., nn.Module],
    steps: int,
    paper: str,
    by: float = 0.0,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two networks under the same seeds, patches and steps.

    Args:
        build: builder of the network, called with `in_channels`.
        says: promise, one sentence.
        than: builder of the rival.
        steps: number of training steps of each.
        paper: the paper's value.
        by: lower bound on the difference, dB; negative for "at most this much worse".
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        ours, theirs = (gain(trained(b, steps=steps, seed=seed)) for b in (build, than))
        return ours - theirs

    data = f"{steps} steps on bsds400, Gaussian blur of {SIGMA:g} pixels, 8 bits; corners of the first 30 of BSD100"
    return kept(says, paper=paper, quality=difference, at_least=by, data=data, needs=NEEDS, **words)
