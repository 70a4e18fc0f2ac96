"""Finding and loading the compiled kernels, without torch headers.

They are a separate distribution, `foveal-kernels`, which the torch extra installs. If it is missing or was installed
without a compiler, operators run in torch, and each warns once.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from foveal.runtime import kernels

if TYPE_CHECKING:
    import ctypes

__all__ = ["library", "tell_once", "why_not"]


@torch.compiler.assume_constant_result
def why_not() -> str | None:
    """Why native kernels cannot run here.

    Returns:
        None if they can, else the reason and what to do.
    """
    return kernels.why_not()


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load the library for this CPU.

    Returns:
        The library, or None if there is none.
    """
    if why_not() is not None:
        return None
    import foveal_kernels

    return foveal_kernels.load()


@lru_cache(maxsize=32)
def tell_once(operator: str) -> None:
    """Warn, the first time only, that an operator runs slowly in torch, and how to fix it.

    Args:
        operator: name of the operator.
    """
    warnings.warn(
        f"{operator} runs in torch, many times slower than natively: {why_not()}", RuntimeWarning, stacklevel=2
    )
