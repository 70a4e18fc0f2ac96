"""T3-Merge: two models of one shape, whose weights are interpolated anew for each picture or batch.

*Source*: R. Imam et al., "T3: Test-Time Model Merging in VLMs for Zero-Shot Medical Imaging Analysis", 2025
(arXiv:2510.27265), section 3. A generalist θ_g and an expert θ_e classify x; how far their class distributions p and q
are apart sets the share of the expert, and the merged model answers:

    JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m),  m = (p + q) / 2                   in [0, ln 2]
    λ(x)     = λ_low + (λ_high - λ_low) · σ(γ · JS(p(x), q(x)))              (B,)
    θ(x)     = (1 - λ) θ_g + λ θ_e

Each picture has its λ ("sample"), or all pictures of a batch share the mean of theirs ("batch"). Nothing is trained.
The sign of γ says whom to trust when the models disagree: γ > 0 gives the expert a larger share then, γ < 0 the
generalist. The authors' README has γ = 0.5; their abstract, where the merge defers to the generalist under drift, would
take a negative one.

*Differs from the paper*: pictures whose λ is equal after rounding to `levels` steps share one merged model, so that B
pictures take at most levels + 1 merges rather than B; `levels=0` rounds nothing. A classifier takes the place of CLIP
with its class names.

*Provenance*: written from the abstract and the formula of λ in the authors' README; their code was not at hand.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from foveal.adapt.delta import AdaptError, Replaced, tensor_of
from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from foveal.adapt.delta import Delta

__all__ = ["T3Merge", "coefficient", "jensen_shannon"]


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two class distributions, symmetric.

    Args:
        first: logits, (B, K).
        second: logits, (B, K).

    Returns:
        Nats, (B,), in [0, ln 2].
    """
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    none = torch.zeros_like(log_m)  # a class of probability 0 counts for nothing
    apart = (torch.where(log.isinf(), none, log.exp() * (log - log_m)).sum(-1) for log in (log_p, log_q))
    return 0.5 * sum(apart, none.sum(-1)).clamp_min(0)


def coefficient(divergence: Tensor, *, low: float = 0.0, high: float = 1.0, gamma: float = 0.5) -> Tensor:
    """Share of the expert, monotonic in the divergence: half-way between `low` and `high` where the models agree.

    Args:
        divergence: nats, of any shape.
        low: λ_low, in [0, 1].
        high: λ_high, in [low, 1].
        gamma: γ; positive for a larger share of the expert where the models disagree, negative for a smaller one.

    Returns:
        λ, of the same shape.

    Raises:
        ValueError: bounds outside [0, 1] or in the wrong order.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low and high must be ordered in [0, 1], got {low} and {high}; 0 and 1 allow everything")
    return low + (high - low) * torch.sigmoid(gamma * divergence)


class T3Merge(nn.Module):
    """A generalist and an expert as one classifier, (B, …) to (B, K).

    Args:
        generalist: classifier in eval mode; it stays as it is.
        delta: what makes it the expert, such as `foveal.adapt(…).delta` or `difference(generalist, expert)`.
        low: smallest share of the expert, see `coefficient`.
        high: largest share.
        gamma: γ, see `coefficient`.
        per: "sample" or "batch".
        levels: number of steps that λ is rounded to; 0 for none.

    Raises:
        AdaptError: a delta with another head, or one for another model.
        ValueError: another `per`, a negative number of levels, or bounds outside [0, 1].

    Example:
        >>> from foveal.adapt.attach import difference
        >>> generalist, expert = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        >>> merged = T3Merge(generalist, difference(generalist, expert), gamma=-4)
        >>> merged(torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        generalist: nn.Module,
        delta: Delta,
        *,
        low: float = 0.0,
        high: float = 1.0,
        gamma: float = 0.5,
        per: str = "sample",
        levels: int = 32,
    ) -> None:
        super().__init__()
        coefficient(torch.zeros(()), low=low, high=high, gamma=gamma)  # refuses bounds before any work
        if per not in ("sample", "batch"):
            raise ValueError(f'per must be "sample" or "batch", got {per!r}')
        if levels < 0:
            raise ValueError(f"levels must be at least 0, got {levels}; 0 rounds nothing")
        self.generalist = generalist
        self.low, self.high, self.gamma, self.per, self.levels = low, high, gamma, per, levels
        self._differences: dict[str, Tensor] = {}
        for name, change in delta.changes.items():
            former = tensor_of(generalist, name)
            if isinstance(change, Replaced):
                raise AdaptError(f"{name!r} is replaced, not changed; merging takes two models with the same classes")
            if former is None or (apart := change.difference()).numel() != former.numel():
                raise AdaptError(f"the delta changes {name!r}, which the generalist does not have in this shape")
            self._differences[name] = apart.detach().reshape(former.shape)

    def at(self, x: Tensor, share: float) -> Tensor:
        """Answer with one share of the expert.

        Args:
            x: inputs, (B, …).
            share: λ; 0 is the generalist, 1 the expert.

        Returns:
            Logits, (B, K).
        """
        if share == 0:
            return self.generalist(x)  # type: ignore[no-any-return]
        merged = {
            name: former + share * apart
            for name, apart in self._differences.items()
            if (former := tensor_of(self.generalist, name)) is not None
        }
        return functional_call(self.generalist, merged, (x,))  # type: ignore[no-any-return]

    @torch.no_grad()
    def shares(self, x: Tensor) -> Tensor:
        """Share of the expert for each input, after rounding.

        Args:
            x: inputs, (B, …).

        Returns:
            λ, (B,).
        """
        apart = jensen_shannon(self.at(x, 0), self.at(x, 1))
        found = coefficient(apart, low=self.low, high=self.high, gamma=self.gamma)
        if self.per == "batch":
            found = found.mean().expand_as(found)
        return (found * self.levels).round() / self.levels if self.levels else found

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if not len(x):
            return self.at(x, 0)
        shares = self.shares(x)
        merged: Tensor | None = None
        for share in shares.unique():
            rows = (shares == share).nonzero()[:, 0]
            found = self.at(x[rows], float(share))
            merged = found.new_empty(len(x), *found.shape[1:]) if merged is None else merged
            merged[rows] = found
        assert merged is not None
        return merged


def _merged(seed: int) -> Tensor:
    from foveal.adapt.attach import difference

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generalist, expert = nn.Linear(4, 3), nn.Linear(4, 3)
        return T3Merge(generalist, difference(generalist, expert))(torch.randn(5, 4))


def _nothing() -> Tensor:
    from foveal.adapt.delta import Delta

    return T3Merge(nn.Linear(4, 3), Delta({}))(torch.zeros(0, 4))


METHOD = Method(
    id=326,
    name="T3-Merge",
    kind="procedure",
    summary="A generalist's and an expert's weights are interpolated for each picture by how far their answers differ.",
    paper=Paper(
        "T3: Test-Time Model Merging in VLMs for Zero-Shot Medical Imaging Analysis",
        "R. Imam et al.",
        2025,
        "arXiv:2510.27265",
    ),
    cases={"linear": Procedure(_merged, empty=_nothing)},
)
