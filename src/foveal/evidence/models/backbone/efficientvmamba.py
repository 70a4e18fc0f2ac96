"""Evidence of foveal.models.backbone.efficientvmamba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    """Tokens that one layer scans: of all sequences that come to its scan."""
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


def _scan(*, atrous: bool) -> Callable[[], Any]:
    torch.manual_seed(0)
    mixer, x = (ES2D if atrous else SS2D)(96), torch.rand(1, 192, 56, 56)

    def call() -> Tensor:
        with torch.inference_mode():
            return mixer.scan(x)

    return call


CLAIMS = (
    params("EfficientVMamba-S.", paper="11 M", model=efficientvmamba_small, expect=11_000_000, tolerance=0.03),
    params("The same, exactly.", paper="11.274 M in the log", model=efficientvmamba_small, expect=11_273_688),
    params("EfficientVMamba-T.", paper="6 M", model=efficientvmamba_tiny, expect=6_493_660),
    params("EfficientVMamba-B.", paper="33 M", model=efficientvmamba_base, expect=33_717_136),
    macs(
        "EfficientVMamba-S, a picture of 224×224.",
        paper="1.3 G",
        model=efficientvmamba_small,
        shape=(1, 3, 224, 224),
        expect=1.3e9,
        tolerance=0.03,
    ),
    macs(
        "EfficientVMamba-B, a picture of 224×224.",
        paper="4.0 G",
        model=efficientvmamba_base,
        shape=(1, 3, 224, 224),
        expect=4.0e9,
        tolerance=0.03,
    ),
    equal(
        "A layer scans as many tokens as the map has.",
        paper="N in place of 4N",
        ours=lambda: torch.stack([_tokens(2, 4), _tokens(12, 10), _tokens(56, 56)]),
        theirs=lambda: torch.tensor([[8], [120], [3136]]),
        tolerance=0.0,
    ),
    equal(
        "Gathering and scattering give back the map, sides odd and even.",
        ours=_there_and_back,
        theirs=lambda: torch.cat([x.flatten() for x in _maps()]),
        tolerance=0.0,
    ),
    faster(
        "The efficient scan of 192 channels of 56×56 takes half the time of four full scans.",
        paper="a quarter of the tokens",
        ours=lambda: _scan(atrous=True),
        theirs=lambda: _scan(atrous=False),
        at_least=2.0,
    ),
)
