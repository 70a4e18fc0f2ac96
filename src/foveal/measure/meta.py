"""Networks without storage: their sizes and costs need shapes, not values."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["without_storage"]

# In-place operations that constructors initialise parameters with. On the meta device they change nothing, and random
# ones are decomposed in Python there, which takes seconds in large networks.
FILLS = frozenset(
    f"{name}_"
    for name in (
        *("normal", "uniform", "trunc_normal", "bernoulli", "exponential", "erfinv", "clamp"),
        *("zero", "fill", "copy", "add", "sub", "mul", "div"),
    )
)


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in FILLS and args and getattr(args[0], "is_meta", False):
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_storage() -> Iterator[None]:
    """Build modules on the meta device, without initialising their parameters.

    Yields:
        Nothing.
    """
    with torch.device("meta"), _Unfilled():
        yield
