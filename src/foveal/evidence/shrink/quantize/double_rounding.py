"""Evidence for DoubleRounding: integers from integers, the size of its file, joint against separate training."""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import STEPS as REHEARSED
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.small import CifarResNet, resnet20
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.record import bound, equal, kept, smaller
from foveal.shrink.data import Data
from foveal.shrink.quantize.double_rounding import DoubleRounding, lower, switch_
from foveal.shrink.quantize.packed import load_packed_, save_packed

if TYPE_CHECKING:
    from foveal.record import Claim

STEPS, FURTHER = 1000, 300
narrow = partial(CifarResNet, 8, width=8)
DATA = f"ResNet-8 of width 8 on CIFAR-10 at 16×16, {STEPS} steps of 64, then {FURTHER} quantised; 10,000 test pictures"


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


@cached(maxsize=12)
def _quantized(seed: int, precisions: tuple[int, ...]) -> nn.Module:
    inputs, labels = _pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(10_000 * (seed + 1) + step)
        rows = torch.randint(len(labels), (64,), generator=draw)
        flip = torch.rand(64, generator=draw).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, inputs[rows].flip(-1), inputs[rows]), labels[rows]

    data = Data(inputs[:256], quality=cifar10.accuracy, batches=batches, loss=F.cross_entropy)
    step = DoubleRounding(precisions, steps=REHEARSED if rehearsing() else FURTHER)
    return step.apply(copy.deepcopy(_float(seed)), data)


def _difference(seed: int, *, bits: int) -> float:
    """Points of the jointly trained model above the one that was trained at this precision alone."""
    joint = cifar10.accuracy(switch_(_quantized(seed, (8, 6, 4)), bits), _pictures("test"))
    return joint - cifar10.accuracy(_quantized(seed, (bits,)), _pictures("test"))


def _joint(bits: int) -> Claim:
    return kept(
        f"At {bits} bits the jointly trained ResNet-8 loses at most 2 points to one trained at {bits} bits alone.",
        paper="nearly lossless, ImageNet",
        quality=partial(_difference, bits=bits),
        at_least=-2.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    )


def _model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    return DoubleRounding().quantize_(narrow(), x), x


def _from_file(bits: int) -> Tensor:
    """Outputs of a model read from its file of 8-bit integers, at a lower precision."""
    model, x = _model()
    other, _ = _model()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_packed(model, Path(folder) / "model.safetensors")
        for p in other.parameters():
            p.zero_()
        return load_packed_(switch_(other, bits), Path(folder) / "model.safetensors")(x)


def _in_training(bits: int) -> Tensor:
    model, x = _model()
    with torch.no_grad():
        return switch_(model, bits)(x)


def _integers(bits: int) -> Tensor:
    return lower(torch.arange(-128, 128, dtype=torch.int8), 8, bits)


def _rounded(bits: int) -> Tensor:
    """The same by division, halves away from minus infinity."""
    return torch.tensor(
        [min((2 * q + 2 ** (8 - bits)) // 2 ** (9 - bits), 2 ** (bits - 1) - 1) for q in range(-128, 128)]
    )


def _bytes(precisions: tuple[int, ...]) -> float:
    """Bytes of the file of a ResNet-20."""
    torch.manual_seed(0)
    model = DoubleRounding(precisions).quantize_(resnet20(), torch.randn(1, 3, 16, 16))
    with tempfile.TemporaryDirectory() as folder:
        return float(save_packed(model, Path(folder) / "model.safetensors"))


CLAIMS = (
    *(
        equal(
            f"The second rounding to {bits} bits takes an addition, a shift and a clamp of 8-bit integers.",
            ours=partial(_integers, bits),
            theirs=partial(_rounded, bits),
            tolerance=0.0,
            clause=1,
        )
        for bits in (6, 4)
    ),
    *(
        equal(
            f"A model read at {bits} bits from its file of 8-bit integers computes what it computed in training.",
            ours=partial(_from_file, bits),
            theirs=partial(_in_training, bits),
            tolerance=0.0,
            clause=1,
        )
        for bits in (8, 6, 4)
    ),
    bound(
        "The file of a ResNet-20 of 8, 6 and 4 bits is at most 5% larger than that of 8 bits alone.",
        paper="the highest integer precision",
        value=lambda: _bytes((8, 6, 4)) / _bytes((8,)),
        at_most=1.05,
        clause=2,
    ),
    smaller(
        "That file is at most 0.28 of the weights in floating point.",
        paper="4 times",
        ours=lambda: _bytes((8, 6, 4)),
        theirs=lambda: float(sum(v.numel() * v.element_size() for v in resnet20().state_dict().values())),
        at_least=1 / 0.28,
        clause=2,
    ),
    *(_joint(bits) for bits in (8, 6, 4)),
)
