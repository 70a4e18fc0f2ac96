"""The zoo trial: a backbone beside its rival of equal latency, trained on CIFAR-10 for equal processor minutes.

The rival comes in several widths. The one whose latency on this machine is nearest to the network's, both timed in
turn, takes part; it must be within 5 %. Each is trained for as many processor seconds as the other: its steps are the
budget over the processor seconds of one of its steps, measured before in turn. Optimiser, schedule, batches and seeds
are shared. Latencies and steps depend on the machine, so outcomes of two machines differ.

`MixerNet` is the scaffold of rows that are about one operator: everything but the mixer is equal.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import STEPS, cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.measure.paired import interleaved, ratio
from foveal.record import SEEDS, bound, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.record import Claim

__all__ = ["NEEDS", "MixerNet", "Zoo", "depthwise", "widths"]

NEEDS = cifar10.NEEDS
MINUTES = 0.75
EQUAL = 0.05  # relative difference of two latencies that are called equal
BATCH = 16  # pictures of the call whose latency is compared
ROUNDS, MEASURED = 5, 3  # measurements of each network, in turn, and steps of each measurement


class _Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)): (B, C, H, W) to the same."""

    def __init__(self, dim: int, mixer: Callable[[int], nn.Module], ratio: float) -> None:
        super().__init__()
        hidden = round(dim * ratio)
        self.norm1, self.mixer = nn.BatchNorm2d(dim), mixer(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MixerNet(nn.Module):
    """A small classifier whose blocks mix pixels by one operator: (B, 3, 32, 32) to (B, 10).

    Args:
        mixer: builder of the operator, from channels to a module (B, C, H, W) to the same.
        dim: channels of the first stage, at 16×16 pixels; the second, at 8×8, has twice as many.
        depths: blocks of the two stages.
        ratio: hidden channels of the multi-layer perceptron over the channels.
    """

    def __init__(
        self, mixer: Callable[[int], nn.Module], dim: int = 32, *, depths: tuple[int, int] = (2, 2), ratio: float = 2.0
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 2, 2)
        self.stage1 = nn.Sequential(*(_Block(dim, mixer, ratio) for _ in range(depths[0])))
        self.down = nn.Conv2d(dim, 2 * dim, 2, 2)
        self.stage2 = nn.Sequential(*(_Block(2 * dim, mixer, ratio) for _ in range(depths[1])))
        self.norm, self.head = nn.BatchNorm2d(2 * dim), nn.Linear(2 * dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: pictures, (B, 3, 32, 32).

        Returns:
            Logits, (B, 10).
        """
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x).mean((2, 3)))


def depthwise(dim: int, *, kernel_size: int = 3) -> nn.Conv2d:
    """The mixer of most twins: one kernel per channel.

    Args:
        dim: C.
        kernel_size: k, odd.

    Returns:
        Depthwise convolution, (B, C, H, W) to the same.
    """
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


def widths(build: Callable[[int], nn.Module], dims: Sequence[int]) -> tuple[Callable[[], nn.Module], ...]:
    """A rival at several widths.

    Args:
        build: builder of the rival, from the number of channels.
        dims: numbers of channels.

    Returns:
        Builders without arguments.
    """
    return tuple(lambda dim=dim: build(dim) for dim in dims)  # type: ignore[misc]


@dataclass(frozen=True)
class Zoo:
    """A network and its rival.

    Args:
        ours: builder of the network, (B, 3, 32, 32) to (B, 10).
        rivals: builders of the rival at several widths, see `widths`.
        name: name of the rival, for the claims.
        minutes: processor minutes of each training; two busy threads spend them twice as fast.
        matched: whether the rival of nearest latency takes part; False takes the first, whatever its latency.

    Raises:
        ValueError: no rival, or a budget that is not above 0.
    """

    ours: Callable[[], nn.Module]
    rivals: tuple[Callable[[], nn.Module], ...]
    name: str
    minutes: float = MINUTES
    matched: bool = True

    def __post_init__(self) -> None:
        if not self.rivals:
            raise ValueError("a trial compares a network with a rival, got none; give its builders at several widths")
        if self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")

    @property
    def rival(self) -> Callable[[], nn.Module]:
        """Builder of the rival whose latency is nearest, or of the first if latencies are not `matched`.

        Returns:
            The builder.

        Raises:
            ValueError: no width within 5 %.
        """
        return _rival(self)

    @property
    def steps(self) -> tuple[int, int]:
        """Training steps of the network and of its rival that fit into the budget; two in a rehearsal."""
        return _steps(self)

    def difference(self, seed: int) -> float:
        """Accuracy of the network minus the rival's after the same processor minutes.

        Args:
            seed: seed of weights and batches.

        Returns:
            Difference, percentage points.
        """
        return _difference(self, seed)

    def claims(self, *, clause: int = 0, beyond: str = "", by: float = -1.0) -> tuple[Claim, Claim]:
        """The zoo's clause: not below the rival's mean minus one standard error, and the difference itself.

        Args:
            clause: clause of the row's bar that the first answers.
            beyond: promise of the paper if there is none.
            by: lower bound on the difference, percentage points.

        Returns:
            Two claims.
        """
        data = f"{self.minutes:g} processor minutes each on CIFAR-10, the first 2,000 test pictures; equal latency"

        def above() -> float:
            found = [self.difference(seed) for seed in range(SEEDS)]
            return mean(found) + stdev(found) / len(found) ** 0.5

        return (
            bound(
                f"Accuracy after equal minutes is not below that of {self.name} of equal latency, minus one standard "
                "error.",
                paper="better at equal latency",
                value=above,
                at_least=0.0,
                unit="points above",
                needs=NEEDS,
                clause=clause,
                beyond=beyond,
            ),
            kept(
                f"It is at most {-by:g} {'point' if by == -1 else 'points'} below.",
                paper="better at equal latency",
                quality=self.difference,
                at_least=by,
                unit="points",
                data=data,
                needs=NEEDS,
                beyond="distance to the rival",
            ),
        )


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


@cached(maxsize=8)
def _rival(zoo: Zoo) -> Callable[[], nn.Module]:
    if not zoo.matched or rehearsing():
        return zoo.rivals[0]
    networks = [_built(build) for build in (zoo.ours, *zoo.rivals)]
    x = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, *theirs = interleaved([lambda net=net: net(x) for net in networks], pairs=15)  # type: ignore[misc]
    apart = [abs(ratio(ours, times).median - 1) for times in theirs]
    nearest = min(range(len(apart)), key=apart.__getitem__)
    if apart[nearest] > EQUAL:
        raise ValueError(
            f"no width of {zoo.name} is within {EQUAL:.0%} of the network's latency, the nearest differs by "
            f"{apart[nearest]:.0%}; give more widths"
        )
    return zoo.rivals[nearest]


@cached(maxsize=8)
def _steps(zoo: Zoo) -> tuple[int, int]:
    if rehearsing():
        return STEPS, STEPS
    networks = [_built(build) for build in (zoo.ours, zoo.rival)]
    inputs, labels = cifar10.pictures("train")
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for network, taken in zip(networks, times, strict=True):
            begun = time.process_time()
            short_run(
                network,
                lambda step: (inputs[64 * step : 64 * step + 64], labels[64 * step : 64 * step + 64]),
                lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]),
                steps=MEASURED,
            )
            if turn:  # the first round warms up
                taken.append((time.process_time() - begun) / MEASURED)
    ours, theirs = (max(1, round(60 * zoo.minutes / median(taken))) for taken in times)
    return ours, theirs


@cached(maxsize=24)
def _difference(zoo: Zoo, seed: int) -> float:
    scores = [
        cifar10.accuracy(cifar10.train_classifier(build, steps=steps, seed=seed))
        for build, steps in zip((zoo.ours, zoo.rival), zoo.steps, strict=True)
    ]
    return scores[0] - scores[1]
