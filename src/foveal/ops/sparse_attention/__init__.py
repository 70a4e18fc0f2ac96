"""SpargeAttn: attention that leaves out blocks of the map which the means of their tokens predict to be empty.

*Source*: J. Zhang et al., "SpargeAttn: Accurate Sparse Attention Accelerating Any Model Inference", ICML 2025
(arXiv:2502.18137), read in abstract; the rest by the authors' code, https://github.com/thu-ml/SpargeAttn.

Tokens are cut into blocks, Q_i of b_q queries and K_j of b_k keys. One small attention between the blocks' means tells
how much each pair matters; the largest pairs, up to a share τ of every row, are computed. Blocks whose tokens do not
resemble each other, of mean cosine at most θ, are no mean's business and are always computed. Inside the computation,
the product with the values is left out for a block whose scores all lie more than −λ below the running maximum:

    M = largest of softmax(q̄ k̄ᵀ·scale), up to τ of a row, or not alike;   O_i = softmax(Q_i K[M_i]ᵀ·scale) V[M_i]

with shapes q (B, H, N, D), k (B, H, M, D), v (B, H, M, E), map M (B, H, ⌈N/b_q⌉, ⌈M/b_k⌉). `reference.py` has the
equations one by one. Neighbours of a picture should be neighbours in the sequence: `grid` orders tokens along a
Hilbert curve. With τ = 1 and without a margin the result is that of full attention.

*Differs from the paper*: there is no causal form. λ is applied to whole blocks of queries, where the paper's kernel
does so for each warp, and a block that is passed over counts in no denominator, as in the authors' code. On the CPU
the kept blocks are gathered for torch's fused attention; 8-bit products are emulated. A GPU kernel is open.

*Provenance*: written from the paper's abstract and the authors' code. Maps equal those of the authors' selection, run
by Triton's interpreter; their CUDA kernels were read only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from foveal.cases import Operator
from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, in_full_precision, reasons
from foveal.ops.sparse_attention.eager import attend, block_map, sparge_attention_eager
from foveal.ops.sparse_attention.reference import hilbert_order, sparge_attention_reference
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["explain", "hilbert_order", "sparge_attention", "work"]

BACKENDS = (
    Backend("eager", sparge_attention_eager, lambda _: None),
    Backend("reference", sparge_attention_reference, lambda _: None),
)


def _check(q: Tensor, k: Tensor, v: Tensor, tau: float, theta: float, margin: float, block: tuple[int, int]) -> None:
    if q.ndim != 4 or 0 in q.shape:
        raise ShapeError(f"q must be (batch, heads, tokens, channels) and not empty, got {tuple(q.shape)}")
    check_alike({"q": q, "k": k, "v": v})
    batch, heads, _, dim = q.shape
    if k.ndim != 4 or not k.shape[2]:
        raise ShapeError(f"k must be (batch, heads, tokens, channels) and not empty, got {tuple(k.shape)}")
    check_shape("k", k, (batch, heads, k.shape[2], dim), "heads and channels of q")
    check_shape("v", v, (*k.shape[:3], v.shape[-1]), "a value for each key")
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], got {tau}; 0.98 computes nearly all of the attention, 1 all of it")
    if not -1 <= theta <= 1:
        raise ValueError(f"theta must be in [-1, 1], got {theta}; 1 computes every block")
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}; infinity passes over no block")
    if min(block) < 1:
        raise ValueError(f"block must be two numbers of at least 1, got {block}; the paper takes (128, 64)")


def sparge_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tau: float = 0.98,
    theta: float = 0.6,
    margin: float = torch.inf,
    block: tuple[int, int] = (128, 64),
    int8: bool = False,
    grid: tuple[int, int] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention without the blocks that matter least, in place of `scaled_dot_product_attention`.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        v: values, (B, H, M, E).
        tau: share of the predicted attention that a block of queries computes, τ in (0, 1].
        theta: mean cosine above which a block's mean speaks for it, θ in [-1, 1]; 1 computes every block.
        margin: distance below the running maximum, in nats, from which a block's values are left out, −λ.
        block: queries and keys of a block.
        int8: whether queries and keys are rounded to 8 bits in blocks, K without its mean, as in SageAttention.
        grid: rows and columns of the picture whose tokens these are, in reading order, to order them along a Hilbert
            curve; None to take them as they come.
        scale: factor on the products; None for 1/√D.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Outputs, (B, H, N, E).

    Raises:
        ShapeError: if the shapes do not match, or the grid does not fit.
        TypeError: if a tensor is integer or complex.
        ValueError: if a number is out of range, the backend unknown or the tensors are on two devices.

    Example:
        >>> import torch
        >>> from foveal.ops.sparse_attention import sparge_attention
        >>> q = k = v = torch.eye(4)[None, None]
        >>> sparge_attention(40 * q, k, v, block=(2, 2), theta=-1.0, tau=0.5)[0, 0, 0].tolist()
        [1.0, 2.061153737812566e-09, 0.0, 0.0]
    """
    _check(q, k, v, tau, theta, margin, block)
    run = partial(
        choose(BACKENDS, backend, q).run, tau=tau, theta=theta, margin=margin, block=block, int8=int8, scale=scale
    )
    with in_full_precision(q):
        if grid is None:
            return run(q, k, v)
        if not q.shape[2] == k.shape[2] == grid[0] * grid[1]:
            raise ShapeError(
                f"a grid of {grid[0]}×{grid[1]} has {grid[0] * grid[1]} tokens, got {q.shape[2]} queries and "
                f"{k.shape[2]} keys; leave out class tokens"
            )
        order = hilbert_order(*grid).to(q.device)
        return run(*(x.index_select(2, order) for x in (q, k, v))).index_select(2, order.argsort())


