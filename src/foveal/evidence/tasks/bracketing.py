"""Exposure brackets of moving scenes in minutes: photographs as scenes, with things that move between the exposures.

A photograph in linear light is the scene, white its brightest. It is taken at 1, 4 and 16 times the light that makes
white white, so that the middle and the long exposure clip; noise and 8 bits as of a sensor. Two ellipses filled from
another part of the photograph are elsewhere in the first and the last frame; the scene at the time of the middle one
is the truth. Networks are trained on patches of bsds400 and tested on crops of the middle of BSD100's pictures. The
score is PSNR-μ, of μ-law tone-mapped colours, over the places where in any frame something moves.

The rival is the classical mean of the frames' light, weighted by how well each is exposed (P. E. Debevec and J. Malik,
"Recovering High Dynamic Range Radiance Maps from Photographs", SIGGRAPH 1997, equation 6 with the known curve).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import restoring
from foveal.models.restore.sct_net import GAMMA, frames, mu_law, mu_loss
from foveal.train.restore.bank.exposure import to_linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["NEEDS", "TIMES", "batches", "brackets", "debevec", "moved_psnr", "scene", "test_brackets", "trained"]

NEEDS = restoring.NEEDS
TIMES = (1.0, 4.0, 16.0)
SHOT, READ = 2e-4, 1e-3  # variance of shot noise over the signal and standard deviation of read noise, as exposed
MOVERS = 2


def _ellipse(centre: Tensor, axes: Tensor, height: int, width: int) -> Tensor:
    y, x = torch.arange(height)[:, None] - centre[0], torch.arange(width) - centre[1]
    return (y / axes[0]) ** 2 + (x / axes[1]) ** 2 <= 1


def scene(photos: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Linear light at three moments, in which ellipses of another part of the picture move.

    Args:
        photos: (B, 3, H, W) in [0, 1].
        generator: source of the movement.

    Returns:
        Light, (B, 3, 3, H, W) in [0, 1], and where something moves in any frame, (B, 1, H, W), bool.
    """
    light = to_linear(photos)[:, None].repeat(1, 3, 1, 1, 1)
    _, _, height, width = photos.shape
    size = torch.tensor([height, width])
    moved = torch.zeros(len(photos), 1, height, width, dtype=torch.bool)
    for picture, mask in zip(light, moved[:, 0], strict=True):
        still = picture[0].clone()
        for _ in range(MOVERS):
            chance = torch.rand(7, generator=generator)
            axes, angle = 4 + 6 * chance[:2], 2 * np.pi * chance[2]
            centre = (0.2 + 0.6 * chance[3:5]) * size
            texture = still.roll([int(n) for n in (0.3 + 0.4 * chance[5:7]) * size], (1, 2))
            step = torch.stack([angle.sin(), angle.cos()]) * (3 + float(axes.max()))
            for moment in range(3):
                at = centre + (moment - 1) * step
                inside = _ellipse(at, axes, height, width)
                # The thing keeps its texture while it moves.
                shift = [int(n) for n in torch.round((moment - 1) * step)]
                picture[moment] = torch.where(inside, texture.roll(shift, (1, 2)), picture[moment])
                mask.logical_or_(inside)
    return light, moved


def brackets(photos: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Three exposures of scenes made of photographs.

    Args:
        photos: (B, 3, H, W) in [0, 1].
        generator: source of movement and noise.

    Returns:
        A network's input (B, 18, H, W), the light of the middle moment (B, 3, H, W), and where something moves,
        (B, 1, H, W).
    """
    light, moved = scene(photos, generator)
    times = torch.tensor(TIMES)
    exposed = light * times[:, None, None, None]
    noise = torch.randn(exposed.shape, generator=generator) * (SHOT * exposed + READ**2).sqrt()
    taken = torch.round((exposed + noise).clamp(0, 1) ** (1 / GAMMA) * 255) / 255
    return frames(taken, times.expand(len(photos), -1)), light[:, 1], moved


def batches(seed: int, *, patch: int = 48, batch: int = 4) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches for `short_run`.

    Args:
        seed: seed of patches, movement and noise.
        patch: side of a patch, in pixels.
        batch: B.

    Returns:
        Function from a step to frames and light, (B, 18, H, W) and (B, 3, H, W).
    """
    load = restoring.clean(seed, patch=patch, batch=batch)

    def pair(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(np.random.default_rng((seed, step, 1)).integers(2**62)))
        return brackets(load(step), generator)[:2]

    return pair


def debevec(x: Tensor) -> Tensor:
    """Mean light of the frames with weights that fall from middle grey to black and to white.

    Args:
        x: frames, (B, 18, H, W).

    Returns:
        (B, 3, H, W).
    """
    taken, light = x.unflatten(1, (3, 2, 3)).unbind(2)
    weights = (torch.minimum(taken, 1 - taken)).clamp_min(1e-4)
    return (weights * light).sum(1) / weights.sum(1)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return mu_loss(model(batch[0]), batch[1])


@cached(maxsize=8)
def trained(build: Callable[[], nn.Module], *, steps: int, seed: int, lr: float = 2e-3) -> nn.Module:
    """Build a network under a seed and train it to merge brackets.

    Args:
        build: builder of the network, (B, 18, H, W) to (B, 3, H, W).
        steps: number of training steps of four patches.
        seed: seed of weights, patches, movement and noise.
        lr: peak learning rate.

    Returns:
        The network in eval mode; do not modify it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    return short_run(model, batches(seed), _loss, steps=steps, lr=lr)


@cached(maxsize=1)
def test_brackets() -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Held-out brackets.

    Returns:
        Of each its frames, light and moved places, with B = 1.
    """
    made = brackets(restoring.crops(), torch.Generator().manual_seed(20))
    return tuple(zip(*(part.split(1) for part in made), strict=True))


def moved_psnr(merge: Callable[[Tensor], Tensor]) -> float:
    """PSNR-μ where something moves.

    Args:
        merge: (1, 18, H, W) to (1, 3, H, W).

    Returns:
        dB, mean over the held-out brackets.
    """
    found = []
    with torch.inference_mode():
        for given, wanted, moved in test_brackets():
            error = (mu_law(merge(given).clamp(0, 1)) - mu_law(wanted)).square()
            found.append(float(-10 * torch.log10(error[moved.expand_as(error)].mean().clamp_min(1e-8))))
    return float(np.mean(found))
