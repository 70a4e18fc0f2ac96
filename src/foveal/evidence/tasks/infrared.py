"""Fusion of visible light and infrared in minutes: photographs with planted hot targets, and RoadScene's real pairs.

The visible picture is a photograph's luminance. Infrared is the same blurred with a standard deviation of 3 pixels,
around its own mean of 0.4 and times -0.7 to 0.7, as warm is not bright; then one to three ellipses of 0.8 to 1 that
the visible picture does not show. Networks are trained on patches of bsds400, without ground truth, and tested on
crops of the middle of BSD100's pictures. Real pairs: every seventh of RoadScene's 221, luminance of the visible one.

Scores are those of `foveal.measure.fusion` after rounding to 8 bits. The floor is the average of both pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.measure import benchmarks, fusion
from foveal.measure.quality import benchmark_pairs
from foveal.runtime import fuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["NEEDS", "RIVALS", "batches", "contrast", "lead", "planted", "real_pairs", "scores", "test_pairs", "trained"]

NEEDS = ("minutes", "bsds400", "BSD100")
RIVALS = ("average", "maximum", "laplacian")  # rules of `foveal.runtime.fuse`
SIDE, COUNT = 192, 20  # side of a test crop in pixels, and how many there are
SIGMA, TONE, COOL = 3.0, 0.7, 0.4  # blur of infrared, largest factor of its contrast, and its mean without targets
EVERY = 7  # of RoadScene's pairs


def _blurred(x: Tensor) -> Tensor:
    radius = min(int(3 * SIGMA), min(x.shape[2:]) - 1)
    weights = torch.exp(-(torch.arange(2 * radius + 1.0) - radius).square() / (2 * SIGMA**2))
    x = F.pad(x, (radius,) * 4, mode="reflect")
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        x = F.conv2d(x, (weights / weights.sum()).view(shape))
    return x


def _ellipse(generator: torch.Generator, height: int, width: int) -> tuple[Tensor, float]:
    """One target: how much of each pixel it covers, (H, W), and its temperature."""
    top, left, first, second, angle, hot = torch.rand(6, generator=generator).tolist()
    y = torch.arange(height)[:, None] - (0.15 + 0.7 * top) * height
    x = torch.arange(width) - (0.15 + 0.7 * left) * width
    turn = np.pi * angle
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    a, b = 4 + 8 * first, 4 + 8 * second
    inside = torch.sqrt((u / a) ** 2 + (v / b) ** 2)
    return torch.sigmoid((1 - inside) * min(a, b) * 2), 0.8 + 0.2 * hot


def planted(photo: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Complementary pictures of one photograph.

    Args:
        photo: luminance, (B, 1, H, W) in [0, 1].
        generator: source of the targets.

    Returns:
        The pair, (B, 2, H, W), multiples of 1/255, and how much of each pixel targets cover, (B, 1, H, W).
    """
    infrared, covered = _blurred(photo), torch.zeros_like(photo)
    for picture, mask in zip(infrared[:, 0], covered[:, 0], strict=True):
        tone = TONE * (2 * float(torch.rand((), generator=generator)) - 1)
        picture.sub_(picture.mean()).mul_(tone).add_(COOL).clamp_(0, 1)
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            cover, hot = _ellipse(generator, *picture.shape)
            picture.lerp_(torch.full_like(picture, hot), cover)
            mask.copy_(torch.maximum(mask, cover))
    return torch.round(torch.cat([photo, infrared], 1) * 255) / 255, covered


def batches(seed: int, *, patch: int = 64, batch: int = 8) -> Callable[[int], Tensor]:
    """Batches for `short_run`.

    Args:
        seed: seed of patches and targets.
        patch: side of a patch, in pixels.
        batch: B.

    Returns:
        Function from a step to pairs, (B, 2, H, W).
    """
    load = photos.batches(1, seed, fraction=1.0, luminance=True, patch=patch, batch=batch)

    def pair(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(np.random.default_rng((seed, step, 1)).integers(2**62)))
        return planted(load(step)[1], generator)[0]

    return pair


