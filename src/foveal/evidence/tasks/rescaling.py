"""Pictures made smaller and large again in minutes: a learned pair against bicubic and the same enlarging network.

Pairs and rivals train on patches of bsds400 at scales drawn from 1 to 4, the same for both sides, and are tested on
crops of BSD100. The small picture is rounded to 8 bits in training and in test. The rival is the network that enlarges,
of the same seed, trained as long by the same trainer on the same patches and scales, made smaller by bicubic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import restoring
from foveal.nn.rescaling import resized, rounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["CYCLES", "NEEDS", "SCALES", "Pair", "closeness", "data", "lead", "loss_of_cycles", "score", "trained"]

NEEDS = restoring.NEEDS
PATCH, BATCH = 32, 4
LEAST, MOST = 1.0, 4.0  # scales of the training
SCALES = (1.5, 2.5, 3.5)
CYCLES = 5
Scale = float | tuple[float, float]  # of both sides, or of rows and columns


class Pair(Protocol):
    """What rescales: BAIRNet and IARN."""

    def down(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Make pictures smaller, to multiples of 1/255."""
        ...

    def up(self, small: Tensor, size: tuple[int, int]) -> Tensor:
        """Make small pictures large again."""
        ...


def data(steps: int) -> str:
    """What the claims are measured on.

    Args:
        steps: of the training.

    Returns:
        Text for a claim.
    """
    return f"{steps} steps on bsds400 at ×1 to ×4; crops of {restoring.SIDE} pixels of {restoring.COUNT} of BSD100, RGB"


def small_size(size: tuple[int, int], scale: Scale) -> tuple[int, int]:
    """Sides of a picture made smaller.

    Args:
        size: H, W.
        scale: of both sides, or of rows and columns.

    Returns:
        h, w, at least 1.
    """
    rows, columns = scale if isinstance(scale, tuple) else (scale, scale)
    return max(1, round(size[0] / rows)), max(1, round(size[1] / columns))


def _plain(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The rival's small picture."""
    return rounded(resized(x, size))


@cached(maxsize=6)
def trained(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensor, tuple[int, int]], Tensor],
    *,
    seed: int,
    alone: bool,
    steps: int,
    lr: float,
) -> nn.Module:
    """Train a pair, or the network that enlarges alone.

    Args:
        build: builder of the pair.
        loss: function of pair, pictures and size of the small ones.
        seed: seed of weights, patches and scales.
        alone: whether small pictures come from bicubic; the loss is then the mean absolute error.
        steps: number of steps.
        lr: peak learning rate.

    Returns:
        The pair in eval mode; do not modify it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    load = restoring.clean(seed, patch=PATCH, batch=BATCH)

    def pair(step: int) -> tuple[Tensor, tuple[int, int]]:
        x = load(step)
        scale = float(np.random.default_rng((seed, step, 5)).uniform(LEAST, MOST))
        return x, small_size((x.shape[-2], x.shape[-1]), scale)

    def objective(_: nn.Module, batch: tuple[Tensor, tuple[int, int]]) -> Tensor:
        x, size = batch
        if not alone:
            return loss(model, x, size)
        up: Callable[[Tensor, tuple[int, int]], Tensor] = model.up  # type: ignore[assignment]
        return F.l1_loss(up(_plain(x, size), (x.shape[-2], x.shape[-1])), x)

    return short_run(model, pair, objective, steps=steps, lr=lr)


def _cycle(model: Pair, x: Tensor, scale: Scale, *, alone: bool) -> Tensor:
    """Smaller and large again, rounded to 8 bits."""
    height, width = x.shape[-2:]
    size = small_size((height, width), scale)
    return rounded(model.up(_plain(x, size) if alone else model.down(x, size), (height, width)))


@torch.inference_mode()
def score(model: Pair, scale: Scale, *, alone: bool, cycles: int = 1) -> float:
    """PSNR on the test pictures.

    Args:
        model: the pair.
        scale: of both sides, or of rows and columns.
        alone: whether small pictures come from bicubic.
        cycles: how often pictures are made smaller and large again.

    Returns:
        RGB PSNR, dB, mean over the pictures.
    """
    x = wanted = restoring.crops()
    for _ in range(cycles):
        x = torch.cat([_cycle(model, part, scale, alone=alone) for part in x.split(5)])
    return float(restoring.psnr(x, wanted).mean())


def lead(pair: Pair, rival: Pair, scale: Scale) -> float:
    """How much better the pair brings pictures back.

    Args:
        pair: the pair.
        rival: the network that enlarges what bicubic made smaller.
        scale: of both sides, or of rows and columns.

    Returns:
        Difference of RGB PSNR, dB.
    """
    return score(pair, scale, alone=False) - score(rival, scale, alone=True)


def loss_of_cycles(model: Pair, *, alone: bool) -> float:
    """PSNR that is lost from the first cycle to the fifth.

    Args:
        model: the pair.
        alone: whether small pictures come from bicubic.

    Returns:
        dB, mean over `SCALES`.
    """
    found = [score(model, s, alone=alone) - score(model, s, alone=alone, cycles=CYCLES) for s in SCALES]
    return float(np.mean(found))


@torch.inference_mode()
def closeness(model: Pair) -> float:
    """How near the pair's small pictures are to those of bicubic.

    Args:
        model: the pair.

    Returns:
        RGB PSNR, dB, mean over pictures and `SCALES`.
    """
    x, found = restoring.crops(), []
    for scale in SCALES:
        size = small_size((x.shape[-2], x.shape[-1]), scale)
        small = torch.cat([model.down(part, size) for part in x.split(5)])
        found.append(float(restoring.psnr(small, _plain(x, size)).mean()))
    return float(np.mean(found))
