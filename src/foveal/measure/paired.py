"""Functions timed in turn, so that a busy moment of the machine meets all of them, and the ratio of two of them."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Ratio", "interleaved", "paired", "ratio"]

DIFFERENCE = 0.02  # smaller differences of two medians are never called one


@dataclass(frozen=True)
class Ratio:
    """Time of one function over another's, over interleaved pairs.

    Args:
        median: median of the ratios; below 1 where the first function is faster.
        lower: first quartile.
        upper: third quartile.
        pairs: number of pairs.
    """

    median: float
    lower: float
    upper: float
    pairs: int

    @property
    def doubt(self) -> float:
        """Two standard errors of the median, estimated from the quartiles as of a normal distribution."""
        return 2 * 1.2533 * (self.upper - self.lower) / 1.349 / self.pairs**0.5

    @property
    def slower(self) -> bool:
        """Whether the first function is slower, by more than the spread explains."""
        return self.median - 1 > max(DIFFERENCE, self.doubt)

    @property
    def faster(self) -> bool:
        """Whether the first function is faster, by more than the spread explains."""
        return 1 - self.median > max(DIFFERENCE, self.doubt)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ratio of two functions that were timed in turn.

    Args:
        ours: seconds of the first, one for each pair.
        theirs: seconds of the second.

    Returns:
        Median and quartiles of the pairs' ratios.

    Raises:
        ValueError: no pairs, or lists of different lengths.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"ratio needs as many times of one as of the other, got {len(ours)} and {len(theirs)}")
    found = np.asarray(ours, np.float64) / np.maximum(np.asarray(theirs, np.float64), 1e-12)
    lower, median, upper = np.percentile(found, (25, 50, 75))
    return Ratio(float(median), float(lower), float(upper), len(ours))


def interleaved(
    functions: Sequence[Callable[[], Any]],
    *,
    pairs: int = 15,
    warm_up: int = 2,
    least: float = 0.01,
    most: float = 30.0,
    settle: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], ...]:
    """Time functions in turn (A B C A B C …), so that a busy moment of the machine meets all of them.

    Args:
        functions: functions to time.
        pairs: number of timings of each.
        warm_up: calls of each before that; the shortest of them says how often a short function is repeated.
        least: seconds that one timing lasts at least; a shorter function is repeated within it.
        most: seconds that all timings should take; fewer are made when they would take longer, but at least five.
        settle: calls of a function before each of its timings, not timed: caches that another function has emptied
            would cost a short function more, the fewer its repeats.
        clock: seconds since some moment.

    Returns:
        Seconds per call, one list for each function.
    """

    def lasting(function: Callable[[], Any], repeats: int) -> float:
        for _ in range(settle):
            function()
        start = clock()
        for _ in range(repeats):
            function()
        return (clock() - start) / repeats

    once = [math.inf for _ in functions]
    for _ in range(warm_up):
        once = [min(before, lasting(function, 1)) for before, function in zip(once, functions, strict=True)]
    once = [0.0 if math.isinf(seconds) else seconds for seconds in once]
    repeats = [max(1, min(10_000, round(least / max(seconds, 1e-9)))) for seconds in once]
    a_round = sum(seconds * count for seconds, count in zip(once, repeats, strict=True))
    pairs = min(pairs, max(5, int(most / max(a_round, 1e-9))))
    times: tuple[list[float], ...] = tuple([] for _ in functions)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(pairs):
            for function, count, kept in zip(functions, repeats, times, strict=True):
                kept.append(lasting(function, count))
    finally:
        if collecting:
            gc.enable()
    return times


def paired(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    pairs: int = 15,
    warm_up: int = 2,
    least: float = 0.01,
    most: float = 30.0,
    settle: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Time two functions in turn (A B A B …).

    Args:
        ours: function A.
        theirs: function B.
        pairs: how many of each are timed.
        warm_up: calls of each before that, not timed.
        least: seconds one timing lasts at least; a shorter function is repeated within it.
        most: seconds all timings should take; fewer pairs are timed when they would take longer, but at least five.
        settle: calls of a function before each of its timings, not timed.
        clock: seconds since some moment.

    Returns:
        Seconds per call, one for each pair: of `ours` and of `theirs`.
    """
    options: dict[str, Any] = {"warm_up": warm_up, "least": least, "most": most, "settle": settle, "clock": clock}
    a, b = interleaved((ours, theirs), pairs=pairs, **options)
    return a, b
