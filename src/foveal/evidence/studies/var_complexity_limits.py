"""Limits of next-scale attention: work n⁴ for maps of n×n, about n² by polynomials where entries are small.

*Source*: Y. Ke et al., "On Computational Limits and Provably Efficient Criteria of Visual Autoregressive Models: A
Fine-Grained Complexity Analysis", 2025 (arXiv:2501.04377). A visual autoregressive model (VAR) draws maps of growing
sides, and each token of a map attends to all maps so far:

    work = Σ_k h_k² · Σ_(j≤k) h_j²,      with features of rank R   Σ_k h_k² · R

multiplications a channel. With n the last side and sides that double, these grow as n⁴ and as n². The features are
those of `foveal.measure.attention_rank`: their error for entries of at most B falls as B^(2g+2)/(g+1)! · e^(B²) with
the degree g, and their rank passes the number of tokens, L, before B reaches √(ln L), for d = ln L channels.

*Differs from the paper*: numbers for small matrices instead of a proof. That no other method is faster above the
threshold follows from the strong exponential time hypothesis (SETH) and is not checkable.
*Provenance*: written from the abstract and the formulas it rests on, see `foveal.measure.attention_rank`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import timm
import torch

from foveal.cases import Procedure
from foveal.measure.attention_rank import (
    AttentionRank,
    attention_rank,
    polynomial_features,
    rank_of,
    taylor_error,
)
from foveal.record import Method, Paper, bound, grows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["VAR_SIDES", "drawn", "entry_error", "needed_rank", "pyramid_work"]

VAR_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of VAR for pictures of 256×256
BOUNDS, DEGREES = (0.5, 1.0, 1.5, 2.0), range(9)
TOKENS = (64, 256, 1024)
ERROR = 0.1


def pyramid_work(sides: Sequence[int], *, rank: int | None = None) -> int:
    """Products of one channel that attention over all scales takes.

    Args:
        sides: of the maps, h_k.
        rank: number of features in place of the keys, R; None for exact attention.

    Returns:
        Their number.
    """
    total, work = 0, 0
    for side in sides:
        total += side**2
        work += side**2 * (total if rank is None else rank)
    return work


def _work(side: int, *, rank: int | None = None) -> float:
    """Work for maps whose sides double from 1 to a side."""
    return float(pyramid_work([2**power for power in range(side.bit_length())], rank=rank))


def drawn(tokens: int, dim: int, entries: float, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and keys with uniform entries, among them the largest and the least score that the bound allows.

    Args:
        tokens: n, at least 2.
        dim: d.
        entries: B.
        seed: seed of the entries.

    Returns:
        Two of (n, d), float64.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k = (2 * torch.rand(2, tokens, dim, generator=generator, dtype=torch.float64) - 1) * entries
    q[0], k[0], k[1] = entries, entries, -entries
    return q, k


def entry_error(q: Tensor, k: Tensor, degree: int) -> float:
    """Largest relative error of an entry of the matrix that the features give.

    Args:
        q: queries, (n, d).
        k: keys, (n, d).
        degree: g.

    Returns:
        max |φ(q)·φ(k) e^(-s) - 1|.
    """
    exact = (q @ k.T / q.shape[-1]).exp()
    near = polynomial_features(q, degree) @ polynomial_features(k, degree).T
    return float((near / exact - 1).abs().max())


def needed_rank(tokens: int, entries: float, *, error: float = ERROR) -> int:
    """Rank at which all entries of a drawn matrix of exponentials are met, for d = ln n channels.

    Args:
        tokens: n.
        entries: B.
        error: relative error of an entry.

    Returns:
        C(d+g, g) for the least degree g that serves; the error is measured on scores, which the features would give.
    """
    dim = round(math.log(tokens))
    q, k = drawn(tokens, dim, entries)
    scores = q @ k.T / dim
    near, term, degree = torch.ones_like(scores), torch.ones_like(scores), 0
    while (near / scores.exp() - 1).abs().max() > error:
        degree += 1
        term = term * scores / degree
        near = near + term
    return rank_of(dim, degree)


def _beside_taylor() -> tuple[float, float]:
    """Smallest and largest error over what Taylor's remainder allows."""
    shares = [
        entry_error(*drawn(48, 4, entries), degree) / taylor_error(entries**2, degree)
        for entries in BOUNDS
        for degree in DEGREES
    ]
    return min(shares), max(shares)


def _share_of_threshold(share: float) -> list[float]:
    return [needed_rank(tokens, share * math.log(tokens) ** 0.5) / tokens for tokens in TOKENS]


def _of_a_transformer() -> list[AttentionRank]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224")
    return attention_rank(model, torch.randn(1, 3, 224, 224))


METHOD = Method(
    id=54,
    name="VAR complexity limits",
    kind="study",
    summary="Below which size of queries and keys next-scale attention can be a polynomial of low rank, in numbers.",
    paper=Paper(
        "On Computational Limits and Provably Efficient Criteria of Visual Autoregressive Models: "
        "A Fine-Grained Complexity Analysis",
        "Y. Ke et al.",
        2025,
        "arXiv:2501.04377",
    ),
    cases={"error": Procedure(lambda seed: entry_error(*drawn(5, 2, 1.0, seed=seed), 2))},
)

CLAIMS = (
    bound(
        f"Errors of the features stay below Taylor's remainder, for bounds of {BOUNDS[0]} to {BOUNDS[-1]} and degrees "
        f"of 0 to {DEGREES[-1]}.",
        paper="Taylor bound",
        value=lambda: _beside_taylor()[1],
        at_most=1.0 + 1e-6,
        unit="of the bound at most",
        clause=1,
    ),
    bound(
        "They fall as the remainder does: none is below a tenth of it.",
        paper="Taylor bound",
        value=lambda: _beside_taylor()[0],
        at_least=0.1,
        unit="of the bound at least",
        clause=1,
    ),
    bound(
        f"At √(ln L) the rank exceeds L, for {TOKENS[0]} to {TOKENS[-1]:,} tokens.",
        paper="critical threshold",
        value=lambda: min(_share_of_threshold(1.0)),
        at_least=1.0,
        unit="times L at least",
        clause=2,
    ),
    bound(
        "At a quarter of √(ln L) it is less than L.",
        paper="sub-quartic below the threshold",
        value=lambda: max(_share_of_threshold(0.25)),
        at_most=1.0,
        unit="times L at most",
        clause=2,
    ),
    bound(
        "In a vision transformer with heads of 64 channels, as drawn by timm, the rank for 1 % exceeds the tokens in "
        "each layer.",
        paper="",
        value=lambda: min(found.rank / found.tokens for found in _of_a_transformer()),
        at_least=1.0,
        unit="times L at least",
        beyond="the criterion on a model",
    ),
    grows(
        "Work of exact attention grows as the fourth power of the last side, where sides double.",
        paper="O(n⁴)",
        cost=_work,
        sizes=(16, 32, 64, 128, 256),
        exponent=(3.95, 4.05),
        beyond="naive attention takes O(n⁴)",
    ),
    grows(
        "With features of a fixed rank it grows as the second power.",
        paper="O(n²)",
        cost=partial(_work, rank=64),
        sizes=(16, 32, 64, 128, 256),
        exponent=(1.95, 2.05),
        beyond="almost n² below the threshold",
    ),
)
