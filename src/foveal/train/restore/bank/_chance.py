"""Random numbers of a generator, as the degradations need them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["between", "checked", "normal", "uniform", "whole"]


def uniform(like: Tensor, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform numbers in [0, 1), drawn on the CPU in float32, so that a seed means the same on every device.

    Args:
        like: tensor whose dtype and device the result has.
        shape: shape of the result.
        generator: source.

    Returns:
        The numbers.
    """
    return torch.rand(shape, generator=generator).to(like)


def normal(like: Tensor, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Standard normal numbers, as `uniform`.

    Args:
        like: tensor whose dtype and device the result has.
        shape: shape of the result.
        generator: source.

    Returns:
        The numbers.
    """
    return torch.randn(shape, generator=generator).to(like)


def between(low: float, high: float, generator: Generator, *, log: bool = False) -> float:
    """A number between two.

    Args:
        low: least.
        high: largest.
        generator: source.
        log: uniform in the logarithm.

    Returns:
        The number.
    """
    share = float(torch.rand((), generator=generator))
    if log:
        return low * math.exp(share * math.log(high / low))
    return low + share * (high - low)


def whole(low: int, high: int, generator: Generator) -> int:
    """A whole number.

    Args:
        low: least.
        high: largest, which can be drawn.
        generator: source.

    Returns:
        The number.
    """
    return int(torch.randint(low, high + 1, (), generator=generator))


def checked(name: str, **values: tuple[float, float, float]) -> None:
    """Refuse strengths outside their ranges.

    Args:
        name: of the degradation.
        **values: of each strength its value, least and largest.

    Raises:
        ValueError: one of them is outside.
    """
    for what, (value, low, high) in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name}: {what} must be from {low:g} to {high:g}, got {value:g}")