@torch.no_grad()
def work(
    q: Tensor,
    k: Tensor,
    *,
    tau: float = 0.98,
    theta: float = 0.6,
    margin: float = torch.inf,
    block: tuple[int, int] = (128, 64),
    grid: tuple[int, int] | None = None,
    scale: float | None = None,
) -> float:
    """Share of the block products of full attention that `sparge_attention` computes: two for each pair of blocks.

    Args:
        q: queries, (B, H, N, D).
        k: keys, (B, H, M, D).
        tau: τ.
        theta: θ.
        margin: −λ.
        block: queries and keys of a block.
        grid: rows and columns of the picture whose tokens these are.
        scale: factor on the products; None for 1/√D.

    Returns:
        Share, in (0, 1]; one minus the paper's sparsity.
    """
    _check(q, k, k, tau, theta, margin, block)
    if grid is not None:
        order = hilbert_order(*grid).to(q.device)
        q, k = q.index_select(2, order), k.index_select(2, order)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    kept = block_map(q, k, tau=tau, theta=theta, block=block, scale=scale)
    done = scored = int(kept.sum())
    if margin < torch.inf:
        done = attend(q, k, k, kept, block=block, scale=scale, margin=margin)[1]
    return (scored + done) / (2 * kept.numel())


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
    near = torch.randn(1, 2, 5, 6, generator=generator).repeat_interleave(4, 2)[:, :, :19]
    q, k, v = (
        size * (near + 0.3 * torch.randn(1, 2, 19, 6, generator=generator))[:, :, :count]
        for size, count in ((2, 13), (2, 19), (1, 19))
    )
    return {"q": q, "k": k, "v": v}


OPTIONS: dict[str, dict[str, Any]] = {
    "half of the mass": {"tau": 0.5, "theta": 0.0},
    "a margin": {"tau": 0.9, "theta": 0.3, "margin": 1.0},
    "8 bits": {"tau": 0.9, "theta": 0.0, "int8": True},
    "everything": {"tau": 1.0},
}

METHOD = Method(
    id=269,
    name="SpargeAttn",
    kind="operator",
    summary="Attention leaves out blocks of its map that the means of their tokens predict to be empty.",
    cases={
        name: Operator(
            partial(sparge_attention, block=(4, 3), **options),
            partial(sparge_attention_reference, block=(4, 3), **options),
            _case,
        )
        for name, options in OPTIONS.items()
    },
    paper=Paper(
        "SpargeAttn: Accurate Sparse Attention Accelerating Any Model Inference",
        "J. Zhang et al.",
        2025,
        "arXiv:2502.18137",
    ),
)
