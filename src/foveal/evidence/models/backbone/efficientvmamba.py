"""Evidence for EfficientVMamba: its scan against four full ones, and that gathering tokens loses none."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.evidence.timing import call
from foveal.models.backbone.efficientvmamba import (
    ES2D,
    atrous_gather,
    atrous_scatter,
    efficientvmamba_base,
    efficientvmamba_small,
    efficientvmamba_tiny,
)
from foveal.nn.ss2d import SS2D
from foveal.record import equal, faster, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable


def _tokens(height: int, width: int) -> Tensor:
    """Number of tokens that one layer scans, over all sequences of its scan."""
    mixer, seen = ES2D(4, state=1), []
    mixer.s6.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, :, 0].numel()))
    with torch.no_grad():
        mixer(torch.zeros(1, 4, height, width))
    return torch.tensor(seen)


_SIDES = [(1, 1), (1, 8), (7, 1), (8, 8), (13, 10), (10, 13), (9, 7)]


def _maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, *side, generator=generator) for side in _SIDES]


def _there_and_back() -> Tensor:
    return torch.cat([atrous_scatter(atrous_gather(x), *x.shape[2:]).flatten() for x in _maps()])


def _scan(mixer: type[SS2D]) -> Callable[[Tensor], Tensor]:
    return mixer(96).eval().scan


CLAIMS = (
    params(
        "EfficientVMamba-S.",
        paper="11 M",
        model=efficientvmamba_small,
        expect="11 M",
        tolerance=0.03,
        clause=3,
    ),
    params(
        "EfficientVMamba-S, exactly.",
        paper="11.274 M in the authors' log",
        model=efficientvmamba_small,
        expect="11.274 M",
        beyond="sizes as printed",
    ),
    params("EfficientVMamba-T.", paper="6 M", model=efficientvmamba_tiny, expect="6 M", beyond="sizes as printed"),
    params("EfficientVMamba-B.", paper="33 M", model=efficientvmamba_base, expect="33 M", beyond="sizes as printed"),
    macs(
        "EfficientVMamba-S, a picture of 224×224.",
        paper="1.3 G",
        model=efficientvmamba_small,
        shape=(1, 3, 224, 224),
        expect="1.3 G",
        tolerance=0.03,
        clause=3,
    ),
    *(
        macs(
            f"EfficientVMamba-{name}, a picture of 224×224.",
            paper=cost,
            model=model,
            shape=(1, 3, 224, 224),
            expect=cost,
            beyond="multiply-adds as printed",
        )
        for name, model, cost in (("T", efficientvmamba_tiny, "0.8 G"), ("B", efficientvmamba_base, "4.0 G"))
    ),
    equal(
        "A layer scans as many tokens as the map has.",
        paper="N in place of 4N",
        ours=lambda: torch.stack([_tokens(2, 4), _tokens(12, 10), _tokens(56, 56)]),
        theirs=lambda: torch.tensor([[8], [120], [3136]]),
        tolerance=0.0,
        beyond="N scanned tokens in place of 4N",
    ),
    equal(
        "Gathering and scattering give back the map, sides odd and even.",
        ours=_there_and_back,
        theirs=lambda: torch.cat([x.flatten() for x in _maps()]),
        tolerance=0.0,
        clause=1,
    ),
    faster(
        "The efficient scan of 192 channels of 56×56 takes half the time of four full scans.",
        paper="a quarter of the tokens",
        ours=call(partial(_scan, ES2D), 1, 192, 56, 56),
        theirs=call(partial(_scan, SS2D), 1, 192, 56, 56),
        at_least=2.0,
        clause=2,
    ),
)
