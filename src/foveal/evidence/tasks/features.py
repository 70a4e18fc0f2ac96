"""Feature networks of claims about looks: one to train with, one held out to judge with, and distances in them.

The one for training is a small VGG without normalisation, trained on the first half of CIFAR-10's training pictures.
The one that judges is a residual network with batch normalisation of another seed, trained on the second half, turned
and at other sizes; no network is ever trained with it. Both are trained once on a machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import CifarResNet
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.train.restore.perceptual import FeatureNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.train.restore.perceptual import Seeing

__all__ = ["NEEDS", "HeldOut", "distance", "frechet", "gaussian", "held_out", "pictures", "training"]

NEEDS = cifar10.NEEDS
STEPS = 1000
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class HeldOut(nn.Module):
    """The network that judges: pictures (B, 3, H, W) in [0, 1] to logits, (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = CifarResNet(8)

    def features(self, x: Tensor) -> list[Tensor]:
        """What its stages make of pictures.

        Args:
            x: pictures, (B, 3, H, W) in [0, 1].

        Returns:
            Features of 16, 32 and 64 channels, of the pictures' size, half and a quarter of it.
        """
        y, found = F.relu(self.net.bn1(self.net.conv1((x - 0.5) * 4))), []
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3):
            y = stage(y)
            found.append(y)
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net.fc(self.features(x)[-1].mean((2, 3)))
        return logits


@cached(maxsize=4)
def pictures(part: str, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The pictures of CIFAR-10 in [0, 1].

    Args:
        part: "train", "first" or "second" (halves of it), or "test".
        limit: number of pictures to take from the start; None takes all.

    Returns:
        Pictures, (n, 3, 32, 32) in [0, 1]; labels, (n,) int64.
    """
    x, labels = cifar10.pictures("test" if part == "test" else "train", limit=limit if part == "test" else None)
    half = len(x) // 2
    chosen = {"first": slice(0, half), "second": slice(half, None)}.get(part, slice(None))
    x, labels = x[chosen][:limit], labels[chosen][:limit]
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (x * deviation + mean).clamp(0, 1), labels


def _trained(build: Callable[[], nn.Module], part: str, seed: int) -> nn.Module:
    def train() -> nn.Module:
        return cifar10.train_classifier(build, steps=STEPS, seed=seed, data=pictures(part))

    key = f"features {build.__name__} {part} {STEPS} {seed}"
    with torch.inference_mode(False), torch.enable_grad():  # whoever asks may have turned them off
        model = trained_once(build, train, modules=["foveal.evidence.tasks.features"], key=key)
    return model.requires_grad_(False)


@cached(maxsize=1)
def training() -> FeatureNet:
    """The feature network for losses.

    Returns:
        The network, frozen, in eval mode; do not modify it.
    """
    return _trained(FeatureNet, "first", 200)  # type: ignore[return-value]


@cached(maxsize=1)
def held_out() -> HeldOut:
    """The feature network for judging.

    Returns:
        The network, frozen, in eval mode; do not modify it.
    """
    return _trained(HeldOut, "second", 300)  # type: ignore[return-value]


@torch.inference_mode()
def distance(network: Seeing, x: Tensor, y: Tensor) -> Tensor:
    """Distance of pictures in a network, that of LPIPS (arXiv:1801.03924) without its fitted weights.

    Args:
        network: network with `features`.
        x: pictures, (B, 3, H, W) in [0, 1].
        y: pictures of the same shape.

    Returns:
        (B,): squared difference of features of unit length, mean over pixels, sum over layers.
    """
    total = x.new_zeros(len(x))
    for a, b in zip(network.features(x), network.features(y), strict=True):
        total = total + (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
    return total


@torch.inference_mode()
def gaussian(network: Seeing, pictures: Tensor, *, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what a network's last layer makes of pictures, the mean over each picture's pixels.

    Args:
        network: network with `features`.
        pictures: (n, 3, H, W) in [0, 1]; n well above the number of channels.
        batch: pictures at a time.

    Returns:
        Mean, (C,), and covariance, (C, C), float64.
    """
    rows = torch.cat([network.features(part)[-1].mean((2, 3)) for part in pictures.split(batch)]).double()
    return rows.mean(0), torch.cov(rows.T)


def frechet(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Fréchet distance of two Gaussians: |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½).

    Args:
        a: mean, (C,), and covariance, (C, C), as `gaussian` returns them.
        b: those of the other.

    Returns:
        Distance, at least 0.
    """
    # tr (Σ_a Σ_b)^½ by the eigenvalues of the symmetric Σ_a^½ Σ_b Σ_a^½
    values, vectors = torch.linalg.eigh(a[1])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b[1] @ root).clamp_min(0).sqrt().sum()
    found = (a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * cross
    return max(0.0, float(found))
