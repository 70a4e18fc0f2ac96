"""Rules that share a sparsity among layers and prune by magnitude: uniform, Erdős–Rényi kernel, LAMP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.shrink.prune.masks import fine_mask, global_mask

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["erk", "erk_shares", "lamp", "lamp_scores", "uniform"]


def uniform(weights: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """The same share of each layer.

    Args:
        weights: weights by the layer's name.
        keep: share of all weights that stays, in (0, 1].

    Returns:
        Masks by the layer's name.
    """
    return {name: fine_mask(w.detach().abs(), keep) for name, w in weights.items()}


def erk_shares(weights: Mapping[str, Tensor], keep: float) -> dict[str, float]:
    """Shares of the Erdős–Rényi kernel (U. Evci et al., arXiv:1911.11134, section 3).

    A share is in proportion to the sum of the weight's sides over their product; where it would exceed 1, the layer
    stays dense.

    Args:
        weights: weights by the layer's name.
        keep: share of all weights that stays, in (0, 1].

    Returns:
        Shares by the layer's name.
    """
    rate = {name: sum(w.shape) / w.numel() for name, w in weights.items()}
    dense: set[str] = set()
    while True:
        left = keep * sum(w.numel() for w in weights.values()) - sum(weights[name].numel() for name in dense)
        scale = left / sum(rate[name] * w.numel() for name, w in weights.items() if name not in dense)
        more = {name for name in weights if name not in dense and scale * rate[name] > 1}
        if not more:
            return {name: 1.0 if name in dense else scale * rate[name] for name in weights}
        dense |= more


def erk(weights: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Erdős–Rényi kernel.

    Args:
        weights: weights by the layer's name.
        keep: share of all weights that stays, in (0, 1].

    Returns:
        Masks by the layer's name.
    """
    return {name: fine_mask(weights[name].detach().abs(), share) for name, share in erk_shares(weights, keep).items()}


def lamp_scores(weight: Tensor) -> Tensor:
    """LAMP (J. Lee et al., arXiv:2010.07611, equation 4): a squared weight over the sum of those at least as large.

    Args:
        weight: weight of a layer.

    Returns:
        Scores of the weight's shape, in (0, 1].
    """
    square = weight.detach().double().square().reshape(-1)
    order = square.argsort()
    tails = square[order].flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(square).scatter_(0, order, square[order] / tails.clamp(min=1e-300))
    return scores.view(weight.shape)


def lamp(weights: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """LAMP: the highest scores over all layers.

    Args:
        weights: weights by the layer's name.
        keep: share of all weights that stays, in (0, 1].

    Returns:
        Masks by the layer's name.
    """
    return global_mask({name: lamp_scores(w) for name, w in weights.items()}, keep)
