"""Selective scan, the recurrence of Mamba: one function over reference, torch, native and Triton backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch

from foveal.ops.backends import Backend, ShapeError, asked, check_alike, check_shape, choose, reasons
from foveal.ops.native import why_not
from foveal.ops.selective_scan.eager import selective_scan_eager
from foveal.ops.selective_scan.native import selective_scan_native
from foveal.ops.selective_scan.reference import selective_scan_reference
from foveal.ops.selective_scan.triton import selective_scan_triton
from foveal.ops.triton import why_not as no_triton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["explain", "no_native", "selective_scan"]


def no_native(u: Tensor) -> str | None:
    """Why the compiled kernel cannot take a tensor.

    Args:
        u: input of the call.

    Returns:
        None if it can, else the reason and what to do.
    """
    if u.device.type not in {"cpu", "meta"}:
        return f"native kernels run on the CPU, the tensors are on {u.device}"
    if u.dtype == torch.float64:
        return "native kernels compute in float32, the tensors are float64"
    return why_not()


BACKENDS = (
    Backend("native", selective_scan_native, no_native),
    Backend("triton", selective_scan_triton, no_triton),
    Backend("eager", selective_scan_eager, lambda _: None),
    Backend("reference", selective_scan_reference, lambda _: None),
)


def _grouped(name: str, weight: Tensor, u: Tensor, states: int) -> Tensor:
    """(dim, states) unchanged; (batch, states, L) or (batch, groups, states, L) to the latter."""
    batch, dim, length = u.shape
    if weight.ndim == 2:
        check_shape(name, weight, (dim, states), "(dim, states) when it does not depend on the input")
        return weight
    grouped = weight[:, None] if weight.ndim == 3 else weight
    if grouped.ndim != 4 or grouped.shape[0] != batch or grouped.shape[2:] != (states, length):
        raise ShapeError(
            f"{name} must be ({batch}, {states}, {length}) or ({batch}, groups, {states}, {length}), "
            f"got {tuple(weight.shape)}"
        )
    if not grouped.shape[1] or dim % grouped.shape[1]:
        raise ShapeError(f"the {dim} channels of u must divide into the groups of {name}, got {grouped.shape[1]}")
    return grouped


def _of_equal_groups(weights_in: Tensor, weights_out: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat the one with fewer groups, so that both are (batch, groups, states, L)."""
    given = weights_in.shape[1], weights_out.shape[1]
    if given[0] == given[1]:
        return weights_in, weights_out
    most = max(given)
    if most % min(given):
        raise ShapeError(f"the groups of B and C must divide each other, got {given[0]} and {given[1]}")
    weights_in, weights_out = (w.repeat_interleave(most // w.shape[1], dim=1) for w in (weights_in, weights_out))
    return weights_in, weights_out


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
    *,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    return_last_state: Literal[True],
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear recurrence whose decay, input and output weights depend on the input.

    Accepts the arguments of mamba_ssm's `selective_scan_fn`, but A must be real: the complex states of S4 are not
    supported. The state is float32 for all inputs but float64, which stays float64. NaNs are not checked for; they
    propagate as in ordinary arithmetic.

        delta = softplus(delta + delta_bias)
        h_t = exp(delta_t · A) ∘ h_{t-1} + delta_t · u_t · B_t
        out_t = (C_tᵀ h_t + D ∘ u_t) ∘ silu(z_t)

    A long sequence can be scanned in pieces, each starting from the last state of the one before; gradients flow
    through the states.

    Args:
        u: input, (batch, dim, length).
        delta: step sizes, (batch, dim, length).
        A: decay of each state, (dim, states), real, negative for a stable recurrence.
        B: input weights, (dim, states), (batch, states, length) or (batch, groups, states, length).
        C: output weights, the same.
        D: skip weights, (dim,).
        z: gate, (batch, dim, length).
        delta_bias: bias added to delta, (dim,).
        delta_softplus: whether softplus is applied to delta.
        return_last_state: whether to return the state after the last step as well.
        initial_state: h before the first step, (batch, dim, states); None for zeros.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Output, (batch, dim, length), in the dtype of `u`; with `return_last_state` also the last state, (batch, dim,
        states).

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the backend is unknown or the tensors are on several devices.
        BackendError: if the backend cannot run here.
        NotImplementedError: if an initial or last state is used while tracing for ONNX.

    Example:
        >>> import torch
        >>> from foveal.ops import selective_scan
        >>> u, delta = torch.ones(1, 2, 3), torch.ones(1, 2, 3)
        >>> selective_scan(u, delta, -torch.ones(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))[0, 0]
        tensor([1.0000, 1.3679, 1.5032])
    """
    if u.ndim != 3:
        raise ShapeError(f"u must be (batch, channels, length), got {tuple(u.shape)}")
    if A.is_complex():
        raise TypeError(
            f"A must be real, got {A.dtype}; complex states are not supported, foveal.models.sequence.s4d has them"
        )
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    check_alike({**named, "initial_state": initial_state})
    batch, dim, length = u.shape
    if A.ndim != 2 or A.shape[0] != dim:
        raise ShapeError(f"A must be ({dim}, states), one row for each channel of u, got {tuple(A.shape)}")
    check_shape("delta", delta, (batch, dim, length), "like u")
    weights_in, weights_out = _grouped("B", B, u, A.shape[1]), _grouped("C", C, u, A.shape[1])
    if weights_in.ndim == weights_out.ndim == 4:
        weights_in, weights_out = _of_equal_groups(weights_in, weights_out)
    if z is not None:
        check_shape("z", z, (batch, dim, length), "like u")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            check_shape(name, vector, (dim,), "one value for each channel of u")
    if initial_state is not None:
        check_shape("initial_state", initial_state, (batch, dim, A.shape[1]), "(batch, dim, states)")
    if torch.onnx.is_in_onnx_export():
        if return_last_state:
            raise NotImplementedError("the last state cannot be exported to ONNX; omit return_last_state")
        if initial_state is not None:
            raise NotImplementedError("an initial state cannot be exported to ONNX; omit initial_state")
    # On a CPU every call goes through the registered operator, so that traced graphs contain it too; without the
    # compiled kernel it runs in torch and warns.
    registered = asked(BACKENDS, backend) == "auto" and u.device.type in {"cpu", "meta"}
    run = selective_scan_native if registered else choose(BACKENDS, backend, u).run
    out, state = run(u, delta, A, weights_in, weights_out, D, z, delta_bias, delta_softplus, initial_state)
    return (out, state) if return_last_state else out


def explain(u: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        u: input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1) if u is None else u)
