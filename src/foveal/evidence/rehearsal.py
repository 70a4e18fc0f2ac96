"""A rehearsal: the code of every claim runs with two training steps on synthetic data, in milliseconds, for tests.

While one is on, `short_run` takes two steps, tasks draw their data instead of reading it, and what is cached is
forgotten when it ends.
Outcomes of a rehearsal are marked, and `foveal.evidence.results` refuses to record them.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["STEPS", "cached", "rehearsal", "rehearsing"]

STEPS = 2
_forget: list[Any] = []  # functions that clear what rehearsals cached
_on: ContextVar[bool] = ContextVar("rehearsal", default=False)
P = ParamSpec("P")
R = TypeVar("R")


def rehearsing() -> bool:
    """Whether a rehearsal is in progress.

    Returns:
        True inside `rehearsal()`.
    """
    return _on.get()


@contextmanager
def rehearsal() -> Iterator[None]:
    """Two training steps and synthetic data inside this context.

    Yields:
        Nothing.
    """
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)
        if not rehearsing():
            for clear in _forget:
                clear()


def cached(maxsize: int = 8) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`lru_cache` that keeps the results of a rehearsal apart, and only until it ends.

    Args:
        maxsize: number of results to keep.

    Returns:
        A decorator.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        kept, rehearsed = (functools.lru_cache(maxsize=maxsize)(function) for _ in range(2))
        _forget.append(rehearsed.cache_clear)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return (rehearsed if rehearsing() else kept)(*args, **kwargs)  # type: ignore[arg-type]

        return call

    return decorate
