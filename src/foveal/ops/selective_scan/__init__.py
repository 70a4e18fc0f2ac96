"""Selective scan, the recurrence of Mamba: one function over a reference, torch, native and Triton paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, reasons
from foveal.ops.native import why_not
from foveal.ops.selective_scan.eager import selective_scan_eager
from foveal.ops.selective_scan.native import selective_scan_native
from foveal.ops.selective_scan.reference import selective_scan_reference
from foveal.ops.selective_scan.triton import selective_scan_triton
from foveal.ops.triton import why_not as no_triton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["explain", "no_native", "selective_scan"]


def _complain(named: dict[str, Tensor | None]) -> None:
    """Raise for the first tensor that holds values which are not a number; sound tensors may still overflow."""
    for name, tensor in named.items():
        if tensor is not None and (bad := int(tensor.isnan().sum())):
            raise ValueError(
                f"{name} holds {bad} values that are not a number, of {tensor.numel()}; the state would never lose them"
            )


def no_native(u: Tensor) -> str | None:
    """Why the compiled kernel cannot take a tensor.

    Args:
        u: the input it would get.

    Returns:
        None when it can, else the reason and what to do.
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
    """(C, D), (B, D, L) or (B, G, D, L) to (B, G, D, L)."""
    batch, dim, length = u.shape
    if weight.ndim == 2:
        check_shape(name, weight, (dim, states), "(C, D) when it does not depend on the input")
        return weight[None, :, :, None].expand(batch, dim, states, length)
    grouped = weight[:, None] if weight.ndim == 3 else weight
    if grouped.ndim != 4 or grouped.shape[0] != batch or grouped.shape[2:] != (states, length):
        raise ShapeError(
            f"{name} must be ({batch}, {states}, {length}) or ({batch}, groups, {states}, {length}), "
            f"got {tuple(weight.shape)}"
        )
    if not grouped.shape[1] or dim % grouped.shape[1]:
        raise ShapeError(f"the {dim} channels of u must divide into the groups of {name}, got {grouped.shape[1]}")
    return grouped


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear recurrence whose decay, input and output weights depend on the input.

    Takes what mamba_ssm's `selective_scan_fn` takes. The state is float32 whatever the inputs are, float64 for float64.

        delta = softplus(delta + delta_bias)
        h_t = exp(delta_t · A) ∘ h_{t-1} + delta_t · u_t · B_t
        out_t = (C_tᵀ h_t + D ∘ u_t) ∘ silu(z_t)

    Args:
        u: input, (B, C, L).
        delta: step sizes, (B, C, L).
        A: decay of each state, (C, D), real, negative for a stable recurrence.
        B: input weights, (C, D), (B, D, L) or (B, G, D, L).
        C: output weights, the same.
        D: skip weights, (C,).
        z: gate, (B, C, L).
        delta_bias: (C,).
        delta_softplus: whether delta goes through softplus.
        return_last_state: whether the state after the last step is returned too.
        backend: "auto", or one of those that `explain` lists.

    Returns:
        Output, (B, C, L), in the dtype of `u`; with it, on demand, the last state, (B, C, D), not differentiated.

    Raises:
        ShapeError: shapes that do not fit together.
        TypeError: integer or complex tensors.
        ValueError: an unknown backend; values that are not a number, which no later step would forget.
        BackendError: a backend that cannot run here.
        NotImplementedError: the last state, asked for while tracing for ONNX.

    Example:
        >>> import torch
        >>> from foveal.ops import selective_scan
        >>> u, delta = torch.ones(1, 2, 3), torch.ones(1, 2, 3)
        >>> selective_scan(u, delta, -torch.ones(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))[0, 0]
        tensor([1.0000, 1.3679, 1.5032])
    """
    if u.ndim != 3:
        raise ShapeError(f"u must be (batch, channels, length), got {tuple(u.shape)}")
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    check_alike(named)
    batch, dim, length = u.shape
    if A.ndim != 2 or A.shape[0] != dim:
        raise ShapeError(f"A must be ({dim}, states), one row for each channel of u, got {tuple(A.shape)}")
    check_shape("delta", delta, (batch, dim, length), "like u")
    weights_in, weights_out = _grouped("B", B, u, A.shape[1]), _grouped("C", C, u, A.shape[1])
    if weights_in.shape[1] != weights_out.shape[1]:
        groups = max(weights_in.shape[1], weights_out.shape[1])
        weights_in, weights_out = (w.repeat_interleave(groups // w.shape[1], dim=1) for w in (weights_in, weights_out))
        if weights_in.shape != weights_out.shape:
            raise ShapeError(f"the groups of B and C must divide each other, got {B.shape[1]} and {C.shape[1]}")
    if z is not None:
        check_shape("z", z, (batch, dim, length), "like u")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            check_shape(name, vector, (dim,), "one value for each channel of u")
    if return_last_state and torch.onnx.is_in_onnx_export():
        raise NotImplementedError("the last state is not exported to ONNX; leave return_last_state out")
    # On a CPU the registered operator takes everything, so that it is in traced graphs too; without the compiled kernel
    # it runs in torch and says so.
    registered = backend == "auto" and u.device.type in {"cpu", "meta"}
    run = selective_scan_native if registered else choose(BACKENDS, backend, u).run
    out, state = run(u, delta, A, weights_in, weights_out, D, z, delta_bias, delta_softplus)
    if u.device.type == "cpu" and not torch.compiler.is_compiling() and state.isnan().any():
        _complain(named)
    return (out, state.detach()) if return_last_state else out


def explain(u: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        u: the input they would get; None asks for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1) if u is None else u)
