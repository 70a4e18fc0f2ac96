"""Photographs ×2 to ×4 in minutes: trained on bsds400, tested on pictures of Set5, Set14 and BSD100.

The score is the gain in luminance PSNR over bicubic on the first 30 pictures of each set, with borders of `scale`
pixels shaved. The floor is bicubic, 0 dB by definition.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.measure import benchmarks
from foveal.measure.quality import benchmark_pairs, bicubic, from_torch, luma, psnr
from foveal.record import kept
from foveal.train.restore.pairs import Pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = ["HELD_OUT", "NEEDS", "above_bicubic", "batches", "better", "gain", "patches", "trained"]

HELD_OUT = ("Set5", "Set14", "BSD100")
NEEDS = ("minutes", "bsds400", *HELD_OUT)
LIMIT = 30  # pictures of each set: a third of BSD100 is as informative as all of it, in a third of the time


def tensor(pictures: NDArray[np.uint8], *, luminance: bool = False) -> Tensor:
    """Convert pictures to the networks' input.

    Args:
        pictures: pictures, (B, H, W, 3).
        luminance: whether to convert them to luminance.

    Returns:
        Colours, (B, 3, H, W), or luminance, (B, 1, H, W), in [0, 1].
    """
    if luminance:
        flat = luma(pictures.reshape(-1, pictures.shape[2], 3))
        return torch.from_numpy(flat.astype(np.float32) / 255).view(len(pictures), 1, *pictures.shape[1:3])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)


def _drawn(count: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Smooth random pictures for a rehearsal."""
    coarse = np.random.default_rng(seed).integers(0, 255, (count, 4, 4, 3)).astype(np.float32)
    large = F.interpolate(torch.from_numpy(coarse).permute(0, 3, 1, 2), (height, width), mode="bilinear")
    return large.permute(0, 2, 3, 1).round().byte().numpy()


class _DrawnPairs:
    """Replacement for `Pairs` in a rehearsal."""

    def __init__(self, scale: int, patch: int) -> None:
        self.scale, self.patch = scale, patch

    def batch(self, count: int, generator: np.random.Generator) -> tuple[NDArray[np.uint8], ...]:
        high = _drawn(count, self.scale * self.patch, self.scale * self.patch, int(generator.integers(2**31)))
        return np.ascontiguousarray(high[:, :: self.scale, :: self.scale]), high


def patches(scale: int, *, patch: int = 24, fraction: float = 1.0) -> Any:
    """Source of the training patches.

    Args:
        scale: s.
        patch: side of a low-resolution patch, in pixels.
        fraction: most informative share of each picture's patches to draw from, in (0, 1]; 1 is uniform.

    Returns:
        Object whose `batch(count, generator)` returns low and high resolution, (B, H, W, 3) uint8.
    """
    if rehearsing():
        return _DrawnPairs(scale, patch)
    return Pairs.from_folder(benchmarks.find("bsds400"), scale, patch=patch, fraction=fraction)


