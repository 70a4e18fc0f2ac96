"""Networks of super-resolution trained for equal processor minutes, on the patches and pictures of `photos`.

A network's steps are the budget over the processor seconds of one of its steps, measured before the training with all
networks of the comparison in turn. They share optimiser, schedule (annealed to 0 over each network's own steps),
batches and seeds. The number of steps depends on the machine, so outcomes of two machines differ.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from foveal.evidence.rehearsal import STEPS, cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from foveal.record import Claim

__all__ = ["NEEDS", "Trial", "better"]

NEEDS = photos.NEEDS
ROUNDS, MEASURED = 5, 4  # measurements of each network, in turn, and steps of each measurement


@dataclass(frozen=True)
class Trial:
    """Networks that are trained for equal processor minutes; each is trained once a seed and shared by all claims.

    Args:
        builds: builders of the networks, called with `scale` and `in_channels`.
        scale: s.
        minutes: processor minutes of each training; two busy threads spend them twice as fast.
        luminance: whether the networks work on luminance alone.

    Raises:
        ValueError: fewer than two networks, or a budget that is not above 0.
    """

    builds: tuple[Callable[..., nn.Module], ...]
    scale: int
    minutes: float
    luminance: bool = False

    def __post_init__(self) -> None:
        if len(self.builds) < 2:
            raise ValueError(f"a trial compares at least two networks, got {len(self.builds)}; add a rival to builds")
        if self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")

    def steps(self, build: Callable[..., nn.Module]) -> int:
        """Number of training steps that fit into the budget; two in a rehearsal.

        Args:
            build: one of the builders.

        Returns:
            Steps of eight patches, at least 1.
        """
        if rehearsing():
            return STEPS
        seconds = dict(zip(self.builds, _seconds_of_a_step(self), strict=True))
        return max(1, round(60 * self.minutes / seconds[build]))

    def trained(self, build: Callable[..., nn.Module], seed: int) -> nn.Module:
        """A network of the trial after its minutes.

        Args:
            build: one of the builders.
            seed: seed of weights and batches.

        Returns:
            The network in eval mode; do not modify it.
        """
        return _trained(self, build, seed)

    def gain(self, build: Callable[..., nn.Module], seed: int) -> float:
        """What a trained network gains over bicubic, see `photos.gain`.

        Args:
            build: one of the builders.
            seed: seed of weights and batches.

        Returns:
            Difference of luminance PSNR, dB.
        """
        return _gain(self, build, seed)

    @property
    def data(self) -> str:
        """What the claims of this trial are measured on."""
        return (
            f"{self.minutes:g} processor minutes for each network on bsds400; first 30 of Set5, Set14 and BSD100, "
            f"×{self.scale}, luminance, shave {self.scale}; paired"
        )

    def better(
        self,
        build: Callable[..., nn.Module],
        says: str,
        *,
        than: Callable[..., nn.Module],
        by: float,
        paper: str,
        **words: Any,
    ) -> Claim:
        """`kept`: the paired difference of two networks of the trial under the same seeds.

        Args:
            build: builder of the network, one of the trial's.
            says: promise, one sentence.
            than: builder of the rival, one of the trial's.
            by: lower bound on the difference, dB; negative for "at most this much worse".
            paper: the paper's value.
            **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

        Returns:
            The claim.

        Raises:
            ValueError: a builder that is not in the trial.
        """
        for one in (build, than):
            if one not in self.builds:
                raise ValueError(f"{says!r}: {one} is no network of the trial; add it to builds")

        def difference(seed: int) -> float:
            return self.gain(build, seed) - self.gain(than, seed)

        return kept(says, paper=paper, quality=difference, at_least=by, data=self.data, needs=NEEDS, **words)


@cached(maxsize=16)
def _seconds_of_a_step(trial: Trial) -> tuple[float, ...]:
    """Processor seconds of a training step of each network, the median of measurements in turn."""
    load = photos.batches(trial.scale, 0, luminance=trial.luminance)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [build(trial.scale, in_channels=1 if trial.luminance else 3) for build in trial.builds]
    times: list[list[float]] = [[] for _ in networks]
    for turn in range(ROUNDS + 1):
        for network, taken in zip(networks, times, strict=True):
            begun = time.process_time()
            short_run(network, load, photos.absolute_error, steps=MEASURED)
            if turn:  # the first round warms up
                taken.append((time.process_time() - begun) / MEASURED)
    return tuple(median(taken) for taken in times)


@cached(maxsize=24)
def _trained(trial: Trial, build: Callable[..., nn.Module], seed: int) -> nn.Module:
    steps = trial.steps(build)
    return photos.trained(build, trial.scale, steps=steps, seed=seed, luminance=trial.luminance)


@cached(maxsize=24)
def _gain(trial: Trial, build: Callable[..., nn.Module], seed: int) -> float:
    return photos.gain(trial.trained(build, seed), trial.scale, luminance=trial.luminance)


def better(
    build: Callable[..., nn.Module],
    says: str,
    *,
    than: Callable[..., nn.Module],
    scale: int,
    minutes: float,
    by: float,
    paper: str,
    luminance: bool = False,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two networks after equal processor minutes; for more rivals, see `Trial`.

    Args:
        build: builder of the network, called with `scale` and `in_channels`.
        says: promise, one sentence.
        than: builder of the rival.
        scale: s.
        minutes: processor minutes of each training.
        by: lower bound on the difference, dB; negative for "at most this much worse".
        paper: the paper's value.
        luminance: whether the networks work on luminance alone.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """
    trial = Trial((build, than), scale, minutes, luminance)
    return trial.better(build, says, than=than, by=by, paper=paper, **words)
