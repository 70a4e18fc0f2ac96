"""How an operator chooses among its backends, and explains why one cannot run.

An operator has named backends. For a given call each reports None ("can run") or the reason why not. `auto` takes the
first that can run; naming one that cannot raises with its reason, so there is no silent fallback. `use_backend` names
one for all calls in a block of code, including those inside a model.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "Backend",
    "BackendError",
    "ShapeError",
    "asked",
    "check_alike",
    "check_shape",
    "choose",
    "differentiable_gradients",
    "in_full_precision",
    "reasons",
    "use_backend",
]

NAMES = ("native", "triton", "eager", "grouped", "butterfly2", "butterfly3", "reference")
_IN_FORCE: ContextVar[str] = ContextVar("foveal_backend", default="auto")


class BackendError(RuntimeError):
    """The named backend cannot run here or does not support these arguments."""


class ShapeError(ValueError):
    """Tensors whose shapes do not fit together."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Args:
        name: name that callers pass, one of `NAMES`.
        run: function that computes the result.
        why_not: function of the call's first tensor that returns None if the backend can run, else the reason and what
            to do.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[[Any], str | None]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend of every operator called with "auto" inside the block, including those inside models.

    An operator without a backend of that name keeps choosing automatically; one whose backend of that name cannot run
    raises. The choice is local to a thread or asynchronous task. A compiled function keeps the backend it was traced
    with; recomputed activations (checkpointing) use the choice in force when they are recomputed.

    Args:
        name: "auto", "native", "triton", "eager", "grouped", "butterfly2", "butterfly3" or "reference".

    Yields:
        Nothing.

    Raises:
        ValueError: if no operator has a backend of that name.

    Example:
        >>> import torch
        >>> from foveal.ops import use_backend
        >>> from foveal.ops.ssd import explain
        >>> with use_backend("eager"):
        ...     explain()["reference"]
        "set aside: use_backend('eager') is in force"
    """
    if name not in {"auto", *NAMES}:
        raise ValueError(f"use_backend takes one of auto, {', '.join(NAMES)}, got {name!r}")
    token = _IN_FORCE.set(name)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


@torch.compiler.assume_constant_result
def _in_force() -> str:
    return _IN_FORCE.get()


def check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...], of: str) -> None:
    """Check the shape of a tensor.

    Args:
        name: name of the argument.
        tensor: the argument.
        wanted: expected shape.
        of: explanation of the expected shape, for the message.

    Raises:
        ShapeError: if the shape differs.
    """
    if tuple(tensor.shape) != wanted:
        raise ShapeError(f"{name} must be {wanted}, {of}, got {tuple(tensor.shape)}")


def check_alike(named: Mapping[str, Tensor | None]) -> None:
    """Check that all tensors are real, floating-point and on the same device.

    Args:
        named: arguments by name; None for omitted ones.

    Raises:
        TypeError: if a tensor is integer or complex.
        ValueError: if a tensor is on another device than the first.
    """
    first, leader = next((name, tensor) for name, tensor in named.items() if tensor is not None)
    for name, tensor in named.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be a real floating-point tensor, got {tensor.dtype}; convert it first")
        if tensor is not None and tensor.device != leader.device:
            raise ValueError(f"{name} must be on {leader.device} like {first}, got {tensor.device}; move it there")


def asked(backends: Sequence[Backend], name: str) -> str:
    """The backend that a call asks for.

    Args:
        backends: backends of the operator.
        name: name that the caller passed.

    Returns:
        The name; for "auto" the one set by `use_backend`, if the operator has it.
    """
    if name != "auto":
        return name
    chosen = _in_force()
    return chosen if any(backend.name == chosen for backend in backends) else name


def choose(backends: Sequence[Backend], name: str, tensor: Any) -> Backend:
    """Select the backend to run.

    Args:
        backends: backends in order of preference.
        name: "auto" or the name of one of them.
        tensor: first tensor of the call.

    Returns:
        The first that can run, or the named one.

    Raises:
        ValueError: if no backend has that name.
        BackendError: if the named one cannot run.
    """
    name = asked(backends, name)
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
    """Report for each backend whether it can run a call.

    Args:
        backends: backends of an operator.
        tensor: first tensor of the call.

    Returns:
        Name → "can run", the reason why it cannot, or a note that `use_backend` chose another.
    """
    chosen = asked(backends, "auto")
    aside = f"set aside: use_backend({chosen!r}) is in force"
    return {
        backend.name: backend.why_not(tensor) or ("can run" if chosen in {"auto", backend.name} else aside)
        for backend in backends
    }


def in_full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without automatic mixed precision, for operators that guarantee float32.

    Args:
        tensor: first tensor of the call.

    Returns:
        A context manager that disables autocast on the tensor's device if it is enabled.
    """
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def differentiable_gradients(
    run: Callable[..., Any], inputs: Sequence[Tensor | None], outgoing: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Twice-differentiable gradients, for backends whose own backward pass is not differentiable.

    Args:
        run: the same computation in torch, from the inputs to one or several tensors.
        inputs: input tensors, None for omitted ones.
        outgoing: gradients of the outputs of `run`, None for zeros.

    Returns:
        The gradient of each input that requires one, else None.
    """
    with torch.enable_grad():
        # Aliases, so that gradients do not flow from an input to another one it was computed from.
        given = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        made = run(*given)
        made = (made,) if isinstance(made, Tensor) else made
        outputs = [tensor for tensor, gradient in zip(made, outgoing, strict=True) if gradient is not None]
        gradients = [gradient for gradient in outgoing if gradient is not None]
        wanted = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in given]
