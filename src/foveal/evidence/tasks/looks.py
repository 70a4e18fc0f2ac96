"""Super-resolution for looks in minutes: one small network ×4, trained by different losses on the same patches.

Trained on bsds400, judged on crops of the middle of 30 of BSD100's pictures, reduced four times: by the distance to the
original in a feature network that no loss has seen (`foveal.evidence.tasks.features`), lower is better, and by PSNR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import features, photos, restoring
from foveal.images.resize import imresize
from foveal.models.restore.quicksrnet import QuickSRNet
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = ["NEEDS", "STEPS", "better", "distance", "psnr", "trained", "upscaled"]

NEEDS = (*restoring.NEEDS, *features.NEEDS[1:])
SCALE, STEPS = 4, 600


def _tested() -> tuple[Tensor, Tensor]:
    """Low resolution, (30, 3, 32, 32), and the originals, (30, 3, 128, 128), in [0, 1]."""
    high = restoring.crops()
    pictures = high.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return photos.tensor(np.stack([imresize(picture, 1 / SCALE) for picture in pictures])), high


@cached(maxsize=12)  # four losses, three seeds
def trained(loss: Callable[[Tensor, Tensor], Tensor], seed: int) -> nn.Module:
    """A network trained by a loss; claims of several methods share it.

    Args:
        loss: function of pictures made and wanted, (B, 3, H, W) in [0, 1], to a scalar; the same object for the same
            training.
        seed: seed of weights and patches.

    Returns:
        The network in eval mode; do not modify it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = QuickSRNet(SCALE)

    def compare(network: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return loss(network(pair[0]), pair[1])

    return short_run(model, photos.batches(SCALE, seed), compare, steps=STEPS)


def upscaled(model: nn.Module) -> tuple[Tensor, Tensor]:
    """What a network makes of the test pictures.

    Args:
        model: network, (B, 3, H, W) to (B, 3, 4·H, 4·W).

    Returns:
        Its pictures, rounded to 8 bits, and the originals, (30, 3, 128, 128) in [0, 1].
    """
    low, high = _tested()
    with torch.inference_mode():
        out = torch.cat([model(part) for part in low.split(8)])
    return out.clamp(0, 1).mul(255).round().div(255), high


def distance(model: nn.Module) -> float:
    """Distance of a network's pictures to the originals in the feature network held out.

    Args:
        model: network, (B, 3, H, W) to (B, 3, 4·H, 4·W).

    Returns:
        Mean over pictures; lower is better.
    """
    return float(features.distance(features.held_out(), *upscaled(model)).mean())


def psnr(model: nn.Module) -> float:
    """PSNR of RGB.

    Args:
        model: network, (B, 3, H, W) to (B, 3, 4·H, 4·W).

    Returns:
        dB, mean over pictures.
    """
    return float(restoring.psnr(*upscaled(model)).mean())


def better(
    loss: Callable[[Tensor, Tensor], Tensor],
    says: str,
    *,
    than: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
    paper: str,
    by: float = 0.0,
    **words: Any,
) -> Claim:
    """`kept`: how much closer to the originals a loss brings pictures than another, in percent of the other's distance.

    Args:
        loss: the loss.
        says: promise, one sentence.
        than: the rival's loss.
        paper: the paper's value.
        by: lower bound, percent.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def closer(seed: int) -> float:
        ours, theirs = (distance(trained(one, seed)) for one in (loss, than))
        return 100 * (1 - ours / theirs)

    data = f"×{SCALE}, {STEPS} steps on bsds400; distance in a held-out feature network, crops of 30 of BSD100"
    return kept(says, paper=paper, quality=closer, at_least=by, unit="%", data=data, needs=NEEDS, **words)