def batches(
    scale: int, seed: int, *, fraction: float = 0.5, luminance: bool = False, patch: int = 24, batch: int = 8
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches for `short_run`.

    Args:
        scale: s.
        seed: seed of the choice of patches.
        fraction: most informative share of the patches, see `patches`.
        luminance: whether to use luminance only.
        patch: side of a low-resolution patch, in pixels.
        batch: batch size, B.

    Returns:
        Function from a step to low and high resolution, (B, C, H, W) and (B, C, s·H, s·W).
    """
    pairs = patches(scale, patch=patch, fraction=fraction)

    def load(step: int) -> tuple[Tensor, Tensor]:
        low, high = pairs.batch(batch, np.random.default_rng((seed, step)))[:2]
        return tensor(low, luminance=luminance), tensor(high, luminance=luminance)

    return load


def absolute_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean absolute error of the upscaled picture.

    Args:
        model: network to train.
        batch: low- and high-resolution pictures.

    Returns:
        Loss, a scalar.
    """
    return F.l1_loss(model(batch[0]), batch[1])


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@cached(maxsize=8)  # two networks of a comparison, three seeds each
def trained(
    build: Callable[..., nn.Module],
    scale: int,
    *,
    steps: int,
    seed: int,
    fraction: float = 0.5,
    luminance: bool = False,
) -> nn.Module:
    """Build a network under a seed and train it; claims about one network share it.

    Args:
        build: builder of the network, called with `scale` and `in_channels`.
        scale: s.
        steps: number of training steps of eight patches.
        seed: seed of weights and batches.
        fraction: most informative share of the patches, see `patches`.
        luminance: whether to use luminance only.

    Returns:
        The network in eval mode; do not modify it.
    """
    with _seeded(seed):
        model: Any = build(scale, in_channels=1 if luminance else 3)
    return short_run(model, batches(scale, seed, fraction=fraction, luminance=luminance), absolute_error, steps=steps)


@cached(maxsize=4)
def _held_out(name: str, scale: int) -> tuple[tuple[NDArray[np.uint8], NDArray[np.uint8], float], ...]:
    """Low resolution, high resolution and PSNR of bicubic, for each test picture."""
    if rehearsing():
        (high,) = _drawn(1, 12 * scale, 10 * scale, 7)
        found = [(name, np.ascontiguousarray(high[::scale, ::scale]), high)]
    else:
        found = list(benchmark_pairs(benchmarks.find(name), scale, limit=LIMIT))
    return tuple((low, high, psnr(bicubic(scale)(low), high, shave=scale)) for _, low, high in found)


def gain(model: nn.Module, scale: int, *, luminance: bool = False, sets: Sequence[str] = HELD_OUT) -> float:
    """Gain of a network over bicubic on the test pictures.

    Args:
        model: network, (1, C, h, w) to (1, C, s·h, s·w) in [0, 1].
        scale: s.
        luminance: whether the network works on luminance, C = 1.
        sets: names of benchmark sets; the first 30 pictures of each are used.

    Returns:
        Difference of luminance PSNR, dB, averaged over all pictures.
    """
    upscale = from_torch(model, luminance=luminance)
    return float(
        np.mean([psnr(upscale(low), high, shave=scale) - base for s in sets for low, high, base in _held_out(s, scale)])
    )


def _data(scale: int, steps: int) -> str:
    return f"{steps} steps on bsds400; first 30 of Set5, Set14 and BSD100, ×{scale}, luminance, shave {scale}"


def above_bicubic(
    build: Callable[..., nn.Module],
    says: str,
    *,
    scale: int,
    steps: int,
    by: float,
    paper: str,
    luminance: bool = False,
    **words: Any,
) -> Claim:
    """`kept`: after a short training a network exceeds bicubic by some decibels.

    Args:
        build: builder of the network, called with `scale` and `in_channels`.
        says: promise, one sentence.
        scale: s.
        steps: number of training steps.
        by: lower bound on the gain, dB.
        paper: the paper's value.
        luminance: whether the network works on luminance alone.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def quality(seed: int) -> float:
        model = trained(build, scale, steps=steps, seed=seed, luminance=luminance)
        return gain(model, scale, luminance=luminance)

    return kept(says, paper=paper, quality=quality, at_least=by, data=_data(scale, steps), needs=NEEDS, **words)


def better(
    build: Callable[..., nn.Module],
    says: str,
    *,
    than: Callable[..., nn.Module],
    scale: int,
    steps: int,
    paper: str,
    by: float = 0.0,
    luminance: bool = False,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two networks under the same seeds, patches and steps.

    Args:
        build: builder of the network, called with `scale` and `in_channels`.
        says: promise, one sentence.
        than: builder of the rival.
        scale: s.
        steps: number of training steps of each.
        paper: the paper's value.
        by: lower bound on the difference, dB; negative for "at most this much worse".
        luminance: whether the networks work on luminance alone.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        score = partial(gain, scale=scale, luminance=luminance)
        ours, theirs = (trained(b, scale, steps=steps, seed=seed, luminance=luminance) for b in (build, than))
        return score(ours) - score(theirs)

    return kept(says, paper=paper, quality=difference, at_least=by, data=_data(scale, steps), needs=NEEDS, **words)
