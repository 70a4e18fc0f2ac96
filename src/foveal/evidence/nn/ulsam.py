"""Evidence for ULSAM: its weights, its maps, and MobileNetV2 with the module in the place of two blocks.

The blocks are those of the paper's network of 261.88 M multiply-adds, found by its counts: the last of 96 and the last
of 160 channels. The trained network is timm's at half the width for 32×32 pictures, its stem without a stride.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.measure.cost import count_macs, count_parameters
from foveal.nn.ulsam import ULSAM, stand_in
from foveal.record import bound, equal, macs, params

BLOCKS = ("blocks.4.2", "blocks.5.2")
STEPS = 600


def _replaced(net: nn.Module) -> nn.Module:
    for name in BLOCKS:
        block: Any = net.get_submodule(name)
        net.set_submodule(name, stand_in(block, (1, block.conv_pwl.out_channels, 4, 4)))
    return net


def _small() -> nn.Module:
    """MobileNetV2 at half the width for 32×32 pictures: (B, 3, 32, 32) to (B, 10)."""
    net: Any = timm.create_model("mobilenetv2_050", num_classes=10)
    net.conv_stem.stride = (1, 1)
    return net  # type: ignore[no-any-return]


def _small_replaced() -> nn.Module:
    return _replaced(_small())


def _large() -> nn.Module:
    return _replaced(timm.create_model("mobilenetv2_100"))


def _saved(count: Any, build: Any, than: Any) -> float:
    """Percent of a count that the network saves."""
    return 100 * (1 - count(build()) / count(than()))


def _macs(side: int) -> Any:
    return partial(count_macs, shape=(1, 3, side, side))


def _features() -> Tensor:
    return torch.randn(2, 24, 9, 7, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _module(num_subspaces: int) -> ULSAM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ULSAM(24, num_subspaces=num_subspaces).eval()
        for norm in (module.norm1, module.norm2):
            norm.weight.uniform_(1, 3)
            norm.bias.normal_()
    return module


@torch.no_grad()
def _single() -> Tensor:
    """The form with one map, written down: all channels share softmax(PW(maxpool(DW(x))))."""
    module, x = _module(1), _features()
    gathered = F.max_pool2d(F.relu(module.norm1(x * module.depthwise.weight[:, 0])), 3, 1, 1)
    logits = F.relu(module.norm2((gathered * module.pointwise.weight[0]).sum(1, keepdim=True)))
    weights = logits.exp() / logits.exp().sum((2, 3), keepdim=True)
    return x * (1 + weights)


@torch.no_grad()
def _sums() -> Tensor:
    return _module(4).maps(_features()).sum((2, 3))


@torch.no_grad()
def _out(num_subspaces: int) -> Tensor:
    found: Tensor = _module(num_subspaces)(_features())
    return found


CLAIMS = (
    params(
        "Two weights per channel, and those of the two norms: 2·512 + 2·512 + 2·4.",
        paper="about 1 K for 512 channels, norms aside",
        model=partial(ULSAM, 512),
        expect=2 * 512 + 2 * 512 + 2 * 4,
        clause=1,
    ),
    macs(
        "Two multiply-adds per channel and place for the maps.",
        paper="0.2 M for 512 channels of 14×14",
        model=partial(ULSAM, 512),
        shape=(1, 512, 14, 14),
        expect="0.2 M",
        beyond="cost of the module",
    ),
    equal(
        "The map of each of four subspaces sums to 1.",
        ours=_sums,
        theirs=lambda: torch.ones(2, 4),
        tolerance=1e-6,
        clause=2,
    ),
    equal(
        "With one subspace it is the form with a single map.",
        ours=lambda: _out(1),
        theirs=_single,
        tolerance=1e-6,
        clause=3,
    ),
    macs(
        "MobileNetV2 with the module in the place of two blocks, at 224×224 (timm counts 0.77 M more without it too).",
        paper="261.88 M",
        model=_large,
        shape=(1, 3, 224, 224),
        expect="261.88 M",
        tolerance=0.004,
        beyond="13 % fewer multiply-adds",
    ),
    bound(
        "It saves at least ten percent of the multiply-adds.",
        paper="13 %",
        value=lambda: _saved(_macs(224), _large, partial(timm.create_model, "mobilenetv2_100")),
        at_least=10.0,
        unit="%",
        clause=4,
    ),
    bound(
        "And at least ten percent of the parameters.",
        paper="3.4 M to 2.96 M",
        value=lambda: _saved(count_parameters, _large, partial(timm.create_model, "mobilenetv2_100")),
        at_least=10.0,
        unit="%",
        beyond="13 % fewer parameters",
    ),
    bound(
        "At half the width and 32×32 it saves as much.",
        paper="13 %",
        value=lambda: _saved(_macs(32), _small_replaced, _small),
        at_least=10.0,
        unit="%",
        clause=4,
    ),
    cifar10.better(
        _small_replaced,
        "That network loses at most a point to MobileNetV2.",
        than=_small,
        steps=STEPS,
        paper="0.27 points better on ImageNet",
        by=-1.0,
        clause=4,
    ),
)
