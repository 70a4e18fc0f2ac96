"""Terrain in minutes: maps of land cover seen by a spectrometer and by a height sensor; accuracy in percent of pixels.

A map of 16×16 pixels is cut into twelve regions (the nearest of twelve points). Each has one of three materials and is
low or raised, which makes six classes, all equally likely. The first sensor sees eight spectral bands: the material's
spectrum times a brightness of the region, with noise; it knows nothing of height, so it cannot exceed 50 %. The second
sees a height: a slope of the terrain, 1 more where a region is raised, with noise; it knows nothing of the material, so
it cannot exceed 33.3 %. Both determine the class: 100 %. Chance is 16.7 %. The noise is large enough that a pixel alone
does not suffice.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Claim

__all__ = ["CEILINGS", "NEEDS", "TwoSensors", "above_single", "better", "maps", "score", "trained"]

NEEDS = ("minutes",)
SIDE, BANDS, MATERIALS, REGIONS = 16, 8, 3, 12
COUNT = {"train": 2000, "test": 200}
CEILINGS = {"both": 100.0, "spectrum": 50.0, "height": 100 / 3}  # percent, by construction


@cached(maxsize=2)
def maps(part: str) -> tuple[Tensor, Tensor]:
    """Maps with their classes.

    Args:
        part: "train" (2,000) or "test" (200).

    Returns:
        Maps, (n, 9, 16, 16), eight bands and a height, about zero mean and unit variance; classes, (n, 16, 16) int64:
        twice the material, and 1 more where it is raised.
    """
    generator = np.random.default_rng(10 if part == "train" else 11)
    count = 20 if rehearsing() else COUNT[part]
    spectra = np.random.default_rng(12).normal(0, 1, (MATERIALS, BANDS))
    place = np.stack(np.meshgrid(*[(np.arange(SIDE) + 0.5) / SIDE] * 2, indexing="ij"), -1)
    points = generator.uniform(0, 1, (count, REGIONS, 2))
    # (n, side, side, regions) to the nearest, (n, side · side)
    distance = np.square(place[None, :, :, None] - points[:, None, None]).sum(-1)
    region = distance.argmin(-1).reshape(count, -1)
    material = np.take_along_axis(generator.integers(MATERIALS, size=(count, REGIONS)), region, 1)
    raised = np.take_along_axis(generator.integers(2, size=(count, REGIONS)), region, 1)
    light = np.take_along_axis(generator.uniform(0.5, 1.5, (count, REGIONS)), region, 1)
    bands = spectra[material] * light[..., None] + generator.normal(0, 1.5, (count, SIDE**2, BANDS))
    slope = generator.normal(0, 1, (count, 2)) @ (place - 0.5).reshape(-1, 2).T
    height = raised + slope + generator.normal(0, 0.3, slope.shape) - 0.5
    seen = np.concatenate((bands / 1.8, height[..., None] / 0.8), -1).transpose(0, 2, 1)
    made = torch.from_numpy(seen.astype(np.float32)).unflatten(2, (SIDE, SIDE))
    return made, torch.from_numpy((2 * material + raised).astype(np.int64)).unflatten(1, (SIDE, SIDE))


def _stem(channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, dim, 3, 1, 1), nn.BatchNorm2d(dim), nn.GELU(), nn.Conv2d(dim, dim, 1))


class TwoSensors(nn.Module):
    """A small network around a fusion block, (B, 9, 16, 16) to the classes of the pixels, (B, 6, 16, 16).

    Args:
        fusion: builder of the block from the number of channels.
        dim: C.
        view: "both", or "spectrum" or "height" for one sensor in both streams.

    Raises:
        ValueError: an unknown view.
    """

    def __init__(self, fusion: Callable[[int], nn.Module], *, dim: int = 16, view: str = "both") -> None:
        super().__init__()
        if view not in CEILINGS:
            raise ValueError(f"view must be one of {', '.join(CEILINGS)}, got {view!r}")
        spectrum, height = slice(0, BANDS), slice(BANDS, BANDS + 1)
        self.seen = {"both": (spectrum, height), "spectrum": (spectrum,) * 2, "height": (height,) * 2}[view]
        self.stems = nn.ModuleList(_stem(seen.stop - seen.start, dim) for seen in self.seen)
        self.fusion = fusion(dim)
        self.head = nn.Sequential(
            nn.BatchNorm2d(dim), nn.GELU(), nn.Conv2d(dim, dim, 3, 1, 1), nn.GELU(), nn.Conv2d(dim, 2 * MATERIALS, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fusion(*(stem(x[:, seen]) for stem, seen in zip(self.stems, self.seen, strict=True)))
        return self.head(first + second)


@cached(maxsize=24)
def trained(fusion: Callable[[int], nn.Module], *, steps: int, seed: int, view: str = "both") -> nn.Module:
    """`TwoSensors` around a block, trained on the maps; claims about one network share it.

    Args:
        fusion: builder of the block from the number of channels.
        steps: number of steps of 16 maps.
        seed: seed of weights and batches.
        view: "both", "spectrum" or "height".

    Returns:
        The network in eval mode; do not modify it.
    """
    build, data = partial(TwoSensors, fusion, view=view), maps("train")
    return cifar10.train_classifier(
        build, steps=steps, seed=seed, data=data, flip=False, lr=5e-3, weight_decay=0.01, batch=16
    )


def score(model: nn.Module) -> float:
    """Share of the pixels of the test maps whose class the network names.

    Args:
        model: network, (B, 9, 16, 16) to (B, 6, 16, 16).

    Returns:
        Accuracy, percent.
    """
    x, classes = maps("test")
    with torch.inference_mode():
        return 100 * float((model(x).argmax(1) == classes).float().mean())


def _words(steps: int) -> dict[str, Any]:
    data = f"{steps} steps on synthetic terrain, eight bands and a height; 200 test maps of 16×16 pixels"
    return {"unit": "points", "data": data, "needs": NEEDS}


def above_single(
    fusion: Callable[[int], nn.Module], says: str, *, steps: int, paper: str, by: float = 0.0, **words: Any
) -> Claim:
    """`kept`: accuracy with both sensors, less the better of the same network trained as long with one of them.

    Args:
        fusion: builder of the block from the number of channels.
        says: promise, one sentence.
        steps: number of training steps of each network.
        paper: the paper's value.
        by: lower bound on the difference, percentage points.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        both, *single = (score(trained(fusion, steps=steps, seed=seed, view=view)) for view in CEILINGS)
        return both - max(single)

    return kept(says, paper=paper, quality=difference, at_least=by, **_words(steps), **words)


def better(
    fusion: Callable[[int], nn.Module],
    says: str,
    *,
    than: Callable[[int], nn.Module],
    steps: int,
    paper: str,
    by: float = 0.0,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two blocks in the same network under the same seeds, batches and steps.

    Args:
        fusion: builder of the block from the number of channels.
        says: promise, one sentence.
        than: builder of the rival.
        steps: number of training steps of each.
        paper: the paper's value.
        by: lower bound on the difference, percentage points; negative for "at most this much worse".
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        ours, theirs = (score(trained(f, steps=steps, seed=seed)) for f in (fusion, than))
        return ours - theirs

    return kept(says, paper=paper, quality=difference, at_least=by, **_words(steps), **words)
