"""How large a rank attention needs when its exponential becomes a polynomial, and what a real model's entries ask for.

*Source*: J. Alman, Z. Song, "Fast Attention Requires Bounded Entries", NeurIPS 2023 (arXiv:2302.13214), as used by
LoRALimits and VAR complexity limits (`foveal.evidence.studies`). For queries and keys of d channels and scores
s = q·k / d, the polynomial of degree g is a product of features, one for each monomial:

    e^s ≈ Σ_(j≤g) s^j / j! = φ(q)·φ(k),     φ_a(x) = (x/√d)^a / √(a!),  |a| ≤ g,     rank C(d+g, g)

and attention costs n·rank instead of n². Where |s| ≤ b, no entry is off by more than b^(g+1)/(g+1)! · e^b of itself.
Entries of at most B give |s| ≤ B²; the theory's threshold is B = √(ln n): well below it, for d of about ln n, the rank
stays almost constant, and above it the strong exponential time hypothesis (SETH) forbids any method to be much faster
than n², which no measurement can check. What can be is where the rank passes n: from there on, features are no gain.

*Differs from the paper*: Taylor's polynomial, of a somewhat higher degree than the best one.
*Provenance*: written from the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AttentionRank",
    "attention_rank",
    "degree_for",
    "paying_bound",
    "polynomial_features",
    "rank_of",
    "taylor_error",
]

HIGHEST = 10_000  # degree at which the search ends


def rank_of(dim: int, degree: int) -> int:
    """Number of monomials: the rank of the polynomial.

    Args:
        dim: d.
        degree: g.

    Returns:
        C(d+g, g).
    """
    return math.comb(dim + degree, degree)


def taylor_error(bound: float, degree: int) -> float:
    """Largest relative error of Taylor's polynomial of the exponential.

    Args:
        bound: largest absolute score, b.
        degree: g.

    Returns:
        b^(g+1)/(g+1)! · e^b, which the error at -b reaches within a factor of 1 + b/(g+2).
    """
    if bound == 0:
        return 0.0
    power = (degree + 1) * math.log(bound) - math.lgamma(degree + 2) + bound
    return math.exp(power) if power < 700 else math.inf


def degree_for(bound: float, error: float) -> int:
    """Least degree whose error stays within a bound.

    Args:
        bound: largest absolute score, b.
        error: relative, above 0.

    Returns:
        g.

    Raises:
        ValueError: an error or a bound that no degree serves.
    """
    if error <= 0 or not 0 <= bound < math.inf:
        raise ValueError(f"error must be above 0 and the bound finite, got {error} and {bound}")
    for degree in range(HIGHEST):
        if taylor_error(bound, degree) <= error:
            return degree
    raise ValueError(f"scores of up to {bound:g} take a degree above {HIGHEST:,}; a polynomial is of no use there")


def paying_bound(tokens: int, dim: int, error: float) -> float:
    """Largest absolute score at which the features are no more than the tokens.

    Args:
        tokens: n.
        dim: d.
        error: relative.

    Returns:
        b; the rank that `degree_for` leads to passes n above it.
    """
    degree = 0
    while rank_of(dim, degree + 1) <= tokens:
        degree += 1
    low, high = 0.0, 1.0
    while taylor_error(high, degree) <= error:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if taylor_error(middle, degree) <= error else (low, middle)
    return low


@lru_cache(maxsize=32)
def _monomials(dim: int, degree: int) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """For each degree from 1: the monomial of one degree less, the channel it is multiplied by, and 1/√(a!)."""
    levels: list[tuple[Tensor, Tensor, Tensor]] = []
    known: dict[tuple[int, ...], int] = {(): 0}
    for size in range(1, degree + 1):
        rows = list(combinations_with_replacement(range(dim), size))
        factorials = [math.prod(math.factorial(row.count(channel)) for channel in set(row)) for row in rows]
        parents, channels = [known[row[:-1]] for row in rows], [row[-1] for row in rows]
        weights = torch.tensor(factorials, dtype=torch.float64).rsqrt()
        levels.append((torch.tensor(parents), torch.tensor(channels), weights))
        known = {row: place for place, row in enumerate(rows)}
    return tuple(levels)


def polynomial_features(x: Tensor, degree: int, *, scale: float | None = None) -> Tensor:
    """Features whose products are Taylor's polynomial of e^(q·k·scale).

    Args:
        x: queries or keys, (…, n, d).
        degree: g.
        scale: factor of the products; None for 1/d.

    Returns:
        φ(x), (…, n, C(d+g, g)).
    """
    x = x * (1 / x.shape[-1] if scale is None else scale) ** 0.5
    raw = torch.ones_like(x[..., :1])
    features = [raw]
    for parents, channels, weights in _monomials(x.shape[-1], degree):
        raw = raw[..., parents.to(x.device)] * x[..., channels.to(x.device)]
        features.append(raw * weights.to(x))
    return torch.cat(features, -1)


@dataclass(frozen=True)
class AttentionRank:
    """One call of attention in a model, over all its heads and pictures.

    Args:
        tokens: n, of the keys.
        dim: d, channels of a head.
        entries: B, largest absolute entry of queries and keys, scaled as if the scores were q·k / d.
        scores: largest absolute score.
        threshold: √(ln n), what the theory compares B with.
        degree: degree of the polynomial for these scores.
        rank: number of its features.
        least_rank: rank below which no approximation of the softmax matrix, of whatever kind, has so small an error.
        side: "below" or "above" the threshold.
    """

    tokens: int
    dim: int
    entries: float
    scores: float
    threshold: float
    degree: int
    rank: int
    least_rank: int
    side: str

    @property
    def pays(self) -> bool:
        """Whether there are fewer features than tokens."""
        return self.rank < self.tokens


def _least_rank(probabilities: Tensor, error: float) -> int:
    """Largest rank, over all matrices, (…, m, n), that a relative Frobenius error takes at best."""
    energies = torch.linalg.svdvals(probabilities.flatten(0, -3)).square()
    missing = energies.flip(-1).cumsum(-1).flip(-1)
    return int((missing > error**2 * missing[..., :1]).sum(-1).max())


def _measured(q: Tensor, k: Tensor, scale: float | None, error: float) -> AttentionRank:
    tokens, dim = k.shape[-2:]
    q, k = q.float(), k.float()
    if k.shape[-3] != q.shape[-3]:  # several heads of queries for one of keys
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    factor = dim**-0.5 if scale is None else scale
    products = q @ k.mT * factor
    scores = float(products.abs().max())
    entries = float(torch.maximum(q.abs().max(), k.abs().max())) * math.sqrt(dim * factor)
    threshold = math.sqrt(math.log(tokens))
    degree = degree_for(scores, error)
    least = _least_rank(products.softmax(-1), error)
    side = "below" if entries < threshold else "above"
    return AttentionRank(tokens, dim, entries, scores, threshold, degree, rank_of(dim, degree), least, side)


class _Watch(TorchFunctionMode):
    """Hands queries, keys and scale of every fused attention to a function."""

    def __init__(self, seen: Callable[[Tensor, Tensor, float | None], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key"), args, strict=False)) | kwargs
            self.seen(named["query"], named["key"], args[6] if len(args) > 6 else kwargs.get("scale"))
        return func(*args, **kwargs)


@torch.no_grad()
def attention_rank(model: nn.Module, *inputs: Tensor, error: float = 0.01) -> list[AttentionRank]:
    """Measure what each attention of a model asks of a polynomial.

    Args:
        model: any model whose attention is torch's `scaled_dot_product_attention`, such as timm's transformers; run in
            eval mode.
        *inputs: what the model takes.
        error: relative error that is allowed, of every entry of e^s for the polynomial, of the whole softmax matrix for
            the least rank.

    Returns:
        One for each call of attention, in order.

    Raises:
        ValueError: the model called no such attention.
    """
    found: list[AttentionRank] = []
    training = model.training
    model.eval()
    try:
        with _Watch(lambda q, k, scale: found.append(_measured(q, k, scale, error))):
            model(*inputs)
    finally:
        model.train(training)
    if not found:
        raise ValueError(
            f"{type(model).__name__} called no torch.nn.functional.scaled_dot_product_attention; with timm, set "
            "timm.layers.set_fused_attn(True) before the model is built"
        )
    return found
