"""RD-Prune: one share of weights for each layer, chosen so that the network's output is distorted least.

*Source*: K. Xu et al., "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks",
ICCV 2023 (arXiv:2308.10438), section 3; the name is that of the authors' code.

    δ_l(α) = mean over x of (f(x; W) − f(x; W with layer l pruned by magnitude to the share α))²
    minimise Σ_l δ_l(α_l)  with  Σ_l α_l·|W_l| ≤ (1 − sparsity)·Σ_l |W_l|

To first order, distortion is additive: pruning several layers together distorts the output as much as the sum of what
each does alone. So the problem splits by layers, and dynamic programming over the number of weights left solves it in
a time linear in the number of layers.

Shapes: inputs (n, …); distortions (layers, shares).

*Differs from the paper*: one call prunes to the final sparsity; for the paper's rounds of pruning and fine-tuning, call
it again with a higher one. Every layer keeps at least the smallest share.
*Provenance*: written from the paper; `worst_case` is an option of the authors' code (Akimoto-Cris/RD_PRUNE).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.allocate import allocate, sensitivity, squared_distance
from foveal.shrink.data import calibration
from foveal.shrink.prune.masks import bake_, fine_mask, mask_, masked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = ["RDPrune", "distortions", "prunable", "pruned", "shares", "worst_distance"]

SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.22, 0.16, 0.11, 0.08, 0.05, 0.03, 0.02, 0.01)
EXACT = 100_000  # budgets up to which the dynamic programming counts single weights; above, steps of budget/EXACT


def worst_distance(changed: Tensor, original: Tensor) -> float:
    """Largest mean squared difference of two outputs over the inputs.

    Args:
        changed: output of the changed model, (n, …).
        original: output of the original model, (n, …).

    Returns:
        Largest of the n mean squared differences.
    """
    return float((changed - original).square().flatten(1).mean(1).max())


@contextmanager
def pruned(layer: nn.Module, share: float) -> Iterator[None]:
    """Prune a layer by magnitude inside this context.

    Args:
        layer: linear layer or convolution.
        share: share of its weights that stays, in (0, 1].

    Yields:
        Nothing.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    whole = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(fine_mask(whole.abs(), share))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(whole)


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Weights that are pruned: those of linear layers and convolutions.

    Args:
        model: network.

    Returns:
        Weights by the layer's name, in order.
    """
    return {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def distortions(
    model: nn.Module, inputs: Tensor, *, choices: Sequence[float] = SHARES, worst_case: bool = False
) -> np.ndarray:
    """Distortion of the output when one layer alone is pruned, δ.

    Args:
        model: network in eval mode.
        inputs: calibration inputs, (n, …).
        choices: shares that may stay, in (0, 1].
        worst_case: whether the largest distortion over the inputs counts instead of the mean.

    Returns:
        Distortions, (layers, shares).
    """
    distance = worst_distance if worst_case else squared_distance
    return sensitivity(model, list(prunable(model)), choices, pruned, inputs, distance=distance)


def shares(
    distortion: np.ndarray, sizes: Sequence[int], *, sparsity: float, choices: Sequence[float] = SHARES
) -> list[float]:
    """Shares with the least total distortion at a sparsity, by dynamic programming.

    Args:
        distortion: δ, (layers, shares).
        sizes: number of weights of each layer.
        sparsity: share of all weights that goes, in [0, 1).
        choices: shares that may stay.

    Returns:
        Share of each layer that stays.
    """
    budget = round((1 - sparsity) * sum(sizes))
    cost = np.array([[round(share * size) for share in choices] for size in sizes])
    picks = allocate(distortion, cost, budget, resolution=min(budget, EXACT))
    return [choices[pick] for pick in picks]


@dataclass(frozen=True)
class RDPrune:
    """Step: prune weights to a sparsity, each layer to the share that distorts the output least.

    Masks hold the zeros while the network is fine-tuned; `bake_` makes them permanent.

    Args:
        sparsity: share of the weights of linear layers and convolutions that goes, in [0, 1).
        choices: shares that a layer may keep, descending, in (0, 1].
        worst_case: whether the largest distortion over the inputs counts instead of the mean.
        limit: number of calibration inputs to use.

    Raises:
        ValueError: a number outside its range, or a sparsity that the smallest share cannot reach.
    """

    sparsity: float = 0.9
    choices: tuple[float, ...] = SHARES
    worst_case: bool = False
    limit: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}; 0.9 removes nine weights of ten")
        if not self.choices or list(self.choices) != sorted(set(self.choices), reverse=True):
            raise ValueError(f"choices must be descending shares, got {self.choices}")
        if not 0 < self.choices[-1] <= self.choices[0] <= 1:
            raise ValueError(f"choices must be in (0, 1], got {self.choices[0]} to {self.choices[-1]}")
        if 1 - self.sparsity < self.choices[-1]:
            raise ValueError(f"a sparsity of {self.sparsity} needs shares below {self.choices[-1]}; add smaller ones")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Prune a model.

        Args:
            model: network; one that has masks is pruned further.
            data: inputs of the model, such as 256 pictures.

        Returns:
            The same model with masks, in eval mode.
        """
        inputs = calibration(data, step="RDPrune", limit=self.limit)
        left = {name: int(mask.sum()) for name, mask in masked(model).items()}
        bake_(model).eval()
        weights = prunable(model)
        table = distortions(model, inputs, choices=self.choices, worst_case=self.worst_case)
        sizes = [weight.numel() for weight in weights.values()]
        for row, (name, size) in enumerate(zip(weights, sizes, strict=True)):
            returns = [round(share * size) > left.get(name, size) for share in self.choices[:-1]]
            table[row, :-1][returns] = np.inf  # what was pruned before stays pruned
        kept = shares(table, sizes, sparsity=self.sparsity, choices=self.choices)
        masks = {n: fine_mask(w.detach().abs(), share) for (n, w), share in zip(weights.items(), kept, strict=True)}
        return mask_(model, masks)


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def _inputs(seed: int) -> Tensor:
    return torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=47,
    name="RD-Prune",
    kind="transform",
    summary="Each layer keeps the share of its weights that distorts the output least, under one budget for all.",
    paper=Paper(
        "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks",
        "K. Xu et al.",
        2023,
        "arXiv:2308.10438",
    ),
    cases={
        "convolutions": Transform(
            lambda model: RDPrune(0.7).apply(model, _inputs(0)),
            _tiny,
            _inputs,
            lambda model: RDPrune(0.0).apply(model, _inputs(0)),
        )
    },
)
