"""Evidence for DeePSiM: autoencoders of CIFAR-10 through 64 numbers, against a twin trained by squared error.

The comparator is a small classifier of the first half of the training pictures; what the pictures are taken for is said
by another one, trained on the second half.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F

from foveal.evidence.tasks import autoencoding, features
from foveal.evidence.tasks.autoencoding import Autoencoder, Reconstruction
from foveal.record import kept
from foveal.train.restore.deepsim import DeePSiM

if TYPE_CHECKING:
    from collections.abc import Callable

_squared = partial(Reconstruction, loss=F.mse_loss)


def three_terms(net: Autoencoder) -> DeePSiM:
    """The training of ours.

    Args:
        net: the autoencoder.

    Returns:
        Module that gives the loss of a batch.
    """
    return DeePSiM(net, features.training())


def _above(seed: int, *, score: Callable[[Autoencoder], float], scale: float = 1.0) -> float:
    ours, theirs = (scale * score(autoencoding.trained(training, seed)) for training in (three_terms, _squared))
    return ours - theirs


CLAIMS = (
    kept(
        "Its pictures have more of the originals' power at high frequencies than those of squared error.",
        paper="sharper",
        quality=partial(_above, score=autoencoding.detail, scale=100.0),
        at_least=0.0,
        unit="points",
        data=autoencoding.DATA,
        needs=autoencoding.NEEDS,
        clause=1,
    ),
    kept(
        "A classifier held out takes its pictures more often for what the originals are than those of squared error.",
        paper="keeps what is seen",
        quality=partial(_above, score=autoencoding.agreement),
        at_least=0.0,
        unit="points",
        data=autoencoding.DATA,
        needs=autoencoding.NEEDS,
        clause=1,
    ),
    kept(
        "It costs at most 3 dB of PSNR.",
        paper="lower",
        quality=partial(_above, score=autoencoding.psnr),
        at_least=-3.0,
        data=autoencoding.DATA,
        needs=autoencoding.NEEDS,
        beyond="pixels are kept roughly in place",
    ),
)
