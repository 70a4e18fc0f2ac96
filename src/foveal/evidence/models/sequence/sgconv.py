"""Evidence of foveal.models.sequence.sgconv."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.recurrent import training_step
from foveal.models.sequence.sgconv import SGConv, sgconv_classifier
from foveal.ops.long_conv import long_conv
from foveal.record import equal, faster, kept, smaller


def _weights(length: int, size: int = 64) -> int:
    """Parameters of one channel's kernel."""
    return sum(w.numel() for w in SGConv(1, max_length=length, kernel_size=size).weights)


def _growth() -> Tensor:
    counts = [_weights(1024 * 2**i) for i in range(7)]
    return torch.tensor(counts[1:]) - torch.tensor(counts[:-1])


def _applied(backend: str) -> Tensor:
    torch.manual_seed(0)
    layer, x = SGConv(4, max_length=1500, heads=2).double(), torch.randn(2, 4, 1500, dtype=torch.float64)
    with torch.inference_mode():
        return long_conv(x, layer.kernel(), layer.skip, backend=backend)


def _norms() -> list[float]:
    """Norm of what each scale adds to the kernel of a new layer, mean over 256 channels, a place."""
    torch.manual_seed(0)
    layer = SGConv(256, max_length=4096)
    parts = layer.kernel().detach()[0].split([64, *(64 * 2 ** max(0, i - 1) for i in range(1, 7))], 1)
    return [float(part.norm(dim=1).mean()) / math.sqrt(part.shape[1]) for part in parts]


def _small() -> nn.Module:
    return sgconv_classifier(in_channels=1, dim=32, depth=2, max_length=256, kernel_size=16, prenorm=True)


@lru_cache(maxsize=4)
def _digits(seed: int) -> float:
    """Accuracy on the digits' test pictures, percent."""
    from foveal.evidence.tasks.cifar10 import accuracy, train_classifier
    from foveal.evidence.tasks.digits import digits

    model = train_classifier(_small, steps=800, seed=seed, data=digits("train"), flip=False, lr=1e-2, weight_decay=0.01)
    return accuracy(model, digits("test"))


def _against_s4d(seed: int) -> float:
    from foveal.models.sequence import s4d

    return _digits(seed) - s4d._digits("lin", seed)


def _s4d() -> nn.Module:
    from foveal.models.sequence.s4d import s4d_classifier

    return s4d_classifier(in_channels=1, dim=32, depth=2, states=32, prenorm=True)


CLAIMS = (
    equal(
        "Each doubling of the length from 1K to 64K adds d = 64 weights a channel.",
        paper="O(log L)",
        ours=_growth,
        theirs=lambda: torch.full((6,), 64),
        tolerance=0,
    ),
    equal(
        "Applied by FFT it equals the direct causal sum.",
        ours=lambda: _applied("eager"),
        theirs=lambda: _applied("reference"),
        tolerance=1e-10,
    ),
    smaller(
        "Each scale's weights are smaller than those of the scale before it, a place: the largest of the ratios.",
        paper="decays by ½",
        ours=lambda: max(b / a for a, b in itertools.pairwise(_norms())),
        theirs=lambda: 1.0,
        at_least=1.1,
    ),
    kept(
        "On sequential digits it is at most a point worse than S4D after as many steps.",
        paper="87.17% against 86.09% of S4 on average over LRA",
        quality=_against_s4d,
        at_least=-1.0,
        unit="points",
        data="1,000 digits drawn in 17 fonts, turned, slanted, scaled and noisy, 16×16, read as 256 places",
        needs=("minutes",),
    ),
    faster(
        "A training step of that network takes less time than S4D's.",
        paper="1.2 to 2.1 times faster than S4",
        ours=lambda: training_step(_small, 32, 1, 16, 16),
        theirs=lambda: training_step(_s4d, 32, 1, 16, 16),
    ),
)
