"""The suite of training objectives: kind "objective", cases `foveal.cases.Objective`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveal.evidence.checks.common import fail, floating

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from foveal.record import Method

__all__ = ["CHECKS"]


def _learning(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, **{name: x.detach().clone().requires_grad_() for name, x in floating(inputs).items()}}


def _loss(method: Method, case: str, inputs: dict[str, Any]) -> Tensor:
    import torch

    value = method.cases[case].loss(**inputs)
    if not isinstance(value, torch.Tensor) or value.ndim:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise fail(method, case, f"a loss must be a scalar tensor, got {shape}")
    return value


def finite(method: Method, case: str) -> None:
    """The loss is a finite scalar, in float32 and in float64, and the same each time.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: the loss has another shape or dtype, is not finite, or changes.
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        inputs = method.cases[case].inputs(0)
        inputs |= {name: x.to(dtype) for name, x in floating(inputs).items()}
        first, again = _loss(method, case, inputs), _loss(method, case, inputs)
        if not first.isfinite():
            raise fail(method, case, f"the loss is {first.item()} in {dtype}")
        if first.dtype != dtype:
            raise fail(method, case, f"{dtype} inputs must give a {dtype} loss, got {first.dtype}")
        if first.item() != again.item():
            raise fail(method, case, f"the same inputs give {first.item()} and then {again.item()}")


def learns(method: Method, case: str) -> None:
    """Gradients, finite and not all zero, reach exactly the arguments that should learn.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: an argument lacks a gradient or must not have one; the text names it.
    """
    objective = method.cases[case]
    inputs = _learning(objective.inputs(0))
    _loss(method, case, inputs).backward()
    for name, x in floating(inputs).items():
        reached = x.grad is not None and bool(x.grad.ne(0).any())
        if name in objective.learns and not (reached and x.grad.isfinite().all()):  # type: ignore[union-attr]
            raise fail(method, case, f"no finite gradient reaches {name}, which is to learn")
        if name not in objective.learns and reached:
            raise fail(method, case, f"a gradient reaches {name}, and only {', '.join(objective.learns)} may learn")


def best(method: Method, case: str) -> None:
    """The loss is minimal where it should be: no small step away lowers it.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: a lower value was found.
    """
    import torch

    objective = method.cases[case]
    if objective.best is None:
        return
    inputs = objective.best(0)
    inputs |= {name: x.double() for name, x in floating(inputs).items()}
    least = float(_loss(method, case, inputs))
    generator = torch.Generator().manual_seed(6)
    for name in objective.learns:
        for _ in range(8):
            away = torch.randn(inputs[name].shape, generator=generator, dtype=torch.float64)
            there = float(_loss(method, case, {**inputs, name: inputs[name] + 0.05 * away}))
            if there < least - 1e-9 * max(1.0, abs(least)):
                raise fail(method, case, f"{there:.6g} a little away in {name} is less than {least:.6g} at the best")


CHECKS: dict[str, Callable[[Method, str], None]] = {"finite": finite, "learns": learns, "best": best}
