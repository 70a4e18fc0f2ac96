"""Autoencoders of CIFAR-10 in minutes: one small network of 64 numbers a picture, trained by different losses.

Judged on the first 2,000 test pictures: PSNR, power at high frequencies, what a classifier that no loss has seen
(`foveal.evidence.tasks.features.held_out`) takes the pictures for, and a linear probe of the codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import features

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DATA", "NEEDS", "Autoencoder", "Reconstruction", "agreement", "detail", "probe", "psnr", "trained"]

NEEDS = features.NEEDS
STEPS, BATCH = 600, 64
PROBED, TESTED = 10_000, 2_000
DATA = f"{STEPS} steps on CIFAR-10, 64 numbers a picture; the first {TESTED:,} test pictures"


class Autoencoder(nn.Module):
    """(B, 3, 32, 32) in [0, 1] to the same, through `code` numbers.

    Args:
        code: length of a code.
        dim: channels at half the side; twice as many at a quarter and at an eighth.
    """

    def __init__(self, code: int = 64, dim: int = 24) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(3, dim, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(dim, 2 * dim, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * dim, 2 * dim, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * dim, code),
        )  # fmt: skip
        self.decode = nn.Sequential(
            nn.Linear(code, 32 * dim), nn.ReLU(), nn.Unflatten(1, (2 * dim, 4, 4)),
            nn.ConvTranspose2d(2 * dim, 2 * dim, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(2 * dim, dim, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(dim, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decode(self.encode(x)) / 4 + 0.5
        return y


class Reconstruction(nn.Module):
    """Trains an autoencoder by a loss of its pictures; as a module, it gives the loss of a batch.

    Args:
        net: the autoencoder.
        loss: function of pictures made and wanted, (B, 3, H, W), to a scalar.
    """

    def __init__(self, net: Autoencoder, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.net(x), x)


@cached(maxsize=12)
def trained(training: Callable[[Autoencoder], nn.Module], seed: int) -> Autoencoder:
    """An autoencoder trained by a module that gives the loss of a batch, such as `Reconstruction` with its loss.

    Args:
        training: builder of that module; the same object for the same training.
        seed: seed of weights and batches.

    Returns:
        The network in eval mode; do not modify it.
    """
    pictures, _ = features.pictures("train")

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x = pictures[torch.randint(len(pictures), (BATCH,), generator=generator)]
        return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(-1), x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Autoencoder()
        short_run(training(net), batch, lambda module, x: module(x), steps=STEPS)
    return net.eval()


@cached(maxsize=12)
def _remade(net: Autoencoder) -> tuple[Tensor, Tensor]:
    """What a network makes of the test pictures, rounded to 8 bits, and the test pictures."""
    x, _ = features.pictures("test", limit=TESTED)
    with torch.inference_mode():
        out = torch.cat([net(part) for part in x.split(100)])
    return out.clamp(0, 1).mul(255).round().div(255), x


def psnr(net: Autoencoder) -> float:
    """PSNR of RGB on the test pictures.

    Args:
        net: the autoencoder.

    Returns:
        dB, mean over pictures.
    """
    out, x = _remade(net)
    return float((-10 * torch.log10((out - x).square().mean((1, 2, 3)).clamp_min(1e-8))).mean())


def _power(pictures: Tensor) -> Tensor:
    kernel = pictures.new_tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(pictures.flatten(0, 1)[:, None], kernel).square().mean()


def detail(net: Autoencoder) -> float:
    """Power at high frequencies, that of the discrete Laplacian, as a share of the test pictures' own.

    Args:
        net: the autoencoder.

    Returns:
        0 for flat pictures, 1 for as much detail as there is.
    """
    out, x = _remade(net)
    return float(_power(out) / _power(x))


def agreement(net: Autoencoder) -> float:
    """How often the classifier held out takes a picture and what the network makes of it for the same class.

    Args:
        net: the autoencoder.

    Returns:
        Percent of the test pictures.
    """
    judge = features.held_out()
    with torch.inference_mode():
        seen = [torch.cat([judge(part).argmax(1) for part in pictures.split(100)]) for pictures in _remade(net)]
    return 100 * float((seen[0] == seen[1]).float().mean())


@torch.inference_mode()
def probe(net: Autoencoder) -> float:
    """Accuracy of a linear classifier of codes: ridge regression on 10,000 training pictures' codes.

    Args:
        net: the autoencoder.

    Returns:
        Percent of the test pictures.
    """
    codes, labels = [], []
    for part, limit in (("train", PROBED), ("test", TESTED)):
        x, y = features.pictures(part, limit=limit)
        codes.append(torch.cat([net.encode(batch) for batch in x.split(200)]).double())
        labels.append(y)
    mean, deviation = codes[0].mean(0), codes[0].std(0).clamp_min(1e-9)
    known, asked = (F.pad((c - mean) / deviation, (0, 1), value=1.0) for c in codes)
    square = known.T @ known + torch.eye(known.shape[1]).double()
    weights = torch.linalg.solve(square, known.T @ F.one_hot(labels[0], 10).double())
    return 100 * float(((asked @ weights).argmax(1) == labels[1]).float().mean())
