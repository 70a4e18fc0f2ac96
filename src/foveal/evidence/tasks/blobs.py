"""Blobs: segmentation of synthetic 32×32 pictures with waves and noise, Dice in percent over 400 pictures.

Pictures are generated, so no data is needed: 4,000 for training, different for each seed, and 400 for testing. The
floor, all pixels predicted as filled, is 31 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = ["NEEDS", "better", "dice", "floor", "pictures", "score", "trained"]

NEEDS = ("minutes",)
TEST = 1000  # seed of the test pictures


@cached(maxsize=4)
def pictures(count: int, *, seed: int, side: int = 32) -> tuple[Tensor, Tensor]:
    """Pictures of one or two ragged blobs on waves and noise.

    Args:
        count: number of pictures, n; a tenth of it in a rehearsal.
        seed: seed of the pictures.
        side: side S of a picture, in pixels.

    Returns:
        Pictures, (n, 1, S, S), and masks of the filled pixels, (n, S, S), 0 or 1.
    """
    count = count // 10 if rehearsing() else count
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


def dice(found: Tensor, filled: Tensor) -> float:
    """Dice of two masks: twice their intersection over the sum of their sizes.

    Args:
        found: predicted mask, 0 or 1, any shape.
        filled: true mask of the same shape.

    Returns:
        Dice, percent.
    """
    return 200 * float((found * filled).sum() / (found.sum() + filled.sum()))


def floor() -> float:
    """Dice of predicting every pixel as filled.

    Returns:
        Dice, percent.
    """
    masks = pictures(400, seed=TEST)[1]
    return dice(torch.ones_like(masks), masks)


@cached(maxsize=4)
def trained(build: Callable[..., nn.Module], *, steps: int, seed: int) -> nn.Module:
    """Build a network under a seed and train it with pixelwise cross-entropy; claims about one network share it.

    Args:
        build: builder of the network, called with `in_channels=1` and `num_classes=2`; (B, 1, S, S) to (B, 2, S, S).
        steps: number of steps of 16 pictures.
        seed: seed of weights, pictures and batches.

    Returns:
        The network in eval mode; do not modify it.
    """
    inputs, masks = pictures(4000, seed=seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from torch's seeded generator
        rows = torch.randint(len(masks), (16,))
        return inputs[rows], masks[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(pair[0]), pair[1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(in_channels=1, num_classes=2)
        return short_run(model, batches, loss, steps=steps, weight_decay=0.05, betas=(0.9, 0.98), clip=1.0)


def score(model: nn.Module) -> float:
    """Dice of a network on the 400 test pictures.

    Args:
        model: network, (B, 1, S, S) to (B, 2, S, S).

    Returns:
        Dice, percent.
    """
    inputs, masks = pictures(400, seed=TEST)
    with torch.inference_mode():
        return dice(torch.cat([model(x).argmax(1) for x in inputs.split(100)]), masks)


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
    """`kept`: the paired difference of two networks under the same seeds, pictures and steps.

    Args:
        build: builder of the network, see `trained`.
        says: promise, one sentence.
        than: builder of the rival.
        steps: number of training steps of each.
        paper: the paper's value.
        by: lower bound on the difference, points of Dice; negative for "at most this much worse".
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        ours, theirs = (score(trained(b, steps=steps, seed=seed)) for b in (build, than))
        return ours - theirs

    data = f"{steps} steps on drawn pictures of 32×32, 400 others for the score"
    return kept(says, paper=paper, quality=difference, at_least=by, unit="points", data=data, needs=NEEDS, **words)
