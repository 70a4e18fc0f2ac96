"""Evidence for DCNv2: torchvision's operator, an ordinary convolution, and turned and scaled digits.

The network is two strided convolutions and two layers under test, on MNIST's digits turned and scaled. The twins have
ordinary convolutions, or deformable ones without factors (DCNv1), of the same size in their place, with the same seed,
batches and steps. Side convolutions learn at a tenth of the rate: the trainer's AdamW makes steps that do not depend on
the size of a gradient, so it is their weights that are a tenth of what the trainer sees.

Data: see `foveal.evidence.tasks.turned_digits`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10, turned_digits
from foveal.nn.dcnv2 import DCNv2, modulated_conv
from foveal.nn.deform_conv import DeformConv2d
from foveal.ops.deform_conv import deform_conv2d
from foveal.record import equal, kept, params

if TYPE_CHECKING:
    from collections.abc import Callable

NEEDS = turned_digits.NEEDS
STEPS = 300
# groups of the weight and of the offsets, stride, padding, dilation
SETTINGS = ((1, 1, 1, 1, 1), (1, 2, 2, 1, 1), (2, 4, 1, 2, 2), (8, 1, 1, 0, 1))
FULL = 40.0  # whose sigmoid is 1 in float32


def _cases() -> list[tuple[list[Tensor], dict[str, Any]]]:
    """Input, side, weight and bias, and the numbers of the convolution, for all settings."""
    cases = []
    for groups, share, stride, padding, dilation in SETTINGS:
        generator = torch.Generator().manual_seed(groups + share)
        down, across = ((n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in (13, 11))
        shapes = (2, 8, 13, 11), (2, 27 * share, down, across), (16, 8 // groups, 3, 3), (16,)
        x, side, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
        cases.append(([x, 3 * side, weight, bias], {"stride": stride, "padding": padding, "dilation": dilation}))
    return cases


def _torchvision(x: Tensor, side: Tensor, weight: Tensor, bias: Tensor, **words: int) -> Tensor:
    offset, factor = side.split([side.shape[1] // 3 * 2, side.shape[1] // 3], 1)
    return torchvision.ops.deform_conv2d(x, offset, weight, bias, mask=factor.sigmoid(), **words)


def _compared(convolve: Callable[..., Tensor]) -> Tensor:
    """Outputs and gradients of everything under all settings, one after the other."""
    found = []
    for tensors, words in _cases():
        leaves = [t.requires_grad_() for t in tensors]
        y = convolve(*leaves, **words)
        found += [y, *torch.autograd.grad(y.sin().sum(), leaves)]
    return torch.cat([t.detach().flatten() for t in found])


def _still(factor: float) -> Tensor:
    """Outputs and gradients of input and weight at zero offsets, all factors' logits being one number."""
    found = []
    for (x, side, weight, bias), words in _cases():
        offset, logits = side.split([side.shape[1] // 3 * 2, side.shape[1] // 3], 1)
        still = torch.cat([torch.zeros_like(offset), torch.full_like(logits, factor)], 1)
        leaves = [x.requires_grad_(), weight.requires_grad_()]
        y = modulated_conv(x, still, weight, bias, **words)
        found += [y, *torch.autograd.grad(y.sin().sum(), leaves)]
    return torch.cat([t.detach().flatten() for t in found])


def _ordinary(share: float) -> Tensor:
    """The same by `conv2d`, whose weight is multiplied by a share."""
    found = []
    for (x, _, weight, bias), words in _cases():
        leaves = [x.requires_grad_(), weight.requires_grad_()]
        y = F.conv2d(x, share * weight, bias, groups=x.shape[1] // weight.shape[1], **words)
        found += [y, *torch.autograd.grad(y.sin().sum(), leaves)]
    return torch.cat([t.detach().flatten() for t in found])


class _Tenth(nn.Module):
    """A tenth of a parameter."""

    def forward(self, parameter: Tensor) -> Tensor:
        return 0.1 * parameter


def _slowed(branch: nn.Module) -> None:
    for name in ("weight", "bias"):
        parametrize.register_parametrization(branch, name, _Tenth())


def _v2(in_channels: int, out_channels: int) -> nn.Module:
    layer = DCNv2(in_channels, out_channels)
    _slowed(layer.side)
    return layer


def _v1(in_channels: int, out_channels: int) -> nn.Module:
    layer = DeformConv2d(in_channels, out_channels)
    _slowed(layer.offset)
    return layer


class _Net(nn.Sequential):
    """(B, 1, 28, 28) to (B, 10), with two layers (C, C) at 14×14 and 7×7 pixels."""

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        def after(made: nn.Module, dim: int) -> tuple[nn.Module, ...]:
            return made, nn.BatchNorm2d(dim), nn.ReLU()

        super().__init__(
            *after(nn.Conv2d(1, 16, 3, 2, 1), 16),
            *after(layer(16, 16), 16),
            *after(nn.Conv2d(16, 32, 3, 2, 1), 32),
            *after(layer(32, 32), 32),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )


V2, V1 = partial(_Net, _v2), partial(_Net, _v1)
PLAIN = partial(_Net, partial(nn.Conv2d, kernel_size=3, padding=1))


@cached(maxsize=9)
def _trained(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    return cifar10.train_classifier(
        build, steps=STEPS, seed=seed, data=turned_digits.pictures("train"), flip=False, lr=5e-3, weight_decay=0.01
    )


def _gain(seed: int, *, over: Callable[[], nn.Module]) -> float:
    """Points of accuracy above a twin."""
    ours, theirs = (cifar10.accuracy(_trained(build, seed), turned_digits.pictures("test")) for build in (V2, over))
    return ours - theirs


@torch.no_grad()
def _on_ink(seed: int) -> float:
    """How much of what the first layer reads for places on a digit is on it, less that of taps at rest, in percent."""
    net: Any = _trained(V2, seed)
    x, _ = turned_digits.pictures("test")
    side = net[3].side(net[2](net[1](net[0](x))))
    # (B, 1, 14, 14), in [0, 1]: brightness of the digit at each place of the layer
    ink = F.avg_pool2d((0.25 * x + 0.1).clamp(0, 1), 2)
    on, factor = ink[:, 0] > 0.5, side[:, 18:].sigmoid()
    read = deform_conv2d(ink, side[:, :18], torch.ones(1, 1, 3, 3), mask=factor, padding=1)[:, 0] / factor.sum(1)
    rest = F.avg_pool2d(ink, 3, 1, 1)[:, 0]
    return 100 * float((read - rest)[on].mean())


WORDS: dict[str, Any] = {
    "data": f"{STEPS} steps of 64 on 6,000 digits of MNIST, turned and scaled; 1,000 test pictures",
    "needs": NEEDS,
    "unit": "points",
}
CLAIMS = (
    equal(
        "Outputs and gradients are those of torchvision's operator with a mask, with groups, strides and dilation.",
        ours=lambda: _compared(modulated_conv),
        theirs=lambda: _compared(_torchvision),
        tolerance=1e-5,
        clause=1,
    ),
    equal(
        "With zero offsets and factors of 1 it is an ordinary convolution, outputs and gradients.",
        ours=lambda: _still(FULL),
        theirs=lambda: _ordinary(1.0),
        tolerance=1e-5,
        clause=1,
    ),
    equal(
        "With a side convolution of zeros it is one of half the weight.",
        ours=lambda: _still(0.0),
        theirs=lambda: _ordinary(0.5),
        tolerance=1e-5,
        beyond="zero offsets and unit mask reduce to ordinary conv",
    ),
    params(
        "A layer of 16 channels has 27 filters beside its 16.",
        paper="3K numbers for each place",
        model=partial(DCNv2, 16, 16),
        expect=(16 + 27) * (16 * 9 + 1),
        beyond="zero offsets and unit mask reduce to ordinary conv",
    ),
    kept(
        "It is above the twin with ordinary convolutions on turned and scaled digits.",
        paper="better",
        quality=partial(_gain, over=PLAIN),
        at_least=0.0,
        clause=2,
        **WORDS,
    ),
    kept(
        "It is above the twin with deformable convolutions without factors.",
        paper="above DCNv1 on COCO",
        quality=partial(_gain, over=V1),
        at_least=0.0,
        beyond="significant COCO gains over DCNv1",
        **WORDS,
    ),
    kept(
        "For places on a digit, its weighted taps read more of it than taps at rest.",
        paper="support regions stay on the object",
        quality=_on_ink,
        at_least=0.0,
        beyond="sampling concentrates on the object",
        **{**WORDS, "unit": "%"},
    ),
)
