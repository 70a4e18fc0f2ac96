"""Limits of LoRA: gradients of adapters of attention in almost linear time where queries and keys are small.

*Source*: J. Y.-C. Hu et al., "Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for Transformer Models",
ICLR 2025 (arXiv:2406.03136). For L tokens X, (L, D), and adapted weights W + (α/r)·B·A, (D, d), of queries, keys and
values, with f = softmax(Q Kᵀ/d), O = f V, G = ∂loss/∂O and δ_i = Σ_c G_ic O_ic,

    ∂V = fᵀ G      ∂Q = (f ∘ (G Vᵀ - δ)) K / d      ∂K = (f ∘ (G Vᵀ - δ))ᵀ Q / d
    ∂B = (α/r) · Xᵀ ∂Q · Aᵀ      ∂A = (α/r) · Bᵀ · Xᵀ ∂Q      for each of Q, K and V

takes L². With features, f_ij = φ(q_i)·φ(k_j) / Σ_j φ(q_i)·φ(k_j), and f ∘ (G Vᵀ) is again a product of features,
φ(q_i) ⊗ G_i and φ(k_j) ⊗ V_j, of rank R·d. No matrix of L×L is made, and time is linear in L:

    Σ_j f_ij (G_i·V_j) K_j = φ(q_i) ⊗ G_i · [Σ_j φ(k_j) ⊗ V_j ⊗ K_j] / Σ_j φ(q_i)·φ(k_j)

The rank R that an error takes rises steeply with the norm, and passes L. `foveal.measure.attention_rank` measures the
entries of any model; for adapters, after they are merged.

*Differs from the paper*: all three adapters in one chain; δ from the output, as in flash attention, in place of a
second low-rank product. That no other method is faster above the threshold √(ln L) follows from the strong exponential
time hypothesis (SETH) and is not checkable.
*Provenance*: written from the paper's formulation.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from foveal.cases import Procedure
from foveal.evidence.rehearsal import cached
from foveal.evidence.timing import seconds
from foveal.measure.attention_rank import degree_for, polynomial_features, rank_of
from foveal.record import Method, Paper, bound, equal, grows

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Setting", "exact_gradients", "lora_gradients", "low_rank_gradients", "needed_rank", "setting"]

WIDTH, DIM, RANK, ALPHA = 16, 4, 2, 4.0
SMALL = 0.5  # bound of the entries of queries and keys
ERROR = 1e-3
TOKENS = 256
SIZES = (512, 1024, 2048, 4096)
HIGHEST = 40


class Setting(NamedTuple):
    """A layer of attention with adapters, and what it should give.

    Args:
        x: tokens, (L, D).
        weights: merged weights of queries, keys and values, each (D, d).
        ups: B of each adapter, (D, r).
        downs: A of each adapter, (r, d).
        wanted: outputs, (L, d); the loss is half the squared distance from them.
    """

    x: Tensor
    weights: tuple[Tensor, ...]
    ups: tuple[Tensor, ...]
    downs: tuple[Tensor, ...]
    wanted: Tensor


def setting(tokens: int, entries: float, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Setting:
    """A drawn layer in which queries and keys have a given largest entry.

    Args:
        tokens: L.
        entries: B, of queries and keys.
        dtype: floating-point type.
        seed: seed of all numbers.

    Returns:
        The setting.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, wanted = normal(tokens, WIDTH), normal(tokens, DIM)
    weights, ups, downs = [], [], []
    for name in "qkv":
        up, down = normal(WIDTH, RANK), normal(RANK, DIM)
        merged = normal(WIDTH, DIM) + ALPHA / RANK * up @ down
        size = 1.0 if name == "v" else entries / float((x @ merged).abs().max())
        weights.append((size * merged).to(dtype))
        ups.append((size**0.5 * up).to(dtype))
        downs.append((size**0.5 * down).to(dtype))
    return Setting(x.to(dtype), tuple(weights), tuple(ups), tuple(downs), wanted.to(dtype))


