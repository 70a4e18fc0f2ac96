"""Evidence for PBaSR: what the fused network costs, and its PSNR on blurred and on sharp photographs, ×4.

General pictures are patches of bsds400. Blurred ones are others of which one side of a drawn line is out of focus or
moved; the blur belongs to the original and is kept. Networks begin as one that was trained on both kinds. The rival,
the anchor, goes on with both in each batch; ours goes on in two branches, on the same pictures. Tested on crops of
BSD100, of which the blurred ones are softened in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos, restoring
from foveal.images.resize import imresize
from foveal.models.restore.quicksrnet import QuickSRNet
from foveal.record import kept, macs, params
from foveal.train.restore.pbasr import Branches, fuse

if TYPE_CHECKING:
    from collections.abc import Callable

    Pair = tuple[Tensor, Tensor]

SCALE, STEPS, BATCH = 4, 400, 4
SPREAD = (1.0, 4.0)  # standard deviation of blur, pixels
DATA = f"{STEPS} steps on both kinds, {STEPS} more in two branches or one; bsds400, crops of 30 of BSD100, RGB"


def _fused() -> nn.Module:
    return fuse(QuickSRNet(SCALE), QuickSRNet(SCALE))


def _kernel(generator: np.random.Generator) -> Tensor:
    """A Gaussian, or the line that a movement draws, (1, 1, 25, 25)."""
    at = torch.arange(-12.0, 13.0)
    spread = float(generator.uniform(*SPREAD))
    if generator.random() < 0.5:
        kernel = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * spread**2))
    else:
        angle = float(generator.uniform(0, np.pi))
        along = at[:, None] * np.sin(angle) + at * np.cos(angle)
        across = at[:, None] * np.cos(angle) - at * np.sin(angle)
        kernel = torch.exp(-2 * across**2) * (along.abs() <= 2.5 * spread)
    return (kernel / kernel.sum()).view(1, 1, 25, 25)


def _softened(high: Tensor, seed: tuple[int, ...]) -> Tensor:
    """Photographs whose one side is blurred, rounded to 8 bits, (B, 3, H, W)."""
    generator, made = np.random.default_rng(seed), []
    rows, columns = (torch.linspace(-1, 1, size) for size in high.shape[-2:])
    for picture in high:
        blurred = F.conv2d(F.pad(picture[:, None], (12,) * 4, mode="replicate"), _kernel(generator))[:, 0]
        angle, shift = float(generator.uniform(0, 2 * np.pi)), float(generator.uniform(-0.5, 0.5))
        mask = torch.sigmoid(12 * (rows[:, None] * np.sin(angle) + columns * np.cos(angle) + shift))
        made.append(torch.lerp(picture, blurred, mask))
    return torch.stack(made).clamp(0, 1).mul(255).round().div(255)


def _pair(high: Tensor) -> Pair:
    pictures = high.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return photos.tensor(np.stack([imresize(picture, 1 / SCALE) for picture in pictures])), high


def _streams(seed: int) -> Callable[[int], tuple[Pair, Pair]]:
    load = photos.batches(SCALE, seed, batch=2 * BATCH)

    def batch(step: int) -> tuple[Pair, Pair]:
        low, high = load(step)
        return (low[:BATCH], high[:BATCH]), _pair(_softened(high[BATCH:], (seed, step)))

    return batch


def _jointly(model: nn.Module, streams: tuple[Pair, Pair]) -> Tensor:
    general, blurred = streams
    return F.l1_loss(model(torch.cat([general[0], blurred[0]])), torch.cat([general[1], blurred[1]]))


@cached(maxsize=3)
def _networks(seed: int) -> tuple[nn.Module, nn.Module]:
    """Ours and the anchor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start: nn.Module = QuickSRNet(SCALE)
    short_run(start, _streams(seed), _jointly, steps=STEPS)
    branches = Branches(start)
    more = _streams(seed + 1000)
    short_run(branches, more, lambda model, streams: model(*streams), steps=STEPS, lr=1e-3)
    short_run(start, more, _jointly, steps=STEPS, lr=1e-3)
    return branches.fused(), start


def _above(seed: int, *, blurred: bool) -> float:
    """PSNR of ours less that of the anchor, dB."""
    networks = _networks(seed)
    low, high = _pair(_softened(restoring.crops(), (7,)) if blurred else restoring.crops())
    with torch.inference_mode():
        ours, theirs = (float(restoring.psnr(net(low), high).mean()) for net in networks)
    return ours - theirs


CLAIMS = (
    params(
        "The fused network has the anchor's parameters, those of QuickSRNet ×4 of 32 channels.",
        paper="layer sizes",
        model=_fused,
        expect=33_264,
        clause=1,
    ),
    macs(
        "The fused network has the anchor's multiply-adds: each of 33,120 weights meets each pixel once.",
        paper="layer sizes",
        model=_fused,
        shape=(1, 3, 8, 8),
        expect=64 * 33_120,
        clause=1,
    ),
    kept(
        "On blurred photographs it is at least 0.1 dB above the anchor trained on both kinds.",
        paper="LPIPS lower by 0.02 to 0.10",
        quality=lambda seed: _above(seed, blurred=True),
        at_least=0.1,
        data=DATA,
        needs=restoring.NEEDS,
        clause=2,
    ),
    kept(
        "On sharp photographs it is at most 0.05 dB below the anchor.",
        paper="no loss",
        quality=lambda seed: _above(seed, blurred=False),
        at_least=-0.05,
        data=DATA,
        needs=restoring.NEEDS,
        clause=3,
    ),
)
