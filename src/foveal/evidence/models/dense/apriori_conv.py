"""Evidence for APriori-Conv: the same U-Net with dense kernels, and kernels that one-way filters give exactly."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.tasks import waves
from foveal.measure.cost import count_parameters
from foveal.models.dense.apriori_conv import APrioriUNet, OneWayConv2d
from foveal.record import equal, kept, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, FEW = 400, 20  # training steps; waves of the small training set
separable, dense = APrioriUNet, partial(APrioriUNet, rank=None)
DATA = f"{STEPS} steps of 16 pairs of {waves.TRAIN_WAVES} waves on 32×32 nodes; {waves.TEST_WAVES} other waves; paired"


def _error(build: Callable[[], nn.Module], seed: int) -> float:
    return waves.error(waves.trained(build, steps=STEPS, seed=seed))


def _gap(build: Callable[[], nn.Module], seed: int) -> float:
    """Error on new waves over error on the few that it was trained on."""
    model = waves.trained(build, steps=STEPS, seed=seed, waves=FEW)
    return waves.error(model) / waves.error(model, waves.fields(FEW, seed=seed))


def _layer(*, rank: int, one_way: bool) -> Tensor:
    """Output of a dense convolution whose kernel has a rank, or of the one-way layer made from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Conv2d(5, 7, 3, padding=1).double()
        if rank < 3:
            layer.weight.data = OneWayConv2d(5, 7, rank=rank).double().kernel().detach()
        x = torch.randn(2, 5, 9, 11).double()
    with torch.no_grad():
        return OneWayConv2d.from_dense(layer, rank=rank)(x) if one_way else layer(x)


CLAIMS = (
    smaller(
        "The U-Net of one-way filters has at most half the parameters of the one with dense kernels.",
        paper="fewer parameters",
        ours=lambda: count_parameters(separable()),
        theirs=lambda: count_parameters(dense()),
        at_least=2.0,
        clause=1,
    ),
    kept(
        "Its error on new waves is within 10% of the dense one's: error of the dense network over its own.",
        paper="equivalent accuracy",
        quality=lambda seed: _error(dense, seed) / _error(separable, seed),
        at_least=1 / 1.1,
        unit="times",
        data=DATA,
        needs=waves.NEEDS,
        clause=1,
    ),
    kept(
        "It predicts waves: its error is at most half that of the present field as the prediction.",
        paper="predicts the next field",
        quality=lambda seed: waves.floor() / _error(separable, seed),
        at_least=2.0,
        unit="times",
        data=DATA,
        needs=waves.NEEDS,
        beyond="prediction",
    ),
    equal(
        "One-way filters of rank 1 equal a dense convolution whose kernel has rank 1.",
        ours=partial(_layer, rank=1, one_way=True),
        theirs=partial(_layer, rank=1, one_way=False),
        tolerance=1e-12,
        clause=2,
    ),
    equal(
        "One-way filters of rank 3 equal any dense convolution of 3×3.",
        ours=partial(_layer, rank=3, one_way=True),
        theirs=partial(_layer, rank=3, one_way=False),
        tolerance=1e-12,
        clause=2,
    ),
    kept(
        f"Trained on {FEW} waves it overfits less: error on new waves over that on its own, the dense one's minus its.",
        paper="less overfitting",
        quality=lambda seed: _gap(dense, seed) - _gap(separable, seed),
        at_least=0.0,
        unit="times",
        data=f"{STEPS} steps of 16 pairs of {FEW} waves; {waves.TEST_WAVES} other waves; paired",
        needs=waves.NEEDS,
        beyond="overfitting",
    ),
)
