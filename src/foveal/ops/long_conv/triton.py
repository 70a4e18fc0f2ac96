"""Long convolution with one fused Triton kernel, for CUDA devices: reads the input once and writes the output once.

A program keeps one channel and head of one sequence, as a matrix of n₁ × n₂ positions, in fast memory from the first
product to the last: two products forward, the kernel's frequencies, two products back (see `butterfly`). The
frequencies of the kernel, which all sequences share, are computed by torch beforehand. Sequences whose matrix does not
fit use the other backends. The gradient of the input is the same kernel with conjugate frequencies; the gradient of the
weights, a sum over the sequences, is left to torch.fft. The kernel is defined in `foveal.ops.long_conv.triton_kernel`,
which is imported, and compiled by Triton, on the first call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from foveal.ops.backends import differentiable_gradients
from foveal.ops.long_conv.butterfly import dft, roots
from foveal.ops.long_conv.eager import both_sides, least_length
from foveal.ops.triton import why_not as no_triton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MOST", "fused", "long_conv_triton", "why_not"]

# Longest sequence; with the padding, a matrix of 64 × 64. On Hopper the next size would need 288 KiB of shared memory,
# more than the GPU has.
MOST = 2048


def why_not(u: Tensor) -> str | None:
    """Why the kernel cannot run.

    Args:
        u: input of the call.

    Returns:
        None if it can, else the reason and what to do.
    """
    reason = no_triton(u)
    if reason is not None:
        return reason
    if u.shape[-1] > MOST:
        return f"the fused kernel holds sequences of up to {MOST}, got {u.shape[-1]}"
    return None


def _parts(n: int) -> tuple[int, int]:
    """Powers of two, at least 16 each as Triton's products require, whose product is at least n."""
    power = max(8, (n - 1).bit_length())
    return 1 << power // 2, 1 << -(-power // 2)


def _launch(n: int) -> dict[str, Any]:
    """Compile options for a matrix of n positions."""
    return {"num_warps": 4 if n <= 1024 else 8, "enable_fp_fusion": True}


def fused(u: Tensor, spectrum: tuple[Tensor, Tensor], parts: tuple[int, int], D: Tensor | None) -> Tensor:
    """Launch the kernel.

    Args:
        u: input, (B, H or 1, C, L), float32.
        spectrum: real and imaginary part of the kernel's frequencies, (H, C, n₁·n₂), in `butterfly`'s order.
        parts: n₁, n₂.
        D: skip weights, (H, C), or None.

    Returns:
        (B, H, C, L), float32.
    """
    from foveal.ops.long_conv import triton_kernel

    batch, given, channels, length = u.shape
    heads = spectrum[0].shape[0]
    out = u.new_empty(batch, heads, channels, length)
    n = parts[0] * parts[1]
    first, second, twiddle = (
        torch.stack(roots(size, rows, columns, u)).contiguous()
        for size, rows, columns in ((parts[0],) * 3, (parts[1],) * 3, (n, *parts))
    )
    triton_kernel.convolve[(batch, heads * channels)](
        u.contiguous(), *(part.contiguous() for part in spectrum), None if D is None else D.float().contiguous(), out,
        first, second, twiddle, length, channels, given,
        FIRST=parts[0], SECOND=parts[1], **_launch(n),
    )  # fmt: skip
    return out


def _circular(u: Tensor, both: Tensor, skip: Tensor | None, *, n: int) -> Tensor:
    """The kernel's computation with torch.fft."""
    x = u.float()[:, None]
    y = torch.fft.irfft(torch.fft.rfft(x, n=n) * torch.fft.rfft(both.float(), n=n), n=n)[..., : u.shape[2]]
    return (y if skip is None else y + skip.float()[..., None] * x).to(u.dtype)


class _Fused(torch.autograd.Function):
    """Inputs: u (B, C, L), the combined kernel (H, C, n or K), D, and n₁, n₂."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, both: Tensor, skip: Tensor | None, parts: tuple[int, int]) -> Tensor:
        spectrum = dft(both.float(), parts)
        ctx.save_for_backward(u, both, skip, *spectrum)
        ctx.parts = parts
        return fused(u.float()[:, None], spectrum, parts, skip).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, both, skip, real, imaginary = ctx.saved_tensors
        grad, n = grads[0].float(), ctx.parts[0] * ctx.parts[1]
        if torch.is_grad_enabled():  # double backward, which the kernel does not support
            found = differentiable_gradients(partial(_circular, n=n), (u, both, skip), grads)
            return *found, None
        of_u = of_both = of_skip = None
        if ctx.needs_input_grad[0]:
            of_u = fused(grad, (real, -imaginary), ctx.parts, skip).sum(1).to(u.dtype)
        if ctx.needs_input_grad[1]:
            signal, wanted = torch.fft.rfft(u.float(), n=n)[:, None], torch.fft.rfft(grad, n=n)
            of_both = torch.fft.irfft((signal.conj() * wanted).sum(0), n=n)[..., : both.shape[-1]].to(both.dtype)
        if ctx.needs_input_grad[2]:
            of_skip = (grad * u.float()[:, None]).sum((0, 3)).to(skip.dtype)
        return of_u, of_both, of_skip, None


def long_conv_triton(u: Tensor, kernel: Tensor, D: Tensor | None, reverse: Tensor | None) -> Tensor:
    """`long_conv_reference` with the fused kernel.

    Args:
        u: input, (B, C, L).
        kernel: causal kernel, (H, C, K), K at most L.
        D: skip weights, (H, C).
        reverse: anticausal kernel, (H, C, K'), K' at most L.

    Returns:
        Output, (B, H, C, L), in the dtype of `u`.
    """
    parts = _parts(least_length(u, kernel, reverse))
    return _Fused.apply(u, both_sides(kernel, reverse, parts[0] * parts[1]), D, parts)
