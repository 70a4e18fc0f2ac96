"""The compiled kernels, found and called without torch headers.

They are a distribution of their own, `foveal-kernels`, that the torch extra brings. Where it is missing or was
installed without a compiler, operators run in torch, and the first that does says so.
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
        None when they can, else the reason and what to do.
    """
    return kernels.why_not()


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library for this processor.

    Returns:
        The library; None when there is none.
    """
    if why_not() is not None:
        return None
    import foveal_kernels

    return foveal_kernels.load()


@lru_cache(maxsize=32)
def tell_once(operator: str) -> None:
    """Say, the first time only, that an operator takes its slow path, and what would change that.

    Args:
        operator: its name.
    """
    warnings.warn(
        f"{operator} runs in torch, many times slower than natively: {why_not()}", RuntimeWarning, stacklevel=2
    )
