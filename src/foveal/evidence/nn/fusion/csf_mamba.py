"""Evidence for CSFMamba: one scan when streams are equal, its growth beside cross-attention's, and terrain."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.fusion import CrossAttention
from foveal.evidence.tasks import terrain
from foveal.evidence.timing import call, seconds, step
from foveal.nn.fusion.csf_mamba import CrossState, CSFMamba
from foveal.ops import selective_scan
from foveal.record import equal, faster, grows

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 200
small = partial(CSFMamba, state=8)


def _equal_streams(*, crossed: bool) -> Tensor:
    """Crossed states of two equal streams with equal weights, or twice one scan, float64."""
    torch.manual_seed(0)
    scan, u = CrossState(12, state=4, dt_rank=2).double(), torch.randn(2, 12, 50, dtype=torch.float64)
    with torch.inference_mode():
        for weights in scan.parameters():
            weights[1] = weights[0]
        if crossed:
            return scan(torch.stack((u, u)))
        made, weights_in, weights_out = (scan.x_proj[0] @ u).split(scan.split, dim=1)
        delta, bias = scan.dt_proj[0] @ made, scan.dt_bias[0].flatten()
        rates = -scan.A_log[0].exp()
        return 2 * selective_scan(u, delta, rates, weights_in, weights_out, scan.D[0], None, bias, True)


def _both(build: Callable[[], nn.Module]) -> Callable[[], Callable[[Tensor], Any]]:
    def built() -> Callable[[Tensor], Any]:
        block = build().eval()
        return lambda x: block(x, x)

    return built


def _seconds(build: Callable[[], nn.Module], length: int) -> float:
    """Seconds of a block for sequences of this length, as maps 32 pixels wide."""
    return seconds(call(_both(build), 1, 32, length // 32, 32), repeats=5)


class _Twice(nn.Module):
    """A block that gets one map in both streams, for training steps."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.block = build()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.block(x, x))


CLAIMS = (
    equal(
        "Two equal streams give twice what one ordinary selective scan gives.",
        ours=partial(_equal_streams, crossed=True),
        theirs=partial(_equal_streams, crossed=False),
        tolerance=1e-10,
        clause=1,
    ),
    grows(
        "The time of a block is proportional to the length of the sequences, from 1,024 to 16,384.",
        paper="linear",
        cost=partial(_seconds, partial(CSFMamba, 32)),
        sizes=(1024, 4096, 16384),
        exponent=(0.8, 1.1),
        rounds=5,
        clause=2,
    ),
    grows(
        "Measured in the same way, cross-attention grows with the square of the length.",
        paper="quadratic",
        cost=partial(_seconds, partial(CrossAttention, 32)),
        sizes=(1024, 2048, 4096),
        exponent=(1.7, 2.2),
        rounds=3,
        beyond="cost against a Transformer",
    ),
    terrain.above_single(
        small,
        "Spectrum and height of terrain: more accurate with both than with the better one alone.",
        steps=STEPS,
        paper="above single modalities",
        clause=3,
    ),
    terrain.better(
        small,
        "It is more accurate than full cross-attention in the same network.",
        than=CrossAttention,
        steps=STEPS,
        paper="above Transformers on MUUFL and Houston2018",
        beyond="accuracy above a Transformer's",
    ),
    faster(
        "A training step on maps of 64×64 takes less time than with cross-attention.",
        paper="lower training cost than Transformers",
        ours=step(partial(_Twice, partial(CSFMamba, 32)), 1, 32, 64, 64),
        theirs=step(partial(_Twice, partial(CrossAttention, 32)), 1, 32, 64, 64),
        beyond="training cost below a Transformer's",
    ),
)