def exact_gradients(q: Tensor, k: Tensor, v: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of half the squared error of softmax(q kᵀ/d) v, by the whole matrix.

    Args:
        q: queries, (L, d).
        k: keys, (L, d).
        v: values, (L, d).
        wanted: outputs that are wanted, (L, d).

    Returns:
        Gradients of q, k and v.
    """
    dim = q.shape[-1]
    probabilities = torch.softmax(q @ k.T / dim, -1)
    out = probabilities @ v
    outgoing = out - wanted
    of_scores = probabilities * (outgoing @ v.T - (outgoing * out).sum(-1, keepdim=True))
    return of_scores @ k / dim, of_scores.T @ q / dim, probabilities.T @ outgoing


def low_rank_gradients(
    q: Tensor, k: Tensor, v: Tensor, wanted: Tensor, *, degree: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by polynomial features, in time linear in L.

    Args:
        q: queries, (L, d).
        k: keys, (L, d).
        v: values, (L, d).
        wanted: outputs that are wanted, (L, d).
        degree: degree of the polynomial.

    Returns:
        Gradients of q, k and v.
    """
    dim = q.shape[-1]
    of_k, of_q = polynomial_features(k, degree), polynomial_features(q, degree)
    of_q = of_q / (of_q @ of_k.sum(0))[:, None]  # now f = of_q @ of_k.T
    out = of_q @ (of_k.T @ v)
    outgoing = out - wanted
    delta = (outgoing * out).sum(-1, keepdim=True)

    def chained(at: Tensor, of_at: Tensor, there: Tensor, of_there: Tensor, moved: Tensor) -> Tensor:
        """Σ_j f_ij (at_i · there_j) moved_j."""
        both = (there[:, :, None] * moved[:, None]).flatten(1)  # (L, d·d)
        return torch.einsum("lc,lce->le", at, (of_at @ (of_there.T @ both)).unflatten(1, (dim, dim)))

    gradient_q = chained(outgoing, of_q, v, of_k, k) - delta * (of_q @ (of_k.T @ k))
    gradient_k = chained(v, of_k, outgoing, of_q, q) - of_k @ (of_q.T @ (delta * q))
    return gradient_q / dim, gradient_k / dim, of_k @ (of_q.T @ outgoing)


def lora_gradients(given: Setting, gradients: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Gradients of all adapters.

    Args:
        given: the layer.
        gradients: function of queries, keys, values and wanted outputs to their gradients.

    Returns:
        Those of B and A of queries, keys and values, flat, one after the other.
    """
    parts = []
    projected = gradients(*(given.x @ weight for weight in given.weights), given.wanted)
    for gradient, up, down in zip(projected, given.ups, given.downs, strict=True):
        of_weight = ALPHA / RANK * given.x.T @ gradient  # (D, d)
        parts += [(of_weight @ down.T).flatten(), (up.T @ of_weight).flatten()]
    return torch.cat(parts)


def _autograd(given: Setting) -> Tensor:
    """The same by autograd, adapters apart from the weights."""
    leaves = [t.clone().requires_grad_() for pair in zip(given.ups, given.downs, strict=True) for t in pair]
    q, k, v = (
        given.x @ (weight - ALPHA / RANK * (up @ down).detach() + ALPHA / RANK * up @ down)
        for weight, up, down in zip(given.weights, leaves[::2], leaves[1::2], strict=True)
    )
    out = torch.softmax(q @ k.T / DIM, -1) @ v
    return torch.cat([g.flatten() for g in torch.autograd.grad(0.5 * (out - given.wanted).square().sum(), leaves)])


def relative_error(given: Setting, degree: int) -> float:
    """How far the chained gradients are from the exact ones.

    Args:
        given: the layer.
        degree: degree of the polynomial.

    Returns:
        Norm of the difference over the norm of the exact gradients, the largest over the adapters' factors.
    """
    exact = lora_gradients(given, exact_gradients)
    near = lora_gradients(given, lambda *args: low_rank_gradients(*args, degree=degree))
    sizes = [factor.numel() for pair in zip(given.ups, given.downs, strict=True) for factor in pair]
    pairs = zip(near.split(sizes), exact.split(sizes), strict=True)
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


@cached(maxsize=16)
def needed_rank(entries: float, *, tokens: int = TOKENS) -> int:
    """Rank at which the chained gradients of a drawn layer are met.

    Args:
        entries: B, of queries and keys.
        tokens: L.

    Returns:
        Number of features of the least degree with an error of at most 1e-3.

    Raises:
        ArithmeticError: no degree up to 40 serves.
    """
    given = setting(tokens, entries)
    for degree in range(HIGHEST):
        if relative_error(given, degree) <= ERROR:
            return rank_of(DIM, degree)
    raise ArithmeticError(f"entries of {entries:g} take a degree above {HIGHEST}")


def _seconds(tokens: int, *, low_rank: bool) -> float:
    given = setting(tokens, SMALL, dtype=torch.float32)
    degree = degree_for(SMALL**2, ERROR)

    def gradients(*args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return low_rank_gradients(*args, degree=degree) if low_rank else exact_gradients(*args)

    return seconds(lambda: lambda: lora_gradients(given, gradients))


METHOD = Method(
    id=267,
    name="LoRALimits",
    kind="study",
    summary="Gradients of LoRA in attention by polynomial features: linear in the tokens while the norms are small.",
    paper=Paper(
        "Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for Transformer Models",
        "J. Y.-C. Hu et al.",
        2025,
        "arXiv:2406.03136",
    ),
    cases={"error": Procedure(lambda seed: relative_error(setting(6, 0.5, seed=seed), 2))},
)


def _of_threshold(share: float) -> float:
    return float(needed_rank(share * math.log(TOKENS) ** 0.5))


CLAIMS = (
    equal(
        "The chain with the whole matrix is autograd's gradient.",
        ours=lambda: lora_gradients(setting(60, 1.0), exact_gradients),
        theirs=lambda: _autograd(setting(60, 1.0)),
        tolerance=1e-10,
        beyond="gradients written as a chain of products",
    ),
    bound(
        f"The low-rank chain is within 1e-3 of the exact gradients of each factor, for entries of up to {SMALL}.",
        paper="within 1/poly(L)",
        value=lambda: max(
            relative_error(setting(TOKENS, SMALL, seed=seed), degree_for(SMALL**2, ERROR)) for seed in range(3)
        ),
        at_most=ERROR,
        unit="of the exact gradient",
        clause=1,
    ),
    grows(
        f"Its time from {SIZES[0]} to {SIZES[-1]:,} tokens.",
        paper="almost linear",
        cost=partial(_seconds, low_rank=True),
        sizes=SIZES,
        exponent=(0.0, 1.3),
        rounds=3,
        clause=2,
    ),
    grows(
        f"Exact gradients from {SIZES[0]} to {SIZES[-1]:,} tokens take time of at least a power of 1.7.",
        paper="quadratic",
        cost=partial(_seconds, low_rank=False),
        sizes=SIZES,
        exponent=(1.7, float("inf")),
        rounds=3,
        clause=2,
    ),
    bound(
        "From the threshold √(ln L) to twice it, the rank that an error of 1e-3 takes grows tenfold.",
        paper="phase transition",
        value=lambda: _of_threshold(2.0) / _of_threshold(1.0),
        at_least=10.0,
        unit="times",
        clause=3,
    ),
    bound(
        "That doubling costs at least twice the factor of the doubling that leads up to the threshold.",
        paper="phase transition",
        value=lambda: _of_threshold(2.0) * _of_threshold(0.5) / _of_threshold(1.0) ** 2,
        at_least=2.0,
        unit="times",
        clause=3,
    ),
    bound(
        f"At half the threshold it is below L = {TOKENS}.",
        paper="efficient below the threshold",
        value=lambda: _of_threshold(0.5) / TOKENS,
        at_most=1.0,
        unit="of L",
        clause=3,
    ),
    bound(
        f"At twice the threshold it is above L = {TOKENS}.",
        paper="not above it",
        value=lambda: _of_threshold(2.0) / TOKENS,
        at_least=1.0,
        unit="of L",
        clause=3,
    ),
)
