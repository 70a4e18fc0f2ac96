"""Evidence for Serpent: time and memory of a block against pixels, and a U-net of convolutions of the same cost."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import deblurring
from foveal.evidence.timing import call, seconds
from foveal.measure.cost import count_macs, peak_memory
from foveal.models.restore.serpent import Serpent, SerpentBlock, serpent_small
from foveal.record import grows, smaller

RATIO = 0.45  # hidden over outer width at which a block of convolutions costs as much as a small Serpent's
SIDES = (128, 256, 384, 512, 768)


class _ConvBlock(nn.Module):
    """The rival of the scans: two 3×3 convolutions to `ratio` times the channels and back, with a residual."""

    def __init__(self, dim: int, *, ratio: float) -> None:
        super().__init__()
        hidden = round(dim * ratio)
        self.norm = LayerNorm2d(dim)
        self.up, self.down = nn.Conv2d(dim, hidden, 3, padding=1), nn.Conv2d(hidden, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


# `serpent_small` with convolutions instead of scans and the same number of multiply-adds.
small_convolutions = partial(Serpent, dim=24, depths=(1, 1, 2), make=partial(_ConvBlock, ratio=RATIO))


def _pixels(side: int) -> float:
    return float(side**2)


def _time(side: int) -> float:
    """Seconds of a block on a map of `side` × `side`; a rehearsal uses a sixteenth of the side."""
    side = side // 16 if rehearsing() else side
    return seconds(call(partial(SerpentBlock, 16, state=8), 1, 16, side, side), repeats=1)


def _forward(block: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return block(x)


@cached(maxsize=len(SIDES) + 1)
def _peak(side: int) -> float:
    """Peak bytes of a process that runs a block on a map of `side` × `side`."""
    torch.manual_seed(0)
    run = partial(_forward, SerpentBlock(16, state=8).eval(), torch.rand(1, 16, side, side))
    if rehearsing():  # a separate process takes seconds to start
        return float(run().nbytes)
    return float(peak_memory(run))


def _memory(side: int) -> float:
    """Peak bytes of a block, minus those on an 8×8 map, which is the fixed cost of a first call."""
    return _peak(side // 8 if rehearsing() else side) - _peak(8)


def _swinir_macs(side: int) -> float:
    """Multiply-adds of SwinIR as published (arXiv:2108.10257), 6 groups of 6 layers of width 180."""
    dim, window, groups, layers = 180, 8, 6, 6
    projections = (4 + 2 * 2) * dim**2  # query, key, value, output and the feed-forward
    attention = 2 * window**2 * dim
    convolutions = (groups + 1) * 9 * dim**2 + 2 * 9 * 3 * dim
    return float(side**2 * (groups * layers * (projections + attention) + convolutions))


CLAIMS = (
    smaller(
        "Multiply-adds at 512×512 against SwinIR, whose quality is not compared.",
        paper="up to 150 times fewer at equal quality",
        ours=lambda: count_macs(Serpent(), (1, 3, 512, 512)),
        theirs=lambda: _swinir_macs(512),
        at_least=150,
        beyond="up to 150 times fewer multiply-adds",
    ),
    grows(
        "A block's time grows linearly in pixels, 128 to 768 a side.",
        paper="linear",
        cost=_time,
        sizes=SIDES,
        of=_pixels,
        rounds=3,
        clause=1,
    ),
    grows(
        "A block's peak memory, above that of a map of 8×8, grows linearly in pixels, 128 to 768 a side.",
        paper="linear",
        cost=_memory,
        sizes=SIDES,
        of=_pixels,
        clause=1,
    ),
    deblurring.better(
        serpent_small,
        "After minutes of training, a small Serpent deblurs photographs better than a U of convolutions with as "
        "many multiply-adds.",
        than=small_convolutions,
        steps=600,
        paper="on par with the best, trained for days",
        clause=2,
    ),
)
