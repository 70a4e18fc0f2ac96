"""Evidence for FFTNet: the identity, its time beside fused attention's, and CIFAR-10 beside fixed Fourier mixing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.zoo import MixerNet
from foveal.evidence.timing import call, seconds
from foveal.measure.cost import count_parameters
from foveal.measure.paired import interleaved, ratio
from foveal.nn.fftnet import SpectralFilter, spectral_filter, spectral_filter_reference
from foveal.record import bound, equal, faster, grows

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, HEADS = 192, 3  # of DeiT-Ti
COUNTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # of tokens, among which the crossover is looked for
WIDTH, STEPS = 32, 500


class _Attention(nn.Module):
    """Fused attention between tokens, without the projections around it: (B, N, C) to the same."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (HEADS, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


class _FixedMixing(nn.Module):
    """FNet's mixing: the real part of the transform along tokens and channels, here unitary."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho").real


class _OnTokens(nn.Module):
    """A mixer of tokens for pictures, row by row."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def _learnt(dim: int) -> nn.Module:
    return _OnTokens(SpectralFilter(dim, 256 if dim == WIDTH else 64))


def _fixed(dim: int) -> nn.Module:  # noqa: ARG001 - a builder takes the channels
    return _OnTokens(_FixedMixing())


def _drawn(count: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    half = count // 2 + 1
    x, gain, bias = (torch.randn(shape, generator=draw) for shape in ((2, count, 12), (2, 3, half), (3, half)))
    return {"x": x, "gain": gain, "bias": bias / 4}


def _at_unit(count: int) -> Tensor:
    half = count // 2 + 1
    return spectral_filter(_drawn(count)["x"], torch.ones(1, 3, half), torch.zeros(3, half))


def _layer_at_unit() -> Tensor:
    layer = SpectralFilter(12, 197, num_heads=3)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        return layer(_drawn(197)["x"])


def _energy(*, ours: bool) -> Tensor:
    """Energy of tokens, and of what a filter of gains ±1 makes of them."""
    given = _drawn(63)
    if not ours:
        return given["x"].square().sum((1, 2))
    signs = given["gain"].sign()
    return spectral_filter(given["x"], signs, torch.zeros_like(given["bias"])).square().sum((1, 2))


def _filter(count: int) -> nn.Module:
    return SpectralFilter(DIM, count, num_heads=HEADS)


def _attention(count: int) -> nn.Module:  # noqa: ARG001 - a builder takes the number of tokens
    return _Attention()


def _time(count: int, build: Callable[[int], nn.Module]) -> float:
    return seconds(call(partial(build, count), 1, count, DIM))


def _crossover() -> float:
    """Smallest number of tokens from which on the filter takes less time than fused attention; infinite if none."""
    found = float("inf")
    for count in reversed(COUNTS):
        runs: list[Callable[[], Any]] = [
            call(partial(build, count), 1, count, DIM)() for build in (_filter, _attention)
        ]
        ours, theirs = interleaved(runs, most=4.0)
        if not ratio(ours, theirs).faster:
            break
        found = float(count)
    return found


LEARNT = partial(MixerNet, _learnt, WIDTH)
FIXED = partial(MixerNet, _fixed, WIDTH, ratio=5.1)

CLAIMS = (
    equal(
        "With unit gain and no bias it gives back its tokens, an odd number of them.",
        ours=lambda: _at_unit(197),
        theirs=lambda: _drawn(197)["x"],
        clause=1,
    ),
    equal(
        "The same for an even number.",
        ours=lambda: _at_unit(64),
        theirs=lambda: _drawn(64)["x"],
        clause=1,
    ),
    equal(
        "The layer starts there once its bias is 0.",
        ours=_layer_at_unit,
        theirs=lambda: _drawn(197)["x"],
        clause=1,
    ),
    equal(
        "It is the filter written out as a matrix of all frequencies, and no imaginary part is lost.",
        ours=lambda: spectral_filter(**_drawn(63)),
        theirs=lambda: spectral_filter_reference(**_drawn(63)),
        beyond="the transform computes the formula",
    ),
    equal(
        "Gains of ±1 keep the energy of the tokens.",
        ours=partial(_energy, ours=True),
        theirs=partial(_energy, ours=False),
        beyond="energy preservation (Parseval)",
    ),
    bound(
        "The number of tokens from which on the layer takes less time than fused attention between 192 channels.",
        paper="",
        value=_crossover,
        at_most=2048.0,
        unit="tokens",
        clause=2,
    ),
    faster(
        "At 4,096 tokens it takes less time than fused attention.",
        paper="O(n log n) against O(n²)",
        ours=call(partial(_filter, 4096), 1, 4096, DIM),
        theirs=call(_Attention, 1, 4096, DIM),
        clause=2,
    ),
    grows(
        "Its time grows almost linearly, 1,024 to 16,384 tokens.",
        paper="O(n log n)",
        cost=partial(_time, build=_filter),
        sizes=(1024, 2048, 4096, 8192, 16384),
        exponent=(0.8, 1.3),
        rounds=3,
        clause=2,
    ),
    grows(
        "That of fused attention grows quadratically, 1,024 to 8,192 tokens.",
        paper="O(n²)",
        cost=partial(_time, build=_attention),
        sizes=(1024, 2048, 4096, 8192),
        exponent=(1.7, float("inf")),
        rounds=3,
        clause=2,
    ),
    cifar10.better(
        LEARNT,
        "After the same steps the learnt filter is above fixed Fourier mixing.",
        than=FIXED,
        steps=STEPS,
        paper="superior",
        clause=3,
    ),
    bound(
        "The two networks have the same number of parameters to 1 %.",
        paper="",
        value=lambda: count_parameters(LEARNT()) / count_parameters(FIXED()),
        at_least=0.99,
        at_most=1.01,
        clause=3,
    ),
)
