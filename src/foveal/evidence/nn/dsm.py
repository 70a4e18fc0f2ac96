"""Evidence for DSM: the identity, its time beside attention's, and CIFAR-10 beside static weights."""

from __future__ import annotations

from functools import partial

import timm.layers
import torch
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.zoo import MixerNet
from foveal.evidence.timing import call, seconds
from foveal.measure.cost import count_parameters
from foveal.nn.dsm import DynamicSpectrumMixer, dct, idct, matrix_spectrum_mix, spectrum_mix
from foveal.record import bound, equal, grows

DIM, HEADS = 64, 2
SIDES = (14, 28, 56, 112)
WIDTH, STEPS = 32, 500


def _drawn(*sides: int) -> Tensor:
    return torch.randn(2, 5, *sides, generator=torch.Generator().manual_seed(0))


def _at_unit(*sides: int) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        layer = DynamicSpectrumMixer(5)
        nn.init.ones_(layer.spectra)
        return layer(_drawn(*sides))


def _tokens(side: int) -> float:
    return float(side**2)


def _time(side: int) -> float:
    return seconds(call(partial(DynamicSpectrumMixer, DIM), 1, DIM, side, side))


def _attention_time(side: int) -> float:
    return seconds(call(partial(timm.layers.Attention, DIM, HEADS), 1, side**2, DIM))


def _dynamic(dim: int) -> nn.Module:
    return DynamicSpectrumMixer(dim, by_matrices=True)


def _static(dim: int) -> nn.Module:
    return DynamicSpectrumMixer(dim, num_spectra=1, by_matrices=True)


DYNAMIC = partial(MixerNet, _dynamic, WIDTH)
STATIC = partial(MixerNet, _static, WIDTH)
EQUAL = partial(MixerNet, _static, WIDTH, ratio=4.44)

CLAIMS = (
    equal(
        "With spectra of ones it gives back the picture, whatever they are selected by.",
        ours=lambda: _at_unit(7, 16),
        theirs=lambda: _drawn(7, 16),
        clause=1,
    ),
    equal(
        "The same for 112×112.",
        ours=lambda: _at_unit(112, 112),
        theirs=lambda: _drawn(112, 112),
        clause=1,
    ),
    equal(
        "It is the product with the matrices of the cosine transform.",
        ours=lambda: spectrum_mix(_drawn(13, 10), _drawn(13, 10).flip(0)),
        theirs=lambda: matrix_spectrum_mix(_drawn(13, 10), _drawn(13, 10).flip(0)),
        beyond="the transform computes the formula",
    ),
    equal(
        "The cosine transform keeps products, and its inverse undoes it.",
        ours=lambda: torch.cat([dct(_drawn(9, 14)) @ dct(_drawn(9, 14)).mT, idct(dct(_drawn(9, 9)))], -1),
        theirs=lambda: torch.cat([_drawn(9, 14) @ _drawn(9, 14).mT, _drawn(9, 9)], -1),
        beyond="DCT pair is orthonormal",
    ),
    grows(
        "Its time grows under the 1.3th power of the pixels, 14×14 to 112×112.",
        paper="log-linear in tokens",
        cost=_time,
        sizes=SIDES,
        of=_tokens,
        exponent=(0.0, 1.3),
        rounds=3,
        clause=2,
    ),
    grows(
        "That of fused attention (timm's) grows faster.",
        paper="quadratic",
        cost=_attention_time,
        sizes=SIDES,
        of=_tokens,
        exponent=(1.3, float("inf")),
        rounds=3,
        clause=2,
    ),
    cifar10.better(
        DYNAMIC,
        "After the same steps dynamic weights are above static ones.",
        than=STATIC,
        steps=STEPS,
        paper="content-adaptive",
        clause=3,
    ),
    cifar10.better(
        DYNAMIC,
        "They are above static ones whose perceptron has as many parameters more.",
        than=EQUAL,
        steps=STEPS,
        paper="",
        beyond="the gain is not that of more parameters",
    ),
    bound(
        "That network has the same number of parameters to 1 %.",
        paper="",
        value=lambda: count_parameters(DYNAMIC()) / count_parameters(EQUAL()),
        at_least=0.99,
        at_most=1.01,
        beyond="the gain is not that of more parameters",
    ),
)
