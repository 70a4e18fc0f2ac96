"""Evidence for RawOrCooked: its curve against SciPy's, and a small network on RAW with it, without and with others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import resnet8
from foveal.evidence.tasks import cifar10, raw
from foveal.nn.raw_or_cooked import RawOrCooked, yeo_johnson
from foveal.record import equal, kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

STEPS = 600
TRAINING, TEST = 20_000, 2_000
POWERS = (-2.0, -1e-5, 0.0, 0.35, 0.5, 1.0, 1.9999, 2.0, 3.0)
DATA = f"{STEPS} steps on {TRAINING} RAW pictures made from CIFAR-10, three cameras; {TEST} test pictures; paired"


def _values() -> NDArray[np.float64]:
    return np.concatenate([np.linspace(-6, 6, 97), [1e-9, -1e-9, 4095.0]])


def _scipy(power: float) -> NDArray[np.float64]:
    from scipy.stats import yeojohnson

    return np.asarray(yeojohnson(_values(), lmbda=power))


def _curves() -> Tensor:
    x = torch.from_numpy(_values())
    return torch.stack([yeo_johnson(x, torch.tensor(power, dtype=x.dtype)) for power in POWERS])


def _slopes() -> Tensor:
    """Gradient of λ at each value, by autograd."""
    found: list[Tensor] = []
    for power in POWERS:
        x = torch.from_numpy(_values())
        powers = torch.full_like(x, power, requires_grad=True)
        found += torch.autograd.grad(yeo_johnson(x, powers).sum(), powers)
    return torch.stack(found)


def _differences() -> NDArray[np.float64]:
    """Gradient of λ at each value by fourth-order central differences of SciPy's transform."""
    step, found = 1e-3, []
    for power in POWERS:
        near, far = (_scipy(power + i * step) - _scipy(power - i * step) for i in (1, 2))
        found.append((8 * near - far) / (12 * step))
    return np.stack(found)


def _each(values: Callable[[], Tensor | NDArray], by: Callable[[], NDArray]) -> NDArray[np.float64]:
    """Values over 1 + |SciPy's|, so that small ones count as much as large ones."""
    return np.asarray(values()) / (1 + np.abs(by()))


def _transformed() -> NDArray[np.float64]:
    return np.stack([_scipy(power) for power in POWERS])


@cached(maxsize=12)
def _accuracy(curve: str, seed: int) -> float:
    """Accuracy of a network with a curve in front, percent; inputs are normalised behind the curve, whichever it is."""

    def build() -> nn.Module:
        net = resnet8()
        return nn.Sequential(RawOrCooked(curve), nn.BatchNorm2d(3, affine=False), net)

    data = raw.classes("train", limit=TRAINING, seed=seed)
    net = cifar10.train_classifier(build, steps=STEPS, seed=seed, data=data, flip=False)
    return cifar10.accuracy(net, raw.classes("test", limit=TEST, seed=1000))


def _above(rival: str, seed: int) -> float:
    return _accuracy("yeo_johnson", seed) - _accuracy(rival, seed)


CLAIMS = (
    equal(
        "The curve is scipy.stats.yeojohnson for powers from -2 to 3, at and near both limits, value by value.",
        ours=lambda: _each(_curves, _transformed),
        theirs=lambda: _each(_transformed, _transformed),
        tolerance=1e-6,
        clause=1,
    ),
    equal(
        "The gradient of λ is the slope of scipy.stats.yeojohnson, value by value.",
        ours=lambda: _each(_slopes, _differences),
        theirs=lambda: _each(_differences, _differences),
        tolerance=1e-6,
        clause=1,
    ),
    kept(
        "On RAW a small network with the curve is at least one point above the same network on linear RAW.",
        paper="superior to RGB and to earlier learned processing",
        quality=partial(_above, "linear"),
        at_least=1.0,
        unit="points",
        data=DATA,
        needs=raw.CLASSES,
        clause=2,
    ),
    kept(
        "Yeo–Johnson is not below a trainable gamma.",
        paper="best of its curves",
        quality=partial(_above, "gamma"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=raw.CLASSES,
        beyond="the best of the three curves",
    ),
    kept(
        "Yeo–Johnson is not below a trainable error function.",
        paper="best of its curves",
        quality=partial(_above, "error"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=raw.CLASSES,
        beyond="the best of the three curves",
    ),
)