@cached(maxsize=8)
def trained(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensor], Tensor],
    *,
    steps: int,
    seed: int,
    lr: float = 2e-3,
) -> nn.Module:
    """Build a network under a seed and train it to fuse planted pairs.

    Args:
        build: builder of the network, (B, 2, H, W) to (B, 1, H, W).
        loss: function of model and pairs.
        steps: number of training steps of eight patches.
        seed: seed of weights, patches and targets.
        lr: peak learning rate.

    Returns:
        The network in eval mode; do not modify it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    return short_run(model, batches(seed), loss, steps=steps, lr=lr)


@cached(maxsize=1)
def test_pairs() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Held-out planted pairs.

    Returns:
        Pairs, (1, 2, H, W) each, and what targets cover, (1, 1, H, W) each.
    """
    if rehearsing():
        photo = photos.tensor(photos.patches(1, patch=48).batch(2, np.random.default_rng(7))[1], luminance=True)
    else:
        made = []
        for _, _, high in benchmark_pairs(benchmarks.find("BSD100"), 4, limit=COUNT):
            top, left = ((size - SIDE) // 2 for size in high.shape[:2])
            made.append(high[top : top + SIDE, left : left + SIDE])
        photo = photos.tensor(np.stack(made), luminance=True)
    pairs, covered = planted(photo, torch.Generator().manual_seed(20))
    return pairs.split(1), covered.split(1)


@cached(maxsize=1)
def real_pairs() -> tuple[Tensor, ...]:
    """Aligned pairs of RoadScene, luminance of the visible picture.

    Returns:
        Pairs, (1, 2, H, W) each.
    """
    if rehearsing():
        return test_pairs()[0]
    from PIL import Image

    folder = benchmarks.find("roadscene")
    made = []
    for path in sorted((folder / "cropinfrared").glob("*.jpg"))[::EVERY]:
        planes = []
        for name in (folder / "crop_LR_visible" / path.name, path):
            with Image.open(name) as picture:
                planes.append(np.asarray(picture.convert("L")))
        made.append(torch.from_numpy(np.stack(planes)[None]).float() / 255)
    return tuple(made)


def scores(fuse_pair: Callable[[Tensor], Tensor], pairs: tuple[Tensor, ...]) -> dict[str, float]:
    """Scores of anything that fuses.

    Args:
        fuse_pair: (1, 2, H, W) to (1, 1, H, W).
        pairs: (1, 2, H, W) each.

    Returns:
        Means over the pairs of `foveal.measure.fusion.scores`.
    """
    found = []
    with torch.inference_mode():
        for pair in pairs:
            fused = fuse_pair(pair).clamp(0, 1).mul(255).round()[0, 0].numpy()
            found.append(fusion.scores(fused, *(pair[0] * 255).numpy()))
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


@cached(maxsize=8)
def _of_rule(rule: str, *, real: bool) -> dict[str, float]:
    def fuse_pair(pair: Tensor) -> Tensor:
        return torch.from_numpy(fuse.RULES[rule](*pair[0].numpy()))[None, None]

    return scores(fuse_pair, real_pairs() if real else test_pairs()[0])


def lead(model: nn.Module, score: str, *, real: bool = False) -> float:
    """How far a network is above the best of averaging, maximum and Laplacian pyramids.

    Args:
        model: network in eval mode.
        score: name of the score.
        real: whether on RoadScene's pairs instead of planted ones.

    Returns:
        Difference of the means over the pairs.
    """
    best = max(_of_rule(rule, real=real)[score] for rule in RIVALS)
    return scores(model, real_pairs() if real else test_pairs()[0])[score] - best


def contrast(fuse_pair: Callable[[Tensor], Tensor]) -> float:
    """Contrast of the planted targets in fused pictures.

    Args:
        fuse_pair: (1, 2, H, W) to (1, 1, H, W).

    Returns:
        Mean inside targets minus mean outside, over that of infrared; mean over the held-out pairs.
    """
    found = []
    with torch.inference_mode():
        for pair, covered in zip(*test_pairs(), strict=True):
            inside, outside = covered > 0.9, covered < 0.1
            ours, hot = (x[inside].mean() - x[outside].mean() for x in (fuse_pair(pair).clamp(0, 1), pair[:, 1:]))
            found.append(float(ours / hot))
    return float(np.mean(found))
