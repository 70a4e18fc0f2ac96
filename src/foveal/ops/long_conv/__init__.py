"""Convolution with kernels as long as the sequence: one function over reference, torch.fft, butterfly and Triton."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.ops.backends import Backend, ShapeError, check_alike, choose, in_full_precision, reasons
from foveal.ops.long_conv.butterfly import long_conv_butterfly
from foveal.ops.long_conv.eager import long_conv_eager
from foveal.ops.long_conv.reference import long_conv_reference
from foveal.ops.long_conv.triton import long_conv_triton
from foveal.ops.long_conv.triton import why_not as no_triton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["explain", "long_conv"]

BACKENDS = (
    Backend("eager", long_conv_eager, lambda _: None),
    Backend("butterfly2", partial(long_conv_butterfly, order=2), lambda _: None),
    Backend("butterfly3", partial(long_conv_butterfly, order=3), lambda _: None),
    Backend("triton", long_conv_triton, no_triton),
    Backend("reference", long_conv_reference, lambda _: None),
)


def _heads(name: str, kernel: Tensor, u: Tensor, heads: int | None) -> Tensor:
    """(C, K) or (H, C, K) to (H, C, K), truncated to the length of u."""
    channels = u.shape[1]
    if kernel.ndim not in {2, 3} or kernel.shape[-2] != channels or not kernel.shape[-1]:
        raise ShapeError(f"{name} must be ({channels}, K) or (heads, {channels}, K), got {tuple(kernel.shape)}")
    if heads is not None and (kernel.shape[0] if kernel.ndim == 3 else 1) != heads:
        raise ShapeError(f"{name} must have {heads} heads like kernel, got {tuple(kernel.shape)}")
    full = kernel if kernel.ndim == 3 else kernel[None]
    # A traced length may be symbolic and is not compared with K; the transform is then long enough for all of K.
    return full if torch.compiler.is_compiling() else full[..., : u.shape[2]]


def long_conv(
    u: Tensor,
    kernel: Tensor,
    D: Tensor | None = None,
    *,
    reverse: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolution of each channel with a kernel that may be as long as the sequence.

    Computed in float32 for all inputs but float64, which stays float64.

        y_t = Σ_{j ≤ t} kernel_j u_{t-j}  +  Σ_{j ≥ 0} reverse_j u_{t+1+j}  +  D ∘ u_t

    Args:
        u: input, (B, C, L).
        kernel: weights of the current and the preceding positions, (C, K), or (H, C, K) for H outputs per channel;
            truncated to L.
        D: skip weights, (C,), or (H, C) for H outputs.
        reverse: weights of the following positions, nearest first, shaped like `kernel`; None makes the convolution
            causal.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Output, (B, C, L), or (B, H, C, L), in the dtype of `u`.

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if the backend is unknown or the tensors are on two devices.

    Example:
        >>> import torch
        >>> from foveal.ops.long_conv import long_conv
        >>> long_conv(torch.ones(1, 1, 4), torch.tensor([[1.0, 10.0]]), backend="reference")
        tensor([[[ 1., 11., 11., 11.]]])
    """
    if u.ndim != 3:
        raise ShapeError(f"u must be (batch, channels, length), got {tuple(u.shape)}")
    check_alike({"u": u, "kernel": kernel, "D": D, "reverse": reverse})
    weights = _heads("kernel", kernel, u, None)
    heads, channels = weights.shape[:2]
    after = None if reverse is None else _heads("reverse", reverse, u, heads)
    wanted = (channels,) if kernel.ndim == 2 else (heads, channels)
    if D is not None and tuple(D.shape) != wanted:
        raise ShapeError(f"D must be {wanted}, one value for each channel and head, got {tuple(D.shape)}")
    run = choose(BACKENDS, backend, u).run
    if not torch.compiler.is_compiling() and u.shape[2] == 0:
        y = u.new_zeros(u.shape[0], heads, channels, 0)
    else:
        with in_full_precision(u):
            y = run(u, weights, None if D is None else D.reshape(heads, channels), after)
    return y if kernel.ndim == 3 else y[:, 0]


def explain(u: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        u: input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1) if u is None else u)
