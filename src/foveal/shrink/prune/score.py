"""Scorers of structural pruning: how much each unit of a layer matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.shrink.data import Data

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SCORERS", "Scorer", "gradients", "magnitude", "random_scores", "taylor"]

if TYPE_CHECKING:
    Scorer = Callable[[Tensor, Tensor | None], Tensor]
else:
    Scorer = Any


def magnitude(weight: Tensor, gradient: Tensor | None = None) -> Tensor:  # noqa: ARG001 - the scorers' signature
    """Squared norm of each unit's weights.

    Args:
        weight: weights, (units, everything else).
        gradient: not used.

    Returns:
        Scores, (units,).
    """
    return weight.square().sum(1)


def taylor(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """Squared change of the loss, to first order, when a unit is removed: (Σ w·g)² (arXiv:1906.10771, equation 8).

    Args:
        weight: weights, (units, everything else).
        gradient: gradient of the loss by them.

    Returns:
        Scores, (units,).

    Raises:
        ValueError: no gradient.
    """
    if gradient is None:
        raise ValueError("taylor needs gradients, got none; give Data with batches and loss")
    return (weight * gradient).sum(1).square()


def random_scores(weight: Tensor, gradient: Tensor | None = None) -> Tensor:  # noqa: ARG001 - the scorers' signature
    """Scores that mean nothing: the floor of every comparison. The same for the same number of units.

    Args:
        weight: weights, (units, everything else).
        gradient: not used.

    Returns:
        Scores, (units,).
    """
    return torch.rand(len(weight), generator=torch.Generator().manual_seed(len(weight)))


SCORERS: dict[str, Scorer] = {"magnitude": magnitude, "taylor": taylor, "random": random_scores}


def gradients(model: nn.Module, data: object, *, batches: int = 8) -> dict[str, Tensor]:
    """Gradient of the data's loss by each parameter, over a few training batches.

    Args:
        model: network; its mode is kept.
        data: `Data` with batches and loss.
        batches: number of batches.

    Returns:
        Gradients by the name of the parameter.

    Raises:
        ValueError: data without labelled batches.
    """
    if not isinstance(data, Data) or data.batches is None or data.loss is None:
        raise ValueError("Taylor scores need Data with batches and loss; give both, or take scorer = magnitude")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    with torch.enable_grad():
        for step in range(batches):
            x, y = data.batches(step)
            found = torch.autograd.grad(data.loss(model(x), y), list(named.values()), allow_unused=True)
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None:
                    total[name] += gradient
    return total
