"""A random order of tests: `pytest --shuffle SEED` finds those that need another one to run before them.

Files are shuffled and so are the tests of each, but a file stays together: what its tests share is set up once.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

T = TypeVar("T")


def shuffled(tests: Sequence[T], seed: int, *, file: Callable[[T], Hashable]) -> list[T]:
    """The tests in an order that depends only on the seed, so that all processes of a run agree."""
    random = Random(seed)
    files: dict[Hashable, list[T]] = {}
    for test in tests:
        files.setdefault(file(test), []).append(test)
    groups = list(files.values())
    random.shuffle(groups)
    for group in groups:
        random.shuffle(group)
    return [test for group in groups for test in group]
