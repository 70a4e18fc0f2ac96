"""Two functions timed in turn, so that a busy moment of the machine meets both."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["paired"]


def paired(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    pairs: int = 15,
    warm_up: int = 2,
    least: float = 0.01,
    most: float = 30.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Time two functions in turn (A B A B …), so that a busy moment of the machine meets both.

    Args:
        ours: function A.
        theirs: function B.
        pairs: how many of each are timed.
        warm_up: calls of each before that, not timed; the last of them says how often a short function is repeated.
        least: seconds one timing lasts at least; a shorter function is repeated within it.
        most: seconds all timings should take; fewer pairs are timed when they would take longer, but at least five.
        clock: seconds since some moment.

    Returns:
        Seconds per call, one for each pair: of `ours` and of `theirs`.
    """

    def lasting(function: Callable[[], Any], repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            function()
        return (clock() - start) / repeats

    once = [0.0, 0.0]
    for _ in range(warm_up):
        once = [lasting(ours, 1), lasting(theirs, 1)]
    repeats = [max(1, min(10_000, round(least / max(seconds, 1e-9)))) for seconds in once]
    a_pair = sum(seconds * count for seconds, count in zip(once, repeats, strict=True))
    pairs = min(pairs, max(5, int(most / max(a_pair, 1e-9))))
    times: tuple[list[float], list[float]] = ([], [])
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(pairs):
            for function, count, kept in zip((ours, theirs), repeats, times, strict=True):
                kept.append(lasting(function, count))
    finally:
        if collecting:
            gc.enable()
    return times
