"""How an operator chooses among its paths, and says why one cannot run.

An operator has named backends. Each answers a call with None ("yes") or with the reason why not. `auto` takes the first
that says yes; naming one that cannot run raises with its reason, so nobody falls back without knowing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["Backend", "BackendError", "ShapeError", "check_alike", "check_shape", "choose", "reasons"]


class BackendError(RuntimeError):
    """A backend was named that cannot run here or cannot take these arguments."""


class ShapeError(ValueError):
    """Tensors whose shapes do not fit together."""


@dataclass(frozen=True)
class Backend:
    """One path of an operator.

    Args:
        name: what the caller writes.
        run: does the work.
        why_not: given the first tensor, None when this path can run, else the reason and what to do.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[[Any], str | None]


def check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...], of: str) -> None:
    """That a tensor has the shape that others ask of it.

    Args:
        name: of the argument.
        tensor: given.
        wanted: shape.
        of: what asks for it, in words.

    Raises:
        ShapeError: another shape.
    """
    if tuple(tensor.shape) != wanted:
        raise ShapeError(f"{name} must be {wanted}, {of}, got {tuple(tensor.shape)}")


def check_alike(named: Mapping[str, Tensor | None]) -> None:
    """That all tensors are real floating-point ones on the device of the first.

    Args:
        named: arguments by name; None for those left out.

    Raises:
        TypeError: an integer or complex tensor.
        ValueError: a tensor on another device.
    """
    first, leader = next((name, tensor) for name, tensor in named.items() if tensor is not None)
    for name, tensor in named.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be a real floating-point tensor, got {tensor.dtype}; convert it first")
        if tensor is not None and tensor.device != leader.device:
            raise ValueError(f"{name} must be on {leader.device} like {first}, got {tensor.device}; move it there")


def choose(backends: Sequence[Backend], name: str, tensor: Any) -> Backend:
    """The backend to run.

    Args:
        backends: in order of preference.
        name: "auto" or one of theirs.
        tensor: first tensor of the call.

    Returns:
        The first that can run, or the named one.

    Raises:
        ValueError: no backend has that name.
        BackendError: the named one cannot run.
    """
    if name == "auto":
        return next(backend for backend in backends if backend.why_not(tensor) is None)
    for backend in backends:
        if backend.name == name:
            reason = backend.why_not(tensor)
            if reason is not None:
                raise BackendError(f"backend {name!r} cannot run: {reason}")
            return backend
    names = ", ".join(["auto", *(backend.name for backend in backends)])
    raise ValueError(f"backend must be one of {names}, got {name!r}")


def reasons(backends: Sequence[Backend], tensor: Any) -> dict[str, str]:
    """What each backend says of a call.

    Args:
        backends: those of an operator.
        tensor: first tensor of the call.

    Returns:
        Name → "can run", or why it cannot.
    """
    return {backend.name: backend.why_not(tensor) or "can run" for backend in backends}
