"""Evidence for RobustifyKT: accuracy on corrupted pictures and on clean ones, and the time of both ways to robustness.

Training sees noise, blur and changed contrast; accuracy is measured on five other corruptions.
"""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import CifarResNet, resnet8
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10, cifar10_half
from foveal.record import faster, kept
from foveal.shrink.distill.robustify import Robustified, transfer

if TYPE_CHECKING:
    from collections.abc import Callable

# steps of the small teacher, of the tuning, and of the rival: full robust fine-tuning
SMALL, TUNING, FULL = 150, 100, 300
LR = 5e-4
HELD_OUT = 1000  # pictures


def _smooth(x: Tensor, kernel: Tensor) -> Tensor:
    height, width = kernel.shape
    padded = F.pad(x, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


def _seen(x: Tensor, draw: torch.Generator) -> Tensor:
    """Corruptions of the training: each quarter of the batch gets noise, blur, less contrast or other brightness."""
    noisy, blurred, faint, bright = x.chunk(4)
    noisy = noisy + torch.rand(len(noisy), 1, 1, 1, generator=draw) * torch.randn(noisy.shape, generator=draw)
    blurred = _smooth(blurred, torch.full((3, 3), 1 / 9))
    faint = (0.2 + 0.6 * torch.rand(len(faint), 1, 1, 1, generator=draw)) * faint
    bright = bright + torch.randn(len(bright), 1, 1, 1, generator=draw)
    return torch.cat([noisy, blurred, faint, bright])


def _jpeg(x: Tensor) -> Tensor:
    """JPEG of quality 15, through 8 bits; the range of values is that of the batch."""
    low, high = x.amin(), x.amax()
    eight = ((x - low) / (high - low) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    found = []
    for picture in eight:
        packed = io.BytesIO()
        Image.fromarray(picture).save(packed, "JPEG", quality=15)
        found.append(np.asarray(Image.open(packed)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 255 * (high - low) + low


def _peppered(x: Tensor, draw: torch.Generator) -> Tensor:
    """A tenth of the pixels black or white."""
    chance = torch.rand(len(x), 1, *x.shape[2:], generator=draw)
    return torch.where(chance < 0.05, -2.0, torch.where(chance > 0.95, 2.0, x))


@cached(maxsize=1)
def _unseen() -> tuple[Tensor, Tensor]:
    """Held-out pictures under five corruptions that no training saw: speckle, pepper, motion, JPEG and large pixels."""
    x, labels = cifar10_half.pictures("test", limit=HELD_OUT)
    draw = torch.Generator().manual_seed(0)
    versions = [
        x * (1 + 0.6 * torch.randn(x.shape, generator=draw)),
        _peppered(x, draw),
        _smooth(x, torch.full((1, 5), 1 / 5)),
        _jpeg(x),
        F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0),
    ]
    return torch.cat(versions), labels.repeat(len(versions))


def _batches(seed: int) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """Pictures, their corrupted copies and labels."""
    inputs, labels = cifar10_half.pictures("train")
    draw = torch.Generator().manual_seed(seed)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001 - drawn from the seeded generator
        rows = torch.randint(len(labels), (64,), generator=draw)
        x = inputs[rows]
        return x, _seen(x, draw), labels[rows]

    return batch


def _supervised(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, corrupted, labels = batch
    return F.cross_entropy(model(torch.cat([x[::2], corrupted[1::2]])), torch.cat([labels[::2], labels[1::2]]))


@cached(maxsize=4)
def _small(seed: int) -> nn.Module:
    """A small network trained on clean pictures, where both ways begin."""
    return cifar10.train_classifier(resnet8, steps=400, seed=seed, data=cifar10_half.pictures("train"))


def _robust(model: nn.Module, seed: int, steps: int) -> nn.Module:
    """A copy fine-tuned as a whole on clean and corrupted pictures."""
    return short_run(copy.deepcopy(model), _batches(seed), _supervised, steps=steps, lr=LR, weight_decay=0.05, clip=1.0)


def _split(model: Any) -> Robustified:
    """A ResNet of which the last stage is tuned."""
    trunk = nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.layer1, model.layer2)
    last = nn.Sequential(model.layer3, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)
    return Robustified(trunk, last)


def _tuned(large: nn.Module, teacher: nn.Module, seed: int, steps: int) -> Robustified:
    """The large network with its last stage tuned by the method."""

    def loss(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, corrupted, labels = batch
        with torch.no_grad():
            said = teacher(corrupted)
        return transfer(model.views(corrupted, labels, said), model.views(x, labels))

    network = _split(copy.deepcopy(large))
    short_run(network, _batches(seed), loss, steps=steps, lr=LR, weight_decay=0.05, clip=1.0)
    return network


@cached(maxsize=16)
def _accuracies(seed: int, which: str) -> tuple[float, float]:
    """Accuracies on corrupted and on clean pictures, percent."""
    large = cifar10_half.teacher()
    if which == "ours":
        model: nn.Module = _tuned(large, _robust(_small(seed), seed, SMALL), seed, TUNING)
    else:
        model = _robust(large, seed, FULL) if which == "full" else large
    return cifar10.accuracy(model, _unseen()), cifar10_half.accuracy(model)


def _recovered(seed: int) -> float:
    """Gain on corrupted pictures minus half the gain of full fine-tuning, points."""
    ours, full, before = (_accuracies(seed, which)[0] for which in ("ours", "full", "before"))
    return (ours - before) - (full - before) / 2


def _clean(seed: int) -> float:
    return _accuracies(seed, "ours")[1] - _accuracies(seed, "before")[1]


def _steps(*, ours: bool) -> Callable[[], Any]:
    """A fiftieth of a training: three steps of the small teacher and two of the tuning, or six of full fine-tuning."""
    inputs = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = (inputs, inputs, torch.arange(64) % 10)
    large, small = CifarResNet(20), resnet8()
    network = _split(CifarResNet(20))

    def step(loss: Callable[[], Tensor], model: nn.Module) -> None:
        model.zero_grad()
        loss().backward()

    def tune() -> Tensor:
        with torch.no_grad():
            said = small(inputs)
        return transfer(network.views(inputs, batch[2], said), network.views(inputs, batch[2]))

    def run() -> None:
        if ours:
            for _ in range(SMALL // 50):
                step(partial(_supervised, small, batch), small)
            for _ in range(TUNING // 50):
                step(tune, network)
        else:
            for _ in range(FULL // 50):
                step(partial(_supervised, large, batch), large)

    return run


_DATA = (
    f"CIFAR-10 at 16×16; a robust resnet8 ({SMALL} steps) teaches resnet20's last stage ({TUNING} steps), against "
    f"{FULL} steps of all of it"
)

CLAIMS = (
    kept(
        "On corruptions that no training saw it recovers at least half of what full robust fine-tuning gains.",
        paper="on the Pareto front of ImageNet-C accuracy and time",
        quality=_recovered,
        at_least=0.0,
        unit="points",
        data=f"{_DATA}; the first {HELD_OUT:,} test pictures under five corruptions",
        needs=cifar10_half.NEEDS,
        clause=1,
    ),
    faster(
        "Training the small teacher and tuning take less than half the time of full robust fine-tuning.",
        paper="significantly lower time",
        ours=lambda: _steps(ours=True),
        theirs=lambda: _steps(ours=False),
        at_least=2.0,
        clause=1,
    ),
    kept(
        "It loses under one point on clean pictures.",
        paper="keeps clean accuracy",
        quality=_clean,
        at_least=-1.0,
        unit="points",
        data=f"{_DATA}; the first 2,000 test pictures",
        needs=cifar10_half.NEEDS,
        clause=2,
    ),
)
