"""Evidence for Quamba: against the network in floating point and against plain rounding with one scale per tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10_vim
from foveal.nn.mamba import Mamba
from foveal.record import equal, smaller
from foveal.shrink.quantize.quamba import Quamba, rotate_
from foveal.shrink.quantize.quamba2 import packed_bytes

PLAIN = Quamba(percentile=1.0, rotate=False)


def _mixers() -> tuple[nn.Module, Tensor]:
    """Two mixers of Vim-Tiny's width and the tokens of a picture."""
    torch.manual_seed(0)
    model = nn.Sequential(Mamba(192, bidirectional=True), Mamba(192, bidirectional=True))
    return model, torch.randn(2, 49, 192)


def _folding(*, folded: bool) -> Tensor:
    model, x = _mixers()
    with torch.inference_mode():
        return (rotate_(model) if folded else model)(x)


def _bytes(part: int) -> float:
    model, x = _mixers()
    return float(packed_bytes(Quamba().apply(model, x))[part])


CLAIMS = (
    equal(
        "Rotating the scan's output changes nothing before rounding, two mixers of Vim-Tiny's width.",
        paper="compute-invariant",
        ours=lambda: _folding(folded=True),
        theirs=lambda: _folding(folded=False),
        tolerance=1e-4,
        clause=1,
    ),
    cifar10_vim.difference(
        "In eight bits a small trained Vim loses at most one point of accuracy.",
        Quamba(),
        than=None,
        at_least=-1.0,
        paper="0.9 points on average, Mamba-2.8B",
        clause=2,
    ),
    cifar10_vim.difference(
        "Plain rounding with one scale a tensor loses measurably more.",
        Quamba(),
        than=PLAIN,
        at_least=0.0,
        paper="",
        clause=3,
    ),
    smaller(
        "The quantised weights take half the bytes of half precision, scales included.",
        paper="half of FP16",
        ours=lambda: _bytes(0),
        theirs=lambda: _bytes(1),
        at_least=1.98,
        beyond="a smaller model",
    ),
)
