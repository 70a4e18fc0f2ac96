"""Evidence for CDFKD-MFS: on digits drawn in 17 fonts, against distillation on noise and from one teacher."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import STEPS, cached, rehearsing
from foveal.evidence.rivals.small import CifarResNet
from foveal.evidence.tasks import cifar10, digits
from foveal.evidence.trained_once import trained_once
from foveal.measure import benchmarks
from foveal.measure.cost import count_parameters
from foveal.record import kept, smaller
from foveal.shrink.distill.cdfkd_mfs import Generator, MultiHead, distil_without_data

WIDTH, TEACHERS, TEACHER_STEPS = 8, 3, 300
ROUNDS, BATCH = 150, 64  # steps of the generator, five of the student before each; pictures of a step
DATA = f"digits drawn in 17 fonts, 16×16, 1,000 for the test; {ROUNDS} rounds of {BATCH} made-up pictures"

_build = partial(CifarResNet, 14, width=WIDTH, in_channels=1)


@cached(maxsize=2)
def _mnist(part: str) -> tuple[Tensor, Tensor]:
    """MNIST from an `mnist.npz` as Keras distributes it, if there is one in a data folder: (n, 1, 16, 16), labels."""
    if rehearsing():
        return torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    path = next((folder / "mnist.npz" for folder in benchmarks.folders() if (folder / "mnist.npz").is_file()), None)
    if path is None:
        raise benchmarks.DataError("mnist.npz, with x_train, y_train, x_test and y_test, is in no data folder; add it")
    with np.load(path) as data:
        x, labels = data[f"x_{part}"], data[f"y_{part}"]
    pictures = torch.from_numpy(x)[:, None].float() / 255
    return F.interpolate(pictures, (16, 16), mode="area"), torch.from_numpy(labels).long()


@cached(maxsize=2 * TEACHERS)
def _teacher(number: int, *, handwritten: bool = False) -> nn.Module:
    if handwritten:
        words: dict[str, Any] = {"steps": TEACHER_STEPS, "seed": 100 + number, "data": _mnist("train"), "flip": False}
        return cifar10.train_classifier(_build, **words)
    return trained_once(
        _build,
        lambda: digits.trained(_build, steps=TEACHER_STEPS, seed=100 + number),
        modules=[digits.__name__, cifar10.__name__, CifarResNet.__module__],
        key=f"digits teacher resnet14 width {WIDTH} steps {TEACHER_STEPS} seed {100 + number}",
    )


def _score(model: nn.Module, *, handwritten: bool) -> float:
    return cifar10.accuracy(model, _mnist("test")) if handwritten else digits.score(model)


class _Noise(nn.Module):
    """Standard normal pictures: the generator of noise-input distillation."""

    latent = 16 * 16

    def forward(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 16, 16)


def _student(heads: int) -> MultiHead:
    """A trunk of 8 layers, each stage read by every head."""
    whole = CifarResNet(8, width=WIDTH, in_channels=1)
    first = nn.Sequential(whole.conv1, whole.bn1, nn.ReLU(), whole.layer1)
    dims = WIDTH, 2 * WIDTH, 4 * WIDTH
    return MultiHead(
        [first, whole.layer2, whole.layer3],
        dims,
        (1, 2, 2),
        num_teachers=heads,
        num_features=4 * WIDTH,
        num_classes=10,
    )


@cached(maxsize=12)
def _accuracy(seed: int, *, heads: int = TEACHERS, noise: bool = False, handwritten: bool = False) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = _student(heads)
        generator = _Noise() if noise else Generator(16, channels=1, dim=32)
    teachers = [_teacher(number, handwritten=handwritten) for number in range(heads)]
    steps, batch = (STEPS, 8) if rehearsing() else (ROUNDS, BATCH)
    made = distil_without_data(teachers, student, generator, steps=steps, batch=batch, seed=seed)
    return _score(made, handwritten=handwritten)


def _taught(*, handwritten: bool = False) -> float:
    """Mean accuracy of the teachers."""
    teachers = [_teacher(number, handwritten=handwritten) for number in range(TEACHERS)]
    return sum(_score(teacher, handwritten=handwritten) for teacher in teachers) / TEACHERS


CLAIMS = (
    kept(
        "Without a picture the student reaches 80% of the teachers' mean accuracy on handwritten digits.",
        paper="",
        quality=lambda seed: 100 * _accuracy(seed, handwritten=True) / _taught(handwritten=True),
        at_least=80.0,
        unit="%",
        data=f"MNIST at 16×16; {ROUNDS} rounds of {BATCH} made-up pictures",
        needs=digits.NEEDS,
        clause=1,
    ),
    kept(
        "Without a picture the student reaches 80% of the teachers' mean accuracy; drawn digits, not handwritten ones.",
        paper="",
        quality=lambda seed: 100 * _accuracy(seed) / _taught(),
        at_least=80.0,
        unit="%",
        data=DATA,
        needs=digits.NEEDS,
        beyond="learning without pictures",
    ),
    kept(
        "It is 10 points more accurate than a student taught on noise in as many steps.",
        paper="",
        quality=lambda seed: _accuracy(seed) - _accuracy(seed, noise=True),
        at_least=10.0,
        unit="points",
        data=DATA,
        needs=digits.NEEDS,
        clause=2,
    ),
    smaller(
        "It has fewer parameters than the three teachers together.",
        paper="one trunk instead of three models",
        ours=lambda: float(count_parameters(_student(TEACHERS))),
        theirs=lambda: float(TEACHERS * count_parameters(_build())),
        clause=3,
    ),
    kept(
        "It is more accurate than a student of one teacher, trained as long without data.",
        paper="1.18 points on CIFAR-100, over the best alternative",
        quality=lambda seed: _accuracy(seed) - _accuracy(seed, heads=1),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=digits.NEEDS,
        beyond="several teachers instead of one",
    ),
)
