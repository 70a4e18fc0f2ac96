"""DGMS: the weights of a layer become the means of a Gaussian mixture that is trained with them.

*Source*: R. Dong et al., "Finding the Task-Optimal Low-Bit Sub-Distribution in Deep Neural Networks", ICML 2022
(arXiv:2112.15139), section 3. A layer's weights w are modelled by K = 2^bits Gaussians with shares π, means μ and
deviations σ; the mean of one component is fixed at 0, so that its weights are pruned. With the responsibilities r,

    r_k(w) = π_k N(w; μ_k, σ_k²) / Σ_j π_j N(w; μ_j, σ_j²);   φ(w) = softmax(r(w) / τ)
    training: S(w) = Σ_k φ_k(w) μ_k;   inference: P(w) = μ_k with k = argmax r_k(w)

S is differentiable in w, π, μ, σ and τ, which all follow the loss of the task; as τ goes to 0, S becomes P. The mixture
starts from k-means of trained weights. What is stored: the index of each weight and the K means.

Shapes: w of any shape; responsibilities have a last axis of K.

*Differs from the paper*: σ and τ are learnt as logarithms and π before a softmax, which keeps them positive. The first
and the last layer stay in floating point, as is usual; inputs are not quantised. The mobile kernels are not part of it.

*Provenance*: written from the paper; initial temperature and initialisation looked up in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.quantize.fake import quantized_

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = ["DGMS", "GaussianMixture", "kmeans", "mixed", "responsibilities"]


def kmeans(values: Tensor, count: int, *, rounds: int = 100) -> tuple[Tensor, Tensor]:
    """k-means of numbers, started from centres at equal distances over their range.

    Args:
        values: numbers, of any shape.
        count: number of clusters, K.
        rounds: largest number of iterations.

    Returns:
        Centres, ascending, (K,); cluster of each value, int64, of the shape of `values`.
    """
    flat = values.detach().reshape(-1)
    centres = torch.linspace(float(flat.min()), float(flat.max()), count, dtype=flat.dtype, device=flat.device)
    label = flat.new_zeros(len(flat), dtype=torch.long)
    for _ in range(rounds):
        label = torch.bucketize(flat, (centres[1:] + centres[:-1]) / 2)
        sums = torch.zeros_like(centres).index_add_(0, label, flat)
        sizes = torch.zeros_like(centres).index_add_(0, label, torch.ones_like(flat))
        moved = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres, label.view(values.shape)


def responsibilities(w: Tensor, *, share: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Probability that a value belongs to each component.

    Args:
        w: values, of any shape.
        share: shares π, adding up to 1, (K,).
        mean: means μ, (K,).
        deviation: deviations σ, above 0, (K,).

    Returns:
        Responsibilities r, adding up to 1 over the last axis, (…, K).
    """
    distance = (w[..., None] - mean) / deviation
    return torch.softmax(share.log() - deviation.log() - distance.square() / 2, -1)


def mixed(w: Tensor, *, share: Tensor, mean: Tensor, deviation: Tensor, tau: Tensor | float) -> Tensor:
    """Soft weights of the training.

    Args:
        w: weights, of any shape.
        share: shares π, (K,).
        mean: means μ, (K,).
        deviation: deviations σ, (K,).
        tau: temperature τ, above 0.

    Returns:
        S(w), of the shape of `w`.
    """
    return torch.softmax(responsibilities(w, share=share, mean=mean, deviation=deviation) / tau, -1) @ mean


class GaussianMixture(nn.Module):
    """Quantiser of a weight: soft in training mode, hard in eval mode; it can be packed.

    Args:
        weight: trained weight to start from.
        bits: bits of an index, 1 to 8; 2^bits components.
        tau: initial temperature, above 0.
    """

    def __init__(self, weight: Tensor, bits: int = 4, *, tau: float = 0.01) -> None:
        super().__init__()
        self.bits = bits
        centres, label = kmeans(weight, 2**bits)
        order = centres.abs().argsort()  # the component of mean 0 comes first
        place = order.argsort()[label.reshape(-1)]
        mean = torch.cat([centres.new_zeros(1), centres[order][1:]])
        square = (weight.detach().reshape(-1) - mean[place]).square()
        sizes = torch.zeros_like(mean).index_add_(0, place, torch.ones_like(square))
        sums = torch.zeros_like(mean).index_add_(0, place, square)
        least = 1e-3 * float(weight.detach().abs().max()) + 1e-12
        self.mean = nn.Parameter(mean[1:])
        self.deviation = nn.Parameter((sums / sizes.clamp(min=1)).sqrt().clamp(min=least).log())
        self.share = nn.Parameter(sizes.clamp(min=0.5).log())
        self.tau = nn.Parameter(torch.tensor(math.log(tau), dtype=mean.dtype, device=mean.device))

    def codebook(self) -> Tensor:
        """Means of the components.

        Returns:
            Means, the first of which is 0, (2^bits,).
        """
        return torch.cat([self.mean.new_zeros(1), self.mean])

    def parts(self) -> dict[str, Tensor]:
        """Parameters of the mixture as `mixed` and `responsibilities` take them.

        Returns:
            `share`, `mean` and `deviation`, (2^bits,) each.
        """
        return {
            "share": torch.softmax(self.share, 0),
            "mean": self.codebook(),
            "deviation": self.deviation.exp(),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Quantise.

        Args:
            x: weights.

        Returns:
            Soft weights in training mode, hard ones in eval mode.
        """
        if self.training:
            return mixed(x, **self.parts(), tau=self.tau.exp())
        return self.codebook()[self.encode(x)[0]]

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode weights.

        Args:
            x: weights.

        Returns:
            Indices, int64, of the same shape; `codebook`, the means.
        """
        with torch.no_grad():
            return responsibilities(x, **self.parts()).argmax(-1), {"codebook": self.codebook().detach()}

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode weights.

        Args:
            codes: indices.
            constants: `codebook`.

        Returns:
            Weights.
        """
        return constants["codebook"][codes]


@dataclass(frozen=True)
class DGMS:
    """Step: quantise the weights of a trained model by mixtures, which training afterwards fits to the task.

    Args:
        bits: bits of an index, 1 to 8.
        tau: initial temperature, above 0.

    Raises:
        ValueError: a number outside its range.
    """

    bits: int = 4
    tau: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be in 1 to 8, got {self.bits}")
        if not self.tau > 0:
            raise ValueError(f"tau must be above 0, got {self.tau}")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - the protocol of steps
        """Quantise the weights of all layers but the first and the last, in place.

        Args:
            model: trained network.
            data: not used.

        Returns:
            The model; train it further, then `foveal.shrink.quantize.packed` stores it.
        """
        return quantized_(model, weight=lambda layer: GaussianMixture(layer.weight, self.bits, tau=self.tau))


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))


METHOD = Method(
    id=244,
    name="DGMS",
    kind="transform",
    summary="A layer's weights are the means of a Gaussian mixture, and weights and mixture are trained together.",
    cases={
        "convolutions": Transform(
            DGMS(bits=2).apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed)),
            twice="is quantised already",
        )
    },
    paper=Paper(
        "Finding the Task-Optimal Low-Bit Sub-Distribution in Deep Neural Networks",
        "R. Dong et al.",
        2022,
        "arXiv:2112.15139",
    ),
)
