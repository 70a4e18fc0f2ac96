"""ISS-P: sparse training for super-resolution in which unimportant weights shrink a little at each step, not at once.

*Source*: J. Wang et al., "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution", ICCV 2023
(arXiv:2303.09650), section 3. From a random start, after every step of the optimiser, the weights W of each layer are
ranked by magnitude, and all but the k largest lose a share of their own magnitude:

    W ← M ∘ W + α (1 − M) ∘ W,   M = 1 for the k = round((1 − s) n) largest of n |W|, else 0

M is found anew each time, so weights may return. α = 0 is iterative hard thresholding. After these steps M is fixed,
the other weights become zero, and training goes on; there is no dense network at any time.

*Differs from the paper*: nothing; as in the authors' code, s is the same in each layer and α = 0.95.

*Provenance*: written from the paper; α and the order of the steps looked up in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.data import Data
from foveal.shrink.prune.masks import bake_, fine_mask, mask_, masked
from foveal.train.loop import fit

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = ["ISSP", "fix_", "prunable", "shrink_", "shrunk"]


def shrunk(weight: Tensor, *, sparsity: float, alpha: float) -> Tensor:
    """One iteration on one weight.

    Args:
        weight: W, of any shape.
        sparsity: s, share of the weights that shrink, in [0, 1).
        alpha: α, what is left of them, in [0, 1]; 0 sets them to zero.

    Returns:
        Weight of the same shape.
    """
    return torch.where(fine_mask(weight.abs(), 1 - sparsity), weight, alpha * weight)


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are pruned: all linear layers and convolutions.

    Args:
        model: network.

    Returns:
        Layers by name.

    Raises:
        ValueError: a model without such layers, or one that has masks.
    """
    if found := next(iter(masked(model)), None):
        raise ValueError(f"the model has masks already ({found}); call bake_ first")
    layers: dict[str, nn.Module] = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer or convolution to prune")
    return layers


@torch.no_grad()
def shrink_(model: nn.Module, *, sparsity: float, alpha: float = 0.95) -> nn.Module:
    """One iteration on all layers, in place; called after each step of the optimiser.

    Args:
        model: network.
        sparsity: s.
        alpha: α.

    Returns:
        The same model.
    """
    for layer in prunable(model).values():
        layer.weight.copy_(shrunk(layer.weight, sparsity=sparsity, alpha=alpha))  # type: ignore[operator, arg-type]
    return model


def fix_(model: nn.Module, *, sparsity: float) -> nn.Module:
    """Fix the masks: the smallest weights are zero from now on, in training too, until `bake_` makes them permanent.

    Args:
        model: network.
        sparsity: s.

    Returns:
        The same model.
    """
    layers = prunable(model)
    return mask_(model, {name: fine_mask(m.weight.detach().abs(), 1 - sparsity) for name, m in layers.items()})  # type: ignore[operator]


@dataclass(frozen=True)
class ISSP:
    """Step: train a network so that a share of its weights is zero.

    Args:
        sparsity: s, share of the weights of each layer that become zero, in [0, 1).
        steps: number of training steps, at least 2.
        shrinking: share of the steps in which weights shrink, before masks are fixed, in (0, 1).
        alpha: α, in [0, 1].
        lr: peak learning rate of Adam, above 0.

    Raises:
        ValueError: a number outside its range.
    """

    sparsity: float = 0.9
    steps: int = 1000
    shrinking: float = 0.5
    alpha: float = 0.95
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}; it is the share that becomes zero")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}; it is what a step leaves of a weight")
        if self.steps < 2 or not 0 < self.shrinking < 1:
            raise ValueError(f"steps must be at least 2 and shrinking in (0, 1), got {self.steps} and {self.shrinking}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Train the model, from a random start or from what it is.

        Args:
            model: network.
            data: `Data` with `batches` and `loss`.

        Returns:
            The same model in eval mode, with zeros in its weights.

        Raises:
            ValueError: data without batches and loss.
        """
        if not isinstance(data, Data) or data.batches is None or data.loss is None:
            raise ValueError("ISSP trains and needs Data with batches and loss; give both")
        loss, batches = data.loss, data.batches
        first = min(self.steps - 1, max(1, round(self.shrinking * self.steps)))

        def shrinking(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            shrink_(net, sparsity=self.sparsity, alpha=self.alpha)
            return loss(net(batch[0]), batch[1])

        def sparse(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return loss(net(batch[0]), batch[1])

        for objective, start, steps in ((shrinking, 0, first), (sparse, first, self.steps - first)):
            if objective is sparse:
                fix_(model, sparsity=self.sparsity)
            fit(
                model,
                objective,
                lambda step, start=start: batches(start + step),  # type: ignore[misc]
                [torch.optim.Adam(model.parameters(), lr=self.lr)],
                steps=steps,
                warmup=min(20, steps),
            )
        return bake_(model).eval()


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))


def _pictures(seed: int) -> Tensor:
    return torch.rand(2, 1, 7, 6, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=224,
    name="ISS-P",
    kind="transform",
    summary="Sparse training from a random start: unimportant weights shrink by a share of themselves at each step.",
    paper=Paper(
        "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution",
        "J. Wang et al.",
        2023,
        "arXiv:2303.09650",
    ),
    cases={
        "fixed": Transform(
            lambda model: bake_(fix_(shrink_(model, sparsity=0.5), sparsity=0.5)),
            _tiny,
            _pictures,
            lambda model: bake_(fix_(shrink_(model, sparsity=0.0), sparsity=0.0)),
        )
    },
)
