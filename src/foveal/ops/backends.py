"""How an operator chooses among its paths, and says why one cannot run.

An operator has named backends. Each answers a call with None ("yes") or with the reason why not. `auto` takes the first
that says yes; naming one that cannot run raises with its reason, so nobody falls back without knowing. `use_backend`
names one for all calls of a block of code, those inside a model for example.
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

NAMES = ("native", "triton", "eager", "butterfly2", "butterfly3", "reference")
_IN_FORCE: ContextVar[str] = ContextVar("foveal_backend", default="auto")


class BackendError(RuntimeError):
    """A backend was named that cannot run here or cannot take these arguments."""


class ShapeError(ValueError):
    """Tensors whose shapes do not fit together."""


@dataclass(frozen=True)
class Backend:
    """One path of an operator.

    Args:
        name: the name that callers write, one of `NAMES`.
        run: the function that does the work.
        why_not: given the first tensor, None when this path can run, else the reason and what to do.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[[Any], str | None]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend of every operator that is called with "auto" inside the block, in models too.

    An operator without a backend of that name goes on choosing for itself; one whose backend of that name cannot run
    raises. Threads and asynchronous tasks have a choice of their own. A compiled function keeps what it was traced
    with, and activations that are computed again for the backward pass ask when that happens.

    Args:
        name: "auto", "native", "triton", "eager", "butterfly2", "butterfly3" or "reference".

    Yields:
        Nothing.

    Raises:
        ValueError: no operator has a backend of that name.

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
    """That a tensor has the shape that others ask of it.

    Args:
        name: name of the argument.
        tensor: the argument.
        wanted: shape.
        of: where the shape comes from, in words.

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


def asked(backends: Sequence[Backend], name: str) -> str:
    """What a call asks for.

    Args:
        backends: those of the operator.
        name: what the caller wrote.

    Returns:
        The name; for "auto" the one that `use_backend` put in force, if the operator has it.
    """
    if name != "auto":
        return name
    chosen = _in_force()
    return chosen if any(backend.name == chosen for backend in backends) else name


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
    """What each backend says of a call.

    Args:
        backends: those of an operator.
        tensor: first tensor of the call.

    Returns:
        Name → "can run", or why it cannot, or that `use_backend` chose another.
    """
    chosen = asked(backends, "auto")
    aside = f"set aside: use_backend({chosen!r}) is in force"
    return {
        backend.name: backend.why_not(tensor) or ("can run" if chosen in {"auto", backend.name} else aside)
        for backend in backends
    }


def in_full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which products keep the dtype of their factors, as operators that promise float32 need it.

    Args:
        tensor: first tensor of the call.

    Returns:
        Automatic mixed precision switched off, where it is on.
    """
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def differentiable_gradients(
    run: Callable[..., Any], inputs: Sequence[Tensor | None], outgoing: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, for paths whose own backward pass cannot.

    Args:
        run: the same computation in torch, which takes the inputs and gives a tensor or several.
        inputs: tensors, None for those left out.
        outgoing: gradients of what `run` gives, None for zeros.

    Returns:
        A gradient for each input that needs one, else None.
    """
    with torch.enable_grad():
        # Aliases, so that an input that was computed from another does not count for it.
        given = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        made = run(*given)
        made = (made,) if isinstance(made, Tensor) else made
        outputs = [tensor for tensor, gradient in zip(made, outgoing, strict=True) if gradient is not None]
        gradients = [gradient for gradient in outgoing if gradient is not None]
        wanted = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in given]
