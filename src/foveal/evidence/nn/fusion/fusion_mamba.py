"""Evidence for Fusion-Mamba: the swap undone, its growth beside cross-attention's, and two views of digits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.fusion import Concatenation, CrossAttention
from foveal.evidence.tasks import two_views
from foveal.evidence.timing import call, seconds
from foveal.nn.fusion.fusion_mamba import FusionMamba, swap_channels
from foveal.record import equal, grows

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, SHIFT = 200, 3
SIDES = (32, 64, 128)
small = partial(FusionMamba, depth=1, state=4)  # for maps of 6×6 places


def _streams() -> Tensor:
    return torch.randn(2, 2, 32, 7, 9, generator=torch.Generator().manual_seed(0))


def _swapped_twice() -> Tensor:
    return torch.stack(swap_channels(*swap_channels(*_streams())))


def _seconds(build: Callable[[], nn.Module], side: int, *, repeats: int) -> float:
    def both() -> Callable[[Tensor], Any]:
        block = build().eval()
        return lambda x: block(x, x)

    return seconds(call(both, 1, 32, side, side), repeats=repeats)


CLAIMS = (
    equal(
        "Swapped twice, both streams are what they were, bit by bit.",
        ours=_swapped_twice,
        theirs=_streams,
        tolerance=0.0,
        clause=1,
    ),
    grows(
        "From 32×32 to 128×128 tokens the time of a block grows by at most 1.2 times 16.",
        paper="linear in the tokens",
        cost=partial(_seconds, partial(FusionMamba, 32, depth=1), repeats=5),
        sizes=SIDES,
        of=lambda side: side**2,
        exponent=(0.5, 1.0657),  # 16^1.0657 = 1.2 · 16
        rounds=5,
        clause=2,
    ),
    grows(
        "Over the same sizes the time of cross-attention grows with the square of the tokens.",
        paper="quadratic",
        cost=partial(_seconds, partial(CrossAttention, 32), repeats=1),
        sizes=SIDES,
        of=lambda side: side**2,
        exponent=(1.8, 2.2),
        clause=3,
    ),
    two_views.above_single(
        small,
        "Two views of digits: more accurate with both than with the better one alone.",
        steps=STEPS,
        paper="above single modalities",
        clause=4,
    ),
    two_views.better(
        small,
        "On views moved against each other it is more accurate than concatenation in the same network.",
        than=Concatenation,
        steps=STEPS,
        paper="+5.9 mAP over the previous best on M3FD",
        shift=SHIFT,
        beyond="above concatenation on misaligned pairs",
    ),
)
