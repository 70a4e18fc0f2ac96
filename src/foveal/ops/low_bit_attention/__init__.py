"""SageAttention2: attention with queries and keys of 4 bits and weights and values of 8, after means are taken off.

*Source*: J. Zhang et al., "SageAttention2: Efficient Attention with Thorough Outlier Smoothing and Per-thread INT4
Quantization", ICML 2025 (arXiv:2411.10958), read in abstract; the rest by the authors' code,
https://github.com/thu-ml/SageAttention.

A channel in which all tokens are large leaves 4-bit integers no room for the differences between tokens. Such channels
are large by their mean, which can be handled apart: that of K changes no softmax, that of a block of Q gives a row that
is added to the scores in full precision,

    S = δ_Q δ_K Int4(Q − q̄) Int4(K − k̄)ᵀ + q̄ (K − k̄)ᵀ;   O = softmax(S·scale) V with FP8 weights and values

with shapes q (B, H, N, D), k (B, H, M, D), v (B, H, M, E), and a step δ for every few rows that one thread of the GPU
works on. The equations one by one are in `reference.py`. `choose_bits` is the calibrated choice between 4 and 8 bits.

*Differs from the paper*: the arithmetic is emulated and no faster; there is no causal form. FP22 sums are rounded to
nearest. The mean of V is not taken off, as by default in the authors' code. Whether a layer needs 8 bits is told by the
cosine of its output alone. A GPU kernel is open.
*Provenance*: written from the paper's abstract and the authors' code. Integers of 4 and of 8 bits equal those of the
authors' quantisation kernels, run by Triton's interpreter; their CUDA kernels were read only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.cases import Operator
from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, in_full_precision, reasons
from foveal.ops.low_bit_attention.eager import sage_attention2_eager
from foveal.ops.low_bit_attention.reference import sage_attention2_reference
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["choose_bits", "explain", "sage_attention2"]

BACKENDS = (
    Backend("eager", sage_attention2_eager, lambda _: None),
    Backend("reference", sage_attention2_reference, lambda _: None),
)


@torch.no_grad()
def sage_attention2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bits: int = 4,
    smooth: bool = True,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention in the arithmetic of SageAttention2, emulated, for inference: no gradient comes back.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        v: values, (B, H, M, E).
        bits: bits of queries and keys, 4 or 8.
        smooth: whether means of queries and keys are taken off before they are rounded.
        scale: factor on the products; None for 1/√D.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Outputs, (B, H, N, E), in the type of `q`.

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if `bits` is neither 4 nor 8, the backend unknown or the tensors are on two devices.

    Example:
        >>> import torch
        >>> from foveal.ops.low_bit_attention import sage_attention2
        >>> x = torch.eye(2)[None, None]
        >>> sage_attention2(x, x, x, scale=1.0)
        tensor([[[[0.7311, 0.2611],
                  [0.2611, 0.7311]]]])
    """
    if q.ndim != 4 or 0 in q.shape:
        raise ShapeError(f"q must be (batch, heads, tokens, channels) and not empty, got {tuple(q.shape)}")
    check_alike({"q": q, "k": k, "v": v})
    batch, heads, _, dim = q.shape
    if k.ndim != 4 or not k.shape[2]:
        raise ShapeError(f"k must be (batch, heads, tokens, channels) and not empty, got {tuple(k.shape)}")
    check_shape("k", k, (batch, heads, k.shape[2], dim), "heads and channels of q")
    check_shape("v", v, (*k.shape[:3], v.shape[-1]), "a value for each key")
    if bits not in {4, 8}:
        raise ValueError(f"bits must be 4 or 8, got {bits}; 8 is for layers that lose too much with 4")
    run, dtype = choose(BACKENDS, backend, q).run, q.dtype
    if dtype != torch.float64:
        q, k, v = q.float(), k.float(), v.float()
    with in_full_precision(q):
        return run(q, k, v, bits=bits, smooth=smooth, scale=scale).to(dtype)


def choose_bits(q: Tensor, k: Tensor, v: Tensor, *, least: float = 0.99, scale: float | None = None) -> int:
    """Bits that a layer needs, from queries, keys and values that it had during calibration.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        v: values, (B, H, M, E).
        least: cosine with full attention that 4 bits must reach.
        scale: factor on the products; None for 1/√D.

    Returns:
        4, or 8 where 4 bits do not reach it.
    """
    full = F.scaled_dot_product_attention(q, k, v, scale=scale)
    cosine = F.cosine_similarity(sage_attention2(q, k, v, scale=scale).flatten(), full.flatten(), dim=0)
    return 4 if float(cosine) >= least else 8


def explain(x: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        x: queries of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1, 1) if x is None else x)


def _case(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 2, count, 6, generator=generator) for count in (133, 69))
    return {"q": q + 3, "k": k - 2, "v": torch.randn(1, 2, 69, 5, generator=generator)}


OPTIONS: dict[str, dict[str, Any]] = {"4 bits": {}, "8 bits": {"bits": 8}, "not smooth": {"smooth": False}}

METHOD = Method(
    id=131,
    name="SageAttention2",
    kind="operator",
    summary="Attention with 4-bit queries and keys and 8-bit weights and values, after means are taken off.",
    cases={
        name: Operator(partial(sage_attention2, **options), partial(sage_attention2_reference, **options), _case)
        for name, options in OPTIONS.items()
    },
    paper=Paper(
        "SageAttention2: Efficient Attention with Thorough Outlier Smoothing and Per-thread INT4 Quantization",
        "J. Zhang et al.",
        2024,
        "arXiv:2411.10958",
    ),
)
