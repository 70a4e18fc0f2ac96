"""The suite of operators: kind "operator", cases `foveal.cases.Operator`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveal.evidence.checks.common import difference, fail, floating, outputs, relative

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from foveal.record import Method

__all__ = ["CHECKS"]


def _double(inputs: dict[str, Any], *, gradients: bool) -> dict[str, Any]:
    copies = {name: x.detach().double().requires_grad_(gradients) for name, x in floating(inputs).items()}
    return {**inputs, **copies}


def equals(method: Method, case: str) -> None:
    """The function agrees with its reference, in float64.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: a wrong shape, or a difference above the tolerance.
    """
    operator = method.cases[case]
    inputs = _double(operator.inputs(0), gradients=False)
    for ours, theirs in zip(outputs(operator.fast(**inputs)), outputs(operator.reference(**inputs)), strict=True):
        if ours.shape != theirs.shape:
            raise fail(method, case, f"gives {tuple(ours.shape)} where the reference gives {tuple(theirs.shape)}")
        if not relative(ours, theirs) <= operator.tolerance:
            raise fail(method, case, f"differs from the reference: {difference(ours, theirs)}")


def _gradients(function: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    import torch

    results = [out for out in outputs(function(**inputs)) if out.requires_grad]
    generator = torch.Generator().manual_seed(4)
    total = sum((out * torch.rand(out.shape, generator=generator, dtype=out.dtype)).sum() for out in results)
    wanted = floating(inputs)
    if not results:
        return dict.fromkeys(wanted)
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)  # type: ignore[arg-type]
    return dict(zip(wanted, found, strict=True))


def gradients(method: Method, case: str) -> None:
    """Every floating-point input gets the same gradient as from the reference.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: a missing gradient, or a difference above the tolerance.
    """
    operator = method.cases[case]
    ours, theirs = (
        _gradients(function, _double(operator.inputs(0), gradients=True))
        for function in (operator.fast, operator.reference)
    )
    for name, wanted in theirs.items():
        got = ours[name]
        if wanted is None:
            continue
        if got is None:
            raise fail(method, case, f"no gradient reaches {name}, and the reference gives it one")
        if not relative(got, wanted) <= 100 * operator.tolerance:
            raise fail(method, case, f"the gradient of {name} differs from the reference's: {difference(got, wanted)}")


CHECKS: dict[str, Callable[[Method, str], None]] = {"equals": equals, "gradients": gradients}
