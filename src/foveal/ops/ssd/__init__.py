"""State space duality (SSD), the recurrence of Mamba-2: a causal and a non-causal form, one function each.

The causal form has a compiled kernel for CPUs. The non-causal form is just two matrix products, which torch computes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, in_full_precision, reasons
from foveal.ops.native import tell_once
from foveal.ops.ssd import native
from foveal.ops.ssd.attention import ssd_by
from foveal.ops.ssd.eager import ssd_eager, ssd_noncausal_eager
from foveal.ops.ssd.reference import ssd_noncausal_reference, ssd_reference
from foveal.ops.ssd.triton import attend_triton
from foveal.ops.triton import why_not as no_triton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["explain", "ssd", "ssd_noncausal"]

# Matrix products in torch are fast on a GPU too; Triton's kernel will be preferred once a measurement shows a gain.
BACKENDS = (
    Backend("native", partial(ssd_by, native.attend_native), native.why_not),
    Backend("eager", ssd_eager, lambda _: None),
    Backend("triton", partial(ssd_by, attend_triton), no_triton),
    Backend("reference", ssd_reference, lambda _: None),
)
NONCAUSAL = (
    Backend("eager", ssd_noncausal_eager, lambda _: None),
    Backend("reference", ssd_noncausal_reference, lambda _: None),
)


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None = None,
) -> None:
    if x.ndim != 4:
        raise ShapeError(f"x must be (batch, length, heads, channels), got {tuple(x.shape)}")
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias, "initial_state": initial_state}
    check_alike(named)
    batch, length, heads, channels = x.shape
    check_shape("dt", dt, (batch, length, heads), "one step for each token and head of x")
    check_shape("A", A, (heads,), "one decay for each head of x")
    if B.ndim != 4 or B.shape[:2] != x.shape[:2]:
        raise ShapeError(f"B must be ({batch}, {length}, groups, states), got {tuple(B.shape)}")
    check_shape("C", C, tuple(B.shape), "like B")
    if not B.shape[2] or heads % B.shape[2]:
        raise ShapeError(f"the {heads} heads of x must divide into the groups of B and C, got {B.shape[2]}")
    if D is not None and D.ndim == 2:
        check_shape("D", D, (heads, channels), "one value for each channel, or one for each head")
    elif D is not None:
        check_shape("D", D, (heads,), "one value for each head, or one for each channel")
    if dt_bias is not None:
        check_shape("dt_bias", dt_bias, (heads,), "one value for each head of x")
    if initial_state is not None:
        check_shape(
            "initial_state", initial_state, (batch, heads, channels, B.shape[3]), "(batch, heads, channels, states)"
        )


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear recurrence with one decay per head, whose steps, input and output weights depend on the input.

    Compared with mamba_ssm's `mamba_chunk_scan_combined`: x, dt, A, B and C are positional, D, dt_bias, dt_softplus and
    chunk_size keywords, `initial_states` is called `initial_state` and `return_final_states` `return_last_state`. There
    is no z (multiply the output by silu(z)), dt_limit (clamp dt first), seq_idx or cu_seqlens (call once per sequence).

    The state is float32 for all inputs but float64, which stays float64. NaNs are not checked for.

        dt = softplus(dt + dt_bias)
        S_t = exp(dt_t · A) S_{t-1} + dt_t · x_t B_tᵀ
        y_t = S_t C_t + D ∘ x_t

    Args:
        x: input, (batch, length, heads, channels).
        dt: step sizes, (batch, length, heads).
        A: decay of each head, (heads,), real, negative for a stable recurrence.
        B: input weights, (batch, length, groups, states); each group serves heads / groups adjacent heads.
        C: output weights, the same.
        D: skip weights, (heads,) or (heads, channels).
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.
        chunk_size: number of steps per chunk of `eager`; affects the speed, not the result.
        initial_state: S before the first step, (batch, heads, channels, states); None for zero.
        return_last_state: whether to return the state after the last step as well.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Output, (batch, length, heads, channels), in the dtype of `x`; with `return_last_state` also the last state,
        (batch, heads, channels, states).

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the backend is unknown, the tensors are on several devices, or `chunk_size` is below 1.
        BackendError: if the backend cannot run here.

    Example:
        >>> import torch
        >>> from foveal.ops.ssd import ssd
        >>> x, dt, B = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1), torch.ones(1, 3, 1, 1)
        >>> ssd(x, dt, -torch.ones(1), B, B).flatten()
        tensor([1.0000, 1.3679, 1.5032])
    """
    _check(x, dt, A, B, C, D, dt_bias, initial_state)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}; 64 suits most sizes")
    chosen = choose(BACKENDS, backend, x)
    if backend == "auto" and native.missing(x):
        tell_once("ssd")
    with in_full_precision(x):
        out, state = chosen.run(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, initial_state)
    return (out, state) if return_last_state else out


def ssd_noncausal(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The non-causal form, for tokens of an image: every token reads one sum over all tokens, weighted by dt.

        dt = softplus(dt + dt_bias)
        y_i = Σ_j (-A · dt_j) (C_i · B_j) x_j + D ∘ x_i

    Args:
        x: input, (batch, length, heads, channels).
        dt: step sizes, (batch, length, heads).
        A: decay of each head, (heads,), negative.
        B: input weights, (batch, length, groups, states); each group serves heads / groups adjacent heads.
        C: output weights, the same.
        D: skip weights, (heads,) or (heads, channels).
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.
        backend: "auto", "eager" or "reference".

    Returns:
        Output, (batch, length, heads, channels), in the dtype of `x`.

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the backend is unknown or the tensors are on several devices.
    """
    _check(x, dt, A, B, C, D, dt_bias)
    with in_full_precision(x):
        out: Tensor = choose(NONCAUSAL, backend, x).run(x, dt, A, B, C, D, dt_bias, dt_softplus)
    return out


def explain(x: Tensor | None = None) -> dict[str, str]:
    """Which paths of `ssd` can run, and why the others cannot.

    Args:
        x: input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1, 1) if x is None else x)
