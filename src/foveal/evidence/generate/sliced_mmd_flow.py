"""Evidence for sliced MMD flow: gradients beside all pairs, the error of slicing, and particles that become digits."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import TYPE_CHECKING

import torch

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import mnist
from foveal.generate.sliced_mmd_flow import (
    directions,
    energy_distance,
    flow,
    gradient,
    gradient_1d,
    gradient_1d_reference,
    mmd_1d,
    sliced_gradient,
    slicing_factor,
)
from foveal.record import equal, faster, grows, kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

DIM, DRAWS = 50, 20
ANGLES = 5000
LARGE = 20_000
PARTICLES, SLICES, STEPS, EVERY = 500, 300, 60, 10


def normal(*shape: int, seed: int) -> Tensor:
    """Normal numbers of one seed.

    Args:
        *shape: any.
        seed: their seed.

    Returns:
        float64.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _lines(function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Gradients of distinct numbers and of numbers of which many are equal."""
    x, y = normal(3, 701, seed=0), normal(3, 499, seed=1)
    return torch.cat([function(x, y), function((9 * x).round(), (9 * y).round())], 1) * x.shape[1]


def slicing_error(count: int) -> float:
    """How far the gradient along random directions is from that of all pairs.

    Args:
        count: P.

    Returns:
        Root mean square over draws, over the length of the gradient.
    """
    x, y = normal(64, DIM, seed=0), 0.3 + normal(48, DIM, seed=1)
    wanted, generator, total = gradient(x, y), torch.Generator().manual_seed(2), 0.0
    for _ in range(DRAWS):
        found = sliced_gradient(x, y, directions(count, DIM, generator=generator).double())
        total += float((found - wanted).square().sum() / wanted.square().sum()) / DRAWS
    return total**0.5


def _distances(*, sliced: bool) -> Tensor:
    """The energy distance of points in a plane, or that along directions at equal angles."""
    x, y = normal(40, 2, seed=0), 0.5 + normal(30, 2, seed=1)
    if not sliced:
        return torch.tensor(energy_distance(x, y), dtype=torch.float64)
    angles = torch.arange(ANGLES, dtype=torch.float64) * (torch.pi / ANGLES)
    along = torch.stack([angles.cos(), angles.sin()], 1)
    return 2 * slicing_factor(2) * mmd_1d(along @ x.mT, along @ y.mT).mean()


@cached(maxsize=4)
def distances(seed: int) -> tuple[float, ...]:
    """Energy distances of particles from held-out digits, on their way from noise to other digits.

    Args:
        seed: seed of the noise, of the directions and of which digits are taken.

    Returns:
        That of as many training digits, then those of the particles: before, and after every tenth step.
    """
    parts = []
    for part in ("train", "test"):
        shown = torch.from_numpy(mnist.digits(part)[0]).flatten(1).float() / 255
        order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))
        parts.append(shown[order[:PARTICLES]])
    train, held_out = parts
    particles = torch.rand(train.shape, generator=torch.Generator().manual_seed(seed))
    going = flow(particles, train, slices=8 if rehearsing() else SLICES, seed=seed)
    stops = [particles, *islice(going, EVERY - 1, STEPS, EVERY)]
    return tuple(energy_distance(at, held_out) for at in [train, *stops])


def least_drop(seed: int) -> float:
    """Smallest fall of the energy distance in ten steps.

    Args:
        seed: see `distances`.

    Returns:
        Above 0 if it falls monotonically.
    """
    return min(before - after for before, after in pairwise(distances(seed)[1:]))


def share(seed: int) -> float:
    """How much of the way from noise to digits the particles go, in energy distance from held-out ones.

    Args:
        seed: see `distances`.

    Returns:
        Percent; 100 for particles as near to held-out digits as training digits are.
    """
    floor, start, *_, last = distances(seed)
    return 100 * (start - last) / (start - floor)


def _at_scale(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        x, y = normal(1, LARGE, seed=0).float(), normal(1, LARGE, seed=1).float()
        return lambda: function(x, y)

    return prepare


CLAIMS = (
    equal(
        "Sorting gives the gradient of all pairs, also where numbers are equal.",
        ours=lambda: _lines(gradient_1d),
        theirs=lambda: _lines(gradient_1d_reference),
        tolerance=1e-10,
        clause=1,
    ),
    faster(
        f"Sorting takes a twentieth of the time for {LARGE:,} particles and as many samples.",
        paper="O((N + M) log(N + M)) instead of O(N² + NM)",
        ours=_at_scale(gradient_1d),
        theirs=_at_scale(gradient_1d_reference),
        at_least=20.0,
        clause=2,
    ),
    grows(
        "The error of slicing falls as the root of the number of directions.",
        paper="O(√(d/P))",
        cost=slicing_error,
        sizes=(10, 30, 100, 300, 1000),
        exponent=(-0.6, -0.4),
        clause=3,
    ),
    kept(
        f"Particles come nearer to held-out digits by 0.002 in each of {STEPS // EVERY} times {EVERY} steps.",
        paper="particles become digits",
        quality=least_drop,
        at_least=0.002,
        unit="of the energy distance",
        data=f"{PARTICLES} digits of MNIST to flow to and {PARTICLES} held out, from uniform noise",
        needs=mnist.NEEDS,
        clause=4,
    ),
    kept(
        f"After {STEPS} steps at least 98 % of the energy distance is gone that digits do not have themselves.",
        paper="particles become digits",
        quality=share,
        at_least=98.0,
        unit="%",
        data=f"{PARTICLES} digits of MNIST to flow to and {PARTICLES} held out, from uniform noise",
        needs=mnist.NEEDS,
        beyond="the flow ends at the data",
    ),
    equal(
        f"The sliced distance is the energy distance, in a plane along {ANGLES:,} directions.",
        paper="equal for Riesz kernels",
        ours=lambda: _distances(sliced=True),
        theirs=lambda: _distances(sliced=False),
        tolerance=1e-5,
        beyond="the MMD of Riesz kernels equals its sliced version",
    ),
)
