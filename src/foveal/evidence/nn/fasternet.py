"""Evidence for FasterNet: counts of timm's network, the partial convolution, its time, and the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor

from foveal.evidence.tasks.zoo import MixerNet, Zoo, depthwise, widths
from foveal.evidence.timing import call
from foveal.nn.fasternet import PConv, partial_conv, partial_conv_reference
from foveal.record import equal, faster, macs, params, smaller


def _timms(x: Tensor) -> Tensor:
    """Timm's block of the first stage, before its perceptron, with our weight."""
    network: Any = timm.create_model("fasternet_t0")
    block = network.stages[0].blocks[0].spatial_mixing
    with torch.no_grad():
        block.partial_conv3.weight.copy_(_weight())
        out: Tensor = block(x)
    return out


def _picture() -> Tensor:
    return torch.randn(2, 40, 13, 11, generator=torch.Generator().manual_seed(0))


def _weight() -> Tensor:
    return torch.randn(10, 10, 3, 3, generator=torch.Generator().manual_seed(1)) / 10


ZOO = Zoo(
    partial(MixerNet, PConv, 48),
    widths(partial(MixerNet, depthwise), range(24, 61, 2)),
    "the twin with depthwise convolutions",
)

CLAIMS = (
    params("timm's T0.", paper="3.9 M", model=partial(timm.create_model, "fasternet_t0"), expect="3.906 M", clause=1),
    macs(
        "timm's T0 at 224×224.",
        paper="0.34 G",
        model=partial(timm.create_model, "fasternet_t0"),
        shape=(1, 3, 224, 224),
        expect="0.335 G",
        clause=1,
    ),
    equal(
        "The partial convolution is a dense one that passes on three quarters of the channels.",
        ours=lambda: partial_conv(_picture(), _weight()),
        theirs=lambda: partial_conv_reference(_picture(), _weight()),
        tolerance=1e-6,
        clause=2,
    ),
    equal(
        "timm's block gives the same with the same weight.",
        ours=lambda: partial_conv(_picture(), _weight()),
        theirs=lambda: _timms(_picture()),
        tolerance=1e-6,
        clause=2,
    ),
    smaller(
        "It takes a sixteenth of the multiply-adds of the convolution of all channels.",
        paper="1/16",
        ours=lambda: float(PConv(40).weight.numel()),
        theirs=lambda: 40.0 * 40 * 9,
        at_least=16.0,
        beyond="1/16 of the multiply-adds",
    ),
    faster(
        "T0 takes less time than MobileViT-XXS, at least 1.5 times.",
        paper="3.3× on a processor",
        ours=call(partial(timm.create_model, "fasternet_t0"), 1, 3, 224, 224),
        theirs=call(partial(timm.create_model, "mobilevit_xxs"), 1, 3, 256, 256),
        at_least=1.5,
        clause=3,
    ),
    *ZOO.claims(clause=4),
)
