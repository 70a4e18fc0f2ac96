"""Evidence for DGMS: against a k-means codebook with as much fine-tuning, its size, soft against hard weights."""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import CifarResNet
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.record import bound, equal, grows, kept
from foveal.shrink.quantize.dgms import DGMS, GaussianMixture, kmeans, mixed
from foveal.shrink.quantize.fake import quantized_, quantized_layers
from foveal.shrink.quantize.packed import save_packed

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Claim

STEPS, FURTHER, TAU = 1000, 800, 0.1
narrow = partial(CifarResNet, 8, width=8)
DATA = (
    f"ResNet-8 of width 8, CIFAR-10 at 16×16, {STEPS} steps of 64, then {FURTHER}; τ from {TAU}; 10,000 test pictures"
)


class Codebook(nn.Module):
    """The rival: clusters of k-means that stay as they are, and centres that are trained.

    Args:
        weight: trained weight.
        bits: bits of an index.
    """

    label: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        centres, label = kmeans(weight, 2**bits)
        self.centres = nn.Parameter(centres)
        self.register_buffer("label", label)

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002 - the signature of a quantiser
        """The weight.

        Args:
            x: not used.

        Returns:
            Centre of each weight's cluster.
        """
        return self.centres[self.label]


@cached(maxsize=2)
def _pictures(part: str) -> tuple[Tensor, Tensor]:
    x, labels = cifar10.pictures(part)
    return F.avg_pool2d(x, 2), labels


@cached(maxsize=3)
def _float(seed: int) -> nn.Module:
    return trained_once(
        narrow,
        lambda: cifar10.train_classifier(narrow, steps=STEPS, seed=seed, data=_pictures("train")),
        modules=[cifar10.__name__, CifarResNet.__module__],
        key=f"resnet8 width 8 16×16 steps {STEPS} seed {seed}",
    )


def _further(model: nn.Module, seed: int) -> nn.Module:
    inputs, labels = _pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(10_000 * (seed + 1) + step)
        rows = torch.randint(len(labels), (64,), generator=draw)
        flip = torch.rand(64, generator=draw).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, inputs[rows].flip(-1), inputs[rows]), labels[rows]

    def loss(network: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(pair[0]), pair[1])

    return short_run(model, batches, loss, steps=FURTHER, lr=2e-3, clip=1.0)


def _clustered(model: nn.Module, bits: int) -> nn.Module:
    return quantized_(model, weight=lambda layer: Codebook(layer.weight, bits))


def _mixed(model: nn.Module, bits: int) -> nn.Module:
    return DGMS(bits, tau=TAU).apply(model)


@cached(maxsize=12)
def _accuracy(seed: int, bits: int, quantize: Callable[[nn.Module, int], nn.Module]) -> float:
    model = _further(quantize(copy.deepcopy(_float(seed)), bits), seed)
    return cifar10.accuracy(model, _pictures("test"))


def _better(bits: int) -> Claim:
    return kept(
        f"At {bits} bits a ResNet-8 is more accurate with DGMS than with a k-means codebook and as much fine-tuning.",
        paper="ImageNet tables",
        quality=lambda seed: _accuracy(seed, bits, _mixed) - _accuracy(seed, bits, _clustered),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=1,
    )


def _stored(bits: int) -> float:
    """Bytes of a packed file beyond the tensors that are not quantised, over indices plus codebook."""
    torch.manual_seed(0)
    model = _mixed(narrow(), bits).eval()
    with tempfile.TemporaryDirectory() as folder:
        written = save_packed(model, Path(folder) / "model.safetensors")
    weights = [layer.layer.weight for _, layer in quantized_layers(model)]
    rest = sum(v.numel() * v.element_size() for v in narrow().state_dict().values())
    rest -= sum(4 * w.numel() for w in weights)
    return (written - rest) / sum(-(-w.numel() * bits // 8) + 4 * 2**bits for w in weights)


def _size(bits: int) -> Claim:
    return bound(
        f"Weights of {bits} bits are stored as indices of {bits} bits and {2**bits} means of 4 bytes a layer, no more.",
        paper="indices and codebook",
        value=partial(_stored, bits),
        at_least=1.0,
        at_most=1.0,
        clause=2,
    )


def _layer() -> tuple[GaussianMixture, Tensor]:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture(weight, 4).eval(), weight


def _soft(tau: float) -> Tensor:
    mixture, weight = _layer()
    with torch.no_grad():
        return mixed(weight, **mixture.parts(), tau=tau)


def _hard() -> Tensor:
    mixture, weight = _layer()
    with torch.no_grad():
        return mixture(weight)


CLAIMS = (
    _better(4),
    _better(2),
    _size(4),
    _size(2),
    equal(
        "Soft weights at a temperature of 1e-7 equal the hard ones, a layer of 64×64.",
        ours=partial(_soft, 1e-7),
        theirs=_hard,
        clause=3,
    ),
    grows(
        "The mean difference of soft and hard weights vanishes in proportion to the temperature.",
        paper="S becomes P as τ goes to 0",
        cost=lambda tau: float((_soft(tau) - _hard()).abs().mean()),
        sizes=(3e-3, 1e-2, 3e-2, 1e-1),
        exponent=(0.8, 1.3),
        clause=3,
    ),
)
