"""Waves: the field of a 2-D wave equation four time steps ahead, by finite differences; relative error in percent.

Fields are solved, so no data is needed: 60 waves for training, different for each seed, and 20 for testing, each with
12 pairs. A wave starts as one or two bumps at rest on a square of 32×32 nodes with fixed borders and two speeds, scaled
to a root mean square of 1. The floor, the present field as the prediction, is about 70 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["NEEDS", "advance", "error", "fields", "floor", "solve", "trained"]

NEEDS = ("minutes",)
TEST = 1000  # seed of the test waves
TRAIN_WAVES, TEST_WAVES, PAIRS, AHEAD = 60, 20, 12, 4


def advance(now: Tensor, before: Tensor, ratio: Tensor) -> Tensor:
    """One explicit step of the wave equation, second order in time and space, with borders fixed at 0.

    u(t + Δt) = 2 u(t) − u(t − Δt) + (c Δt / h)² · (sum of the four neighbours − 4 u(t))

    Args:
        now: field u(t) at the inner nodes, (n, S, S).
        before: field u(t − Δt), (n, S, S).
        ratio: c Δt / h at the nodes, at most 1/√2 for stability, (n, S, S).

    Returns:
        Field u(t + Δt), (n, S, S).
    """
    around = F.pad(now, (1, 1, 1, 1))
    laplacian = around[:, 2:, 1:-1] + around[:, :-2, 1:-1] + around[:, 1:-1, 2:] + around[:, 1:-1, :-2] - 4 * now
    return 2 * now - before + ratio.square() * laplacian


def solve(start: Tensor, ratio: Tensor, steps: int) -> Tensor:
    """Fields of a wave that starts at rest.

    Args:
        start: first field, (n, S, S).
        ratio: c Δt / h at the nodes, at most 1/√2, (n, S, S).
        steps: number of time steps, T.

    Returns:
        Fields, (n, T + 1, S, S).
    """
    # At rest u(−Δt) = u(Δt), so the first step is half an explicit one.
    found = [start, (start + advance(start, torch.zeros_like(start), ratio) - start) / 2]
    while len(found) <= steps:
        found.append(advance(found[-1], found[-2], ratio))
    return torch.stack(found[: steps + 1], 1)


@cached(maxsize=5)
def fields(waves: int, *, seed: int, side: int = 32) -> tuple[Tensor, Tensor]:
    """Pairs of present and future fields.

    Args:
        waves: number of waves; a tenth of it in a rehearsal.
        seed: seed of the waves.
        side: side S of the square, in nodes.

    Returns:
        Inputs, (n, 3, S, S): the field, the one of `AHEAD` steps ago, and c Δt / h; targets, (n, 1, S, S): the field
        `AHEAD` steps ahead.
    """
    waves = waves // 10 if rehearsing() else waves
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(waves, 1, 1, generator=draw) * (high - low) + low

    place = (torch.arange(side) + 0.5) / side
    down, right = place[:, None].expand(1, side, side), place.expand(1, side, side)
    start = torch.zeros(waves, side, side)
    for strength in (torch.ones(waves, 1, 1), uniform(-1, 1)):
        distance = (down - uniform(0.2, 0.8)).square() + (right - uniform(0.2, 0.8)).square()
        start = start + strength * torch.exp(-distance / (2 * uniform(0.05, 0.1).square()))
    start = start / start.square().mean((1, 2), keepdim=True).sqrt()
    angle = uniform(0, 6.3)
    beyond = (down - 0.5) * torch.sin(angle) + (right - 0.5) * torch.cos(angle) > uniform(-0.2, 0.2)
    ratio = torch.where(beyond, uniform(0.3, 0.6), uniform(0.3, 0.6))
    times = [AHEAD * (1 + 2 * pair) for pair in range(PAIRS)]
    found = solve(start, ratio, times[-1] + AHEAD)
    inputs = [torch.stack((found[:, t], found[:, t - AHEAD], ratio), 1) for t in times]
    return torch.cat(inputs), torch.cat([found[:, t + AHEAD, None] for t in times])


@cached(maxsize=8)
def trained(build: Callable[[], nn.Module], *, steps: int, seed: int, waves: int = TRAIN_WAVES) -> nn.Module:
    """Build a network under a seed and train it with the squared error; claims about one network share it.

    Args:
        build: builder of the network, (B, 3, S, S) to (B, 1, S, S).
        steps: number of steps of 16 pairs.
        seed: seed of weights, waves and batches.
        waves: number of waves.

    Returns:
        The network in eval mode; do not modify it.
    """
    inputs, targets = fields(waves, seed=seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from torch's seeded generator
        rows = torch.randint(len(targets), (16,))
        return inputs[rows], targets[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return (model(pair[0]) - pair[1]).square().mean() / targets.square().mean()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(build(), batches, loss, steps=steps, lr=3e-3, clip=1.0)


def error(model: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor] | None = None) -> float:
    """Relative error of predictions.

    Args:
        model: network, (B, 3, S, S) to (B, 1, S, S).
        data: inputs and targets; None takes the test waves.

    Returns:
        Root mean squared error over root mean square of the targets, percent.
    """
    inputs, targets = fields(TEST_WAVES, seed=TEST) if data is None else data
    with torch.inference_mode():
        found = torch.cat([model(x) for x in inputs.split(40)])
    return 100 * float(((found - targets).square().mean() / targets.square().mean()).sqrt())


def floor() -> float:
    """Error of the present field as the prediction.

    Returns:
        Relative error, percent.
    """
    return error(lambda x: x[:, :1])
