"""Restoration in minutes: colour photographs damaged by the bank of degradations (`foveal.train.restore.bank`).

Networks are trained on patches of bsds400, damaged anew at every step with drawn strengths, and tested on crops of the
middle of BSD100's pictures, damaged once under fixed seeds. The score is the gain in RGB PSNR over the damaged picture,
which is the floor, 0 dB by definition.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.measure import benchmarks
from foveal.measure.quality import benchmark_pairs
from foveal.record import kept
from foveal.train.restore.bank import damaged

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = ["NEEDS", "PATCH", "batches", "better", "clean", "crops", "gain", "gain_of", "psnr", "trained"]

NEEDS = ("minutes", "bsds400", "BSD100")
PATCH, BATCH = 48, 8  # side of a training patch in pixels, and patches of a batch
SIDE, COUNT = 128, 30  # side of a test crop, and how many there are
Names = tuple[str, ...]


@cached(maxsize=1)
def _source(patch: int) -> Any:
    return photos.patches(1, patch=patch)


def clean(seed: int, *, patch: int = PATCH, batch: int = BATCH) -> Callable[[int], Tensor]:
    """Undamaged patches.

    Args:
        seed: seed of their choice.
        patch: side of a patch, in pixels.
        batch: B.

    Returns:
        Function from a step to (B, 3, H, W) in [0, 1].
    """
    source = _source(24 if rehearsing() else patch)

    def load(step: int) -> Tensor:
        return photos.tensor(source.batch(batch, np.random.default_rng((seed, step)))[1])

    return load


def batches(
    names: Names, seed: int, *, patch: int = PATCH, batch: int = BATCH, each: bool = False
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches for `short_run`.

    Args:
        names: degradations of the bank.
        seed: seed of patches and damage.
        patch: side of a patch, in pixels.
        batch: B.
        each: whether each picture gets one of the degradations, in turn; otherwise it gets all, one after the other.

    Returns:
        Function from a step to damaged and undamaged patches, (B, 3, H, W) each.
    """
    load = clean(seed, patch=patch, batch=batch)

    def pair(step: int) -> tuple[Tensor, Tensor]:
        wanted = load(step)
        generator = torch.Generator().manual_seed(int(np.random.default_rng((seed, step, 1)).integers(2**62)))
        if not each:
            return damaged(wanted, names, generator), wanted
        given = [
            damaged(x, (names[(step * batch + i) % len(names)],), generator) for i, x in enumerate(wanted.split(1))
        ]
        return torch.cat(given), wanted

    return pair


@cached(maxsize=1)
def crops() -> Tensor:
    """Test pictures without damage.

    Returns:
        (30, 3, 128, 128) in [0, 1], from the middle of BSD100's pictures.
    """
    if rehearsing():
        return photos.tensor(photos.patches(1, patch=24).batch(2, np.random.default_rng(7))[1])
    made = []
    for _, _, high in benchmark_pairs(benchmarks.find("BSD100"), 4, limit=COUNT):
        top, left = ((size - SIDE) // 2 for size in high.shape[:2])
        made.append(np.ascontiguousarray(high[top : top + SIDE, left : left + SIDE]))
    return photos.tensor(np.stack(made))


@cached(maxsize=16)
def _given(names: Names) -> Tensor:
    """The test pictures, damaged."""
    return damaged(crops(), names, torch.Generator().manual_seed(20))


def psnr(out: Tensor, wanted: Tensor) -> Tensor:
    """PSNR of RGB after rounding to 8 bits.

    Args:
        out: (B, 3, H, W).
        wanted: the same.

    Returns:
        dB of each picture, (B,).
    """
    error = (out.clamp(0, 1).mul(255).round() - wanted.mul(255).round()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp_min(1e-3))


def gain_of(restore: Callable[[Tensor], Tensor], names: Names) -> float:
    """Gain over the damaged picture of anything that restores.

    Args:
        restore: (1, 3, H, W) to the same.
        names: degradations that the test pictures have, one after the other.

    Returns:
        Difference of RGB PSNR, dB, mean over the pictures.
    """
    given, wanted = _given(names), crops()
    with torch.inference_mode():
        out = torch.cat([restore(one) for one in given.split(1)])
    return float((psnr(out, wanted) - psnr(given, wanted)).mean())


def gain(model: nn.Module, names: Names) -> float:
    """`gain_of` a network.

    Args:
        model: network in eval mode.
        names: degradations that the test pictures have, one after the other.

    Returns:
        Difference of RGB PSNR, dB, mean over the pictures.
    """
    return gain_of(model, names)


@cached(maxsize=8)
def trained(
    build: Callable[[], nn.Module],
    names: Names,
    *,
    steps: int,
    seed: int,
    each: bool = False,
    lr: float = 2e-3,
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor] = photos.absolute_error,
    patch: int = PATCH,
) -> nn.Module:
    """Build a network under a seed and train it to remove damage.

    Args:
        build: builder of the network, (B, 3, H, W) to the same.
        names: degradations.
        steps: number of training steps of eight patches.
        seed: seed of weights, patches and damage.
        each: see `batches`.
        lr: peak learning rate.
        loss: function of model and batch.
        patch: side of a patch, in pixels.

    Returns:
        The network in eval mode; do not modify it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    return short_run(model, batches(names, seed, each=each, patch=patch), loss, steps=steps, lr=lr)


def better(
    build: Callable[[], nn.Module],
    says: str,
    *,
    than: Callable[[], nn.Module],
    names: Names,
    steps: int,
    paper: str,
    tested: tuple[Names, ...] | None = None,
    by: float = 0.0,
    each: bool = False,
    lr: float = 2e-3,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two networks under the same seeds, patches, damage and steps.

    Args:
        build: builder of the network.
        says: promise, one sentence.
        than: builder of the rival.
        names: degradations of the training.
        steps: number of training steps of each.
        paper: the paper's value.
        tested: combinations of degradations of the test pictures, over which the gain is averaged; `names` by default,
            each by itself with `each`.
        by: lower bound on the difference, dB.
        each: see `batches`.
        lr: peak learning rate.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """
    sets = tested or (tuple((name,) for name in names) if each else (names,))

    def difference(seed: int) -> float:
        make = partial(trained, names=names, steps=steps, seed=seed, each=each, lr=lr)
        ours, theirs = make(build), make(than)
        return float(np.mean([gain(ours, t) - gain(theirs, t) for t in sets]))

    damage = " and ".join(names)
    data = f"{steps} steps on bsds400 with {damage}; crops of {SIDE} pixels of {COUNT} of BSD100, RGB"
    return kept(says, paper=paper, quality=difference, at_least=by, data=data, needs=NEEDS, **words)
