"""Evidence for MS-SSIM as a loss: torchmetrics' values, gradients, super-resolution and autoencoders.

The rivals are twins of the same weights and batches, trained as long by absolute and by squared error.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.evidence.tasks import autoencoding, looks
from foveal.evidence.tasks.autoencoding import Reconstruction
from foveal.record import equal, kept
from foveal.train.restore.ms_ssim import ms_ssim, ms_ssim_loss

# `torchmetrics.functional.image.multiscale_structural_similarity_index_measure` 1.9, float64, on `_pictures`
TORCHMETRICS = (0.9875073259153847, 0.9873999461128325, 0.8505025641619812, 0.9979203660626871, 0.9980153337402364)
DRAWN = (((2, 3, 176, 200), 0.05), ((1, 1, 181, 179), 0.2), ((2, 3, 192, 192), 0.02))

_ours, _absolute, _squared = (partial(Reconstruction, loss=loss) for loss in (ms_ssim_loss, F.l1_loss, F.mse_loss))


def _pictures(seed: int) -> tuple[Tensor, Tensor]:
    """Drawn pictures with noise, and without, values in [0, 1], float64."""
    shape, noise = DRAWN[seed]
    generator = np.random.default_rng(seed)
    wanted = torch.from_numpy(generator.random(shape))
    return (wanted + noise * torch.from_numpy(generator.standard_normal(shape))).clamp(0, 1), wanted


def _small() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    out, wanted = torch.rand(2, 1, 1, 23, 25, generator=generator, dtype=torch.float64)
    return (0.5 * out + 0.5 * wanted), wanted


def _gradient() -> Tensor:
    out, wanted = _small()
    (gradient,) = torch.autograd.grad(ms_ssim_loss(out.requires_grad_(), wanted), out)
    return gradient[..., 8:16, 8:16]


def _differences(step: float = 1e-5) -> Tensor:
    """Central differences of the loss in 64 pixels."""
    out, wanted = _small()
    found = torch.zeros_like(out)
    for row in range(8, 16):
        for column in range(8, 16):
            values = []
            for sign in (1, -1):
                moved = out.clone()
                moved[..., row, column] += sign * step
                values.append(ms_ssim_loss(moved, wanted))
            found[..., row, column] = (values[0] - values[1]) / (2 * step)
    return found[..., 8:16, 8:16]


def _probe(seed: int, *, rival: partial[Reconstruction]) -> float:
    """Accuracy of a linear probe of the codes of an autoencoder trained by MS-SSIM, less that of its twin, points."""
    ours, theirs = (autoencoding.probe(autoencoding.trained(training, seed)) for training in (_ours, rival))
    return ours - theirs


CLAIMS = (
    equal(
        "The similarity is that of torchmetrics.",
        ours=lambda: torch.cat([ms_ssim(*_pictures(seed)) for seed in range(3)]),
        theirs=lambda: torch.tensor(TORCHMETRICS, dtype=torch.float64),
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "Gradients are what differences of the loss say.",
        ours=_gradient,
        theirs=_differences,
        tolerance=1e-6,
        clause=2,
    ),
    looks.better(
        ms_ssim_loss,
        "A network ×4 trained by MS-SSIM is closer to the originals, as a classifier held out sees them, than by L1.",
        paper="superior",
        clause=3,
    ),
    looks.better(
        ms_ssim_loss,
        "A network ×4 trained by MS-SSIM is closer to the originals, as a classifier held out sees them, than by L2.",
        than=F.mse_loss,
        paper="superior",
        clause=3,
    ),
    *(
        kept(
            f"A linear probe of an MS-SSIM autoencoder's codes is at least as accurate as of one trained by {name}.",
            paper="better classification",
            quality=partial(_probe, rival=rival),
            at_least=0.0,
            unit="points",
            data=autoencoding.DATA,
            needs=autoencoding.NEEDS,
            clause=4,
        )
        for name, rival in (("L1", _absolute), ("L2", _squared))
    ),
)
