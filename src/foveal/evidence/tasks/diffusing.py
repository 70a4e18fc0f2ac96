"""Small super-resolution by diffusion: a U-Net learns residuals ×4 on bsds400 and is sampled on crops of BSD100.

What a step draws (patches, times, noise) depends on seed and step only, so two ways to train see the same. The score is
the RGB PSNR of one sample, drawn from the same noise for every network. Settings were chosen on `validation`, patches
that training does not draw.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos, restoring
from foveal.images.resize import imresize
from foveal.nn.unet import UNet
from foveal.train.diffusion import ordinary_pair
from foveal.train.restore.residual_sr import ResidualSR

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.train.diffusion import Pair

    Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # low, high, times, noise

__all__ = ["NEEDS", "SCALE", "batches", "build", "crops", "score", "trained", "validation"]

NEEDS = restoring.NEEDS
SCALE, PATCH, BATCH, SIDE = 4, 8, 8, 64  # PATCH: side of a low-resolution patch; SIDE: of a test crop
STEPS = 10  # how often a sampler asks the network

unet = partial(UNet, dim=24, multiples=(1, 2), patch=2, skip=True)


def build(
    seed: int, network: Callable[[], nn.Module] = unet, scale: int = SCALE, predicted: str = "noise"
) -> ResidualSR:
    """An untrained model.

    Args:
        seed: seed of the weights.
        network: builder of what predicts.
        scale: s.
        predicted: what it predicts.

    Returns:
        The model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResidualSR(network(), scale, predicted=predicted, steps=STEPS)


def batches(seed: int, *, scale: int = SCALE, patch: int = PATCH, batch: int = BATCH) -> Callable[[int], Batch]:
    """Batches for `short_run`.

    Args:
        seed: seed of patches, times and noise.
        scale: s.
        patch: side of a low-resolution patch.
        batch: B.

    Returns:
        Function from a step to low and high resolution in [0, 1], times in [0, 100) and noise.
    """
    load = photos.batches(scale, seed, patch=patch, batch=batch)

    def draw(step: int) -> Batch:
        low, high = load(step)
        mixed = int(np.random.default_rng((seed, step, 1)).integers(2**62))
        generator = torch.Generator().manual_seed(mixed)
        t = torch.randint(100, (len(high),), generator=generator)
        return low, high, t, torch.randn(high.shape, generator=generator)

    return draw


def _pair(high: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    pictures = high.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return photos.tensor(np.stack([imresize(picture, 1 / scale) for picture in pictures])), high


@cached(maxsize=2)
@torch.inference_mode(False)
def crops(scale: int = SCALE) -> tuple[Tensor, Tensor]:
    """Test pictures.

    Args:
        scale: s.

    Returns:
        Low and high resolution, (30, 3, 64 / s, 64 / s) and (30, 3, 64, 64) in [0, 1]: the middles of BSD100's.
    """
    high = restoring.crops()
    side = 16 if rehearsing() else SIDE
    top, left = ((size - side) // 2 for size in high.shape[-2:])
    return _pair(high[..., top : top + side, left : left + side].contiguous(), scale)


@cached(maxsize=2)
@torch.inference_mode(False)
def validation(scale: int = SCALE) -> tuple[Tensor, Tensor]:
    """Pictures to choose settings on, from bsds400.

    Args:
        scale: s.

    Returns:
        Low and high resolution, 40 pictures of 64×64.
    """
    return photos.batches(scale, 10_000, patch=SIDE // scale, batch=40, fraction=1.0)(0)


def score(
    model: ResidualSR,
    *,
    steps: int = STEPS,
    sampler: str = "ddim",
    pictures: tuple[Tensor, Tensor] | None = None,
) -> float:
    """Quality of one sample of each test picture.

    Args:
        model: trained model.
        steps: how often it asks its network.
        sampler: "ddim" or "ddpm".
        pictures: low and high resolution; None for the test pictures.

    Returns:
        RGB PSNR less that of the bicubic picture, dB, mean over the pictures.
    """
    low, high = crops(model.scale) if pictures is None else pictures
    steps = min(steps, 2) if rehearsing() else steps
    with torch.inference_mode():
        out = model(low, steps=steps, sampler=sampler, generator=torch.Generator().manual_seed(0))
        return float((restoring.psnr(out, high) - restoring.psnr(model.bicubic(low), high)).mean())


def trained(
    seed: int,
    *,
    steps: int,
    pair: Callable[[Batch], Pair] = lambda _: ordinary_pair,
    lr: float = 2e-3,
) -> ResidualSR:
    """Build a model under a seed and train it.

    Args:
        seed: seed of weights and of all that steps draw.
        steps: number of training steps of eight patches.
        pair: function from a batch to what makes noisy picture and target of it.
        lr: peak learning rate.

    Returns:
        The model in eval mode.
    """
    model = build(seed)

    def loss(model: Any, batch: Batch) -> Tensor:
        low, high, t, noise = batch
        return model.loss(low, high, t=t, noise=noise, pair=pair(batch))

    short_run(model, batches(seed), loss, steps=steps, lr=lr, clip=1.0)
    return model
