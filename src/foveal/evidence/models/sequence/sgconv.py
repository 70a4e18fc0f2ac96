"""Evidence for SGConv: FFT against the direct sum, weights against length, accuracy and time against S4D."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
from torch import Tensor

from foveal.evidence.tasks import digits
from foveal.evidence.timing import step
from foveal.models.sequence.s4d import s4d_classifier
from foveal.models.sequence.sgconv import SGConv, sgconv_classifier
from foveal.ops.long_conv import long_conv
from foveal.record import bound, equal, faster

small = partial(sgconv_classifier, in_channels=1, dim=32, depth=2, max_length=256, kernel_size=16, prenorm=True)
s4d = partial(s4d_classifier, in_channels=1, dim=32, depth=2, states=32, prenorm=True)


def _weights(length: int) -> int:
    """Number of parameters of one channel's kernel, d = 64."""
    return sum(w.numel() for w in SGConv(1, max_length=length, kernel_size=64).weights)


def _growth() -> Tensor:
    counts = [_weights(1024 * 2**i) for i in range(7)]
    return torch.tensor(counts[1:]) - torch.tensor(counts[:-1])


def _applied(backend: str) -> Tensor:
    torch.manual_seed(0)
    layer, x = SGConv(4, max_length=1500, heads=2).double(), torch.randn(2, 4, 1500, dtype=torch.float64)
    with torch.inference_mode():
        return long_conv(x, layer.kernel(), layer.skip, backend=backend)


def _largest_ratio() -> float:
    """Largest ratio between the norms per position of consecutive scales of a new kernel, mean over 256 channels."""
    torch.manual_seed(0)
    layer = SGConv(256, max_length=4096)
    parts = layer.kernel().detach()[0].split([64, *(64 * 2 ** max(0, i - 1) for i in range(1, 7))], 1)
    norms = [float(part.norm(dim=1).mean()) / math.sqrt(part.shape[1]) for part in parts]
    return max(after / before for before, after in itertools.pairwise(norms))


CLAIMS = (
    equal(
        "Each doubling of the length from 1K to 64K adds d = 64 weights a channel.",
        paper="O(log L)",
        ours=_growth,
        theirs=lambda: torch.full((6,), 64),
        tolerance=0,
        clause=2,
    ),
    equal(
        "Applied by FFT it equals the direct causal sum.",
        ours=partial(_applied, "eager"),
        theirs=partial(_applied, "reference"),
        tolerance=1e-10,
        clause=1,
    ),
    bound(
        "Each scale's weights are smaller than those of the scale before it, a place: the largest of the ratios.",
        paper="decays by ½",
        value=_largest_ratio,
        at_most=0.6,
        beyond="near weights are larger",
    ),
    digits.better(
        small,
        "On sequential digits it is at most a point worse than S4D after as many steps.",
        than=s4d,
        steps=600,
        paper="87.17% against 86.09% of S4 on average over LRA",
        by=-1.0,
        clause=3,
    ),
    faster(
        "A training step of that network takes less time than S4D's.",
        paper="1.2 to 2.1 times faster than S4",
        ours=step(small, 32, 1, 16, 16),
        theirs=step(s4d, 32, 1, 16, 16),
        clause=3,
    ),
)
