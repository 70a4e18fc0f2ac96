"""Evidence for VCMamba: its sizes and cost, against a PlainMamba stack of as many parameters."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.evidence.timing import call
from foveal.measure.cost import count_macs, count_parameters
from foveal.models.backbone.plainmamba import plainmamba, plainmamba_l3
from foveal.models.backbone.vcmamba import vcmamba_b, vcmamba_m, vcmamba_s
from foveal.record import bound, faster, grows, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def _count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return count_parameters(build())


def _macs(side: int) -> float:
    with torch.device("meta"):
        return float(count_macs(vcmamba_b(), (1, 3, side, side)))


CLAIMS = (
    params(
        "S, both classifiers.",
        paper="10.5 M",
        model=vcmamba_s,
        expect="10.5 M",
        beyond="sizes that the paper prints",
    ),
    params(
        "M, both classifiers.",
        paper="21.0 M",
        model=vcmamba_m,
        expect="21.0 M",
        beyond="sizes that the paper prints",
    ),
    params(
        "B, both classifiers.",
        paper="31.5 M",
        model=vcmamba_b,
        expect="31.5 M",
        beyond="sizes that the paper prints",
    ),
    macs(
        "S at 224×224.",
        paper="1.1 G",
        model=vcmamba_s,
        shape=(1, 3, 224, 224),
        expect="1.1 G",
        beyond="cost that the paper prints",
    ),
    macs(
        "M at 224×224.",
        paper="2.3 G",
        model=vcmamba_m,
        shape=(1, 3, 224, 224),
        expect="2.3 G",
        beyond="cost that the paper prints",
    ),
    macs(
        "B at 224×224.",
        paper="4.0 G",
        model=vcmamba_b,
        shape=(1, 3, 224, 224),
        expect="4.0 G",
        beyond="cost that the paper prints",
    ),
    bound(
        "B has 0.63 times the parameters of our PlainMamba-L3, within 3 %.",
        paper="37% fewer",
        value=lambda: _count(vcmamba_b) / _count(plainmamba_l3),
        at_least=0.63 * 0.97,
        at_most=0.63 * 1.03,
        unit="times",
        clause=1,
    ),
    grows(
        "Multiply-adds of B grow as the pixels do, from 224×224 to 1024×1024.",
        paper="linear",
        cost=_macs,
        sizes=(224, 448, 672, 1024),
        of=lambda side: side**2,
        exponent=(0.99, 1.01),
        clause=2,
    ),
    faster(
        "M takes less time at 512×512 than PlainMamba's blocks of as many parameters, 24 of width 340.",
        paper="",
        ours=call(vcmamba_m, 1, 3, 512, 512),
        theirs=call(partial(plainmamba, 340), 1, 3, 512, 512),
        clause=3,
    ),
)
