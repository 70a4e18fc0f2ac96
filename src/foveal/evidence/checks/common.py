"""Shared parts of the suites: the error they raise, and descriptions of differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from foveal.record import Method

__all__ = ["CheckError", "difference", "fail", "floating", "outputs", "relative", "same"]


class CheckError(AssertionError):
    """A failed common check; the text says where and by how much."""


def fail(method: Method, case: str, text: str) -> CheckError:
    """Create the error for a record and a case.

    Args:
        method: the record.
        case: one of its cases, "" for the record as a whole.
        text: expected and actual result.

    Returns:
        The error to raise.
    """
    return CheckError(f"{method.name}, {case}: {text}" if case else f"{method.name}: {text}")


def difference(a: Tensor, b: Tensor) -> str:
    """Describe the largest difference of two tensors of one shape.

    Args:
        a: first tensor.
        b: second tensor.

    Returns:
        Description with place and size of the difference.
    """
    gap = (a - b).abs()
    at = tuple(int(i) for i in (gap == gap.max()).nonzero()[0])
    return f"the largest of {a.numel()} differences is {gap.max().item():.3g} at {at}"


def outputs(value: Any) -> list[Tensor]:
    """The tensors in a result.

    Args:
        value: tensor, array, number, or nested tuples, lists and mappings of them.

    Returns:
        Tensors, in order.
    """
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, np.ndarray | float | int):
        return [torch.as_tensor(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value or () for tensor in outputs(item)]


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of the second tensor.

    Args:
        a: first tensor.
        b: second tensor, of the same shape.

    Returns:
        Relative difference, 0 for equal tensors.
    """
    if not a.numel():
        return 0.0
    return float((a - b).abs().max()) / (float(b.abs().max()) or 1.0)


def same(first: Any, second: Any) -> bool:
    """Whether two results are equal bit for bit; NaN equals NaN.

    Args:
        first: result, see `outputs`.
        second: result, see `outputs`.

    Returns:
        True if all tensors are equal.
    """
    a, b = outputs(first), outputs(second)
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(
        x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all()) for x, y in pairs
    )


def floating(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The floating-point tensors among arguments.

    Args:
        inputs: keyword arguments.

    Returns:
        Tensor by name.
    """
    import torch

    return {name: x for name, x in inputs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
