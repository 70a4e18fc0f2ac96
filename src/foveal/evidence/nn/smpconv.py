"""Evidence for SMPConv: the formula, the time to draw a kernel, and pixel sequences beside kernels of an MLP.

The rival is the kernel generator of the networks that the paper compares itself with (FlexConv, CCNN): a MAGNet of
three products, from coordinates to a value for each channel. Timed, it has the 32 hidden channels of those networks;
trained, so many that both networks have equally many parameters. Both take their place in the same
network, with causal kernels as long as the sequence (see `foveal.evidence.tasks.pixel_sequences`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.tasks.pixel_sequences import LENGTH, NEEDS, SequenceNet, accuracy
from foveal.measure.cost import count_parameters
from foveal.nn.coordinate_kernels import MAGNet, grid, sampled, unit_energy_
from foveal.nn.global_conv import direct_conv, global_conv
from foveal.nn.smpconv import SMPConv, draw_kernel, draw_kernel_reference, to_conv
from foveal.record import bound, equal, faster, kept

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, DIM, POINTS, HIDDEN = 500, 32, 30, 13
OMEGA = 10.0  # of the rival's waves: up to some 60 periods over the kernel's half


class MLPConv(nn.Module):
    """The rival: a causal depthwise convolution whose kernel a MAGNet generates, (B, C, L) to the same.

    Args:
        dim: C.
        length: taps of the kernel.
    """

    def __init__(self, dim: int, length: int = LENGTH) -> None:
        super().__init__()
        self.network = MAGNet(1, dim, hidden=HIDDEN, omega_0=OMEGA, causal=True)
        unit_energy_(self.network, sampled(self.network, [length]))
        self.length, self.bias = length, nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return global_conv(x, sampled(self.network, [self.length]), causal=True) + self.bias[:, None]


def _points(dim: int) -> SMPConv:
    return SMPConv(dim, (LENGTH,), num_points=POINTS, radius=0.05, spread=0.5, small_kernel_size=5, causal=True)


OURS, RIVAL = partial(SequenceNet, _points, DIM), partial(SequenceNet, MLPConv, DIM)


def _gain(seed: int) -> float:
    return accuracy(OURS, steps=STEPS, seed=seed) - accuracy(RIVAL, steps=STEPS, seed=seed)


def _random(draw: Callable[..., Tensor], *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A kernel of 40 random points, which all taps have some of in reach."""
    generator = torch.Generator().manual_seed(0)
    places = 2 * torch.rand(40, len(sizes), generator=generator) - 1
    radii, weights = 0.2 + torch.rand(40, generator=generator), torch.randn(5, 40, generator=generator)
    return draw(places.to(dtype), radii.to(dtype), weights.to(dtype), sizes)


def _drawn(*sizes: int) -> Callable[[], Any]:
    """Drawing the kernels of 64 channels from 30 points."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = SMPConv(64, sizes, num_points=POINTS, causal=len(sizes) == 1)

    def run() -> Tensor:
        with torch.inference_mode():
            return layer.kernel()

    return run


def _generated(*sizes: int) -> Callable[[], Any]:
    """Generating as many by the MLP; its coordinates are there already."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MAGNet(len(sizes), 64)
    places = grid(sizes)

    def run() -> Tensor:
        with torch.inference_mode():
            return network(places).movedim(-1, 0)

    return run


@torch.no_grad()
def _layer(*, branches: bool) -> Tensor:
    """A layer with a small kernel, and the sum of two convolutions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = SMPConv(4, (9, 9), small_kernel_size=5, radius=0.6, spread=0.5, bias=False)
        x = torch.randn(2, 4, 11, 7)
    if not branches or layer.small is None:
        out: Tensor = to_conv(layer)(x)
        return out
    large = draw_kernel(layer.places, layer.radii, layer.weights, layer.kernel_size)
    return direct_conv(x, large) + direct_conv(x, layer.small)


CLAIMS = (
    equal(
        "Kernels of a picture are the formula, evaluated tap by tap in double precision.",
        ours=lambda: _random(draw_kernel, 15, 21).double(),
        theirs=lambda: _random(draw_kernel_reference, 15, 21, dtype=torch.float64),
        tolerance=1e-6,
        clause=1,
    ),
    equal(
        "Those of a sequence too.",
        ours=lambda: _random(draw_kernel, 200).double(),
        theirs=lambda: _random(draw_kernel_reference, 200, dtype=torch.float64),
        tolerance=1e-6,
        clause=1,
    ),
    faster(
        "Drawing 64 kernels of 784 taps takes at most a third of the time of an MLP that generates as many.",
        paper="kernels without a neural network",
        ours=lambda: _drawn(784),
        theirs=lambda: _generated(784),
        at_least=3.0,
        clause=2,
    ),
    faster(
        "So does drawing 64 of 33×33 taps.",
        paper="kernels without a neural network",
        ours=lambda: _drawn(33, 33),
        theirs=lambda: _generated(33, 33),
        at_least=3.0,
        clause=2,
    ),
    kept(
        "On digits read pixel by pixel it is no worse than its twin with kernels of an MLP.",
        paper="99.75 % on sequences of 784 pixels",
        quality=_gain,
        at_least=0.0,
        unit="points",
        data=f"MNIST at 14×14 as sequences of 196, {STEPS} steps of 64, 10,000 test digits",
        needs=NEEDS,
        clause=3,
    ),
    bound(
        "Both networks have equally many parameters, to 5 %.",
        paper="371 K",
        value=lambda: count_parameters(OURS()) / count_parameters(RIVAL()),
        at_least=0.95,
        at_most=1.05,
        clause=3,
    ),
    equal(
        "Large and small kernel are one convolution.",
        ours=lambda: _layer(branches=False),
        theirs=lambda: _layer(branches=True),
        beyond="used beside a small-kernel branch",
    ),
)
