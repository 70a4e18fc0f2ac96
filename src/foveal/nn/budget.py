"""A threshold that meets a budget: what a routed network costs is a constant and a share of its items.

cost(T) = least + each · share of scores ≥ T,    T = the (1 − share)-quantile of the scores
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["affordable", "threshold_for"]


def affordable(budget: float, *, least: float, each: float) -> float:
    """Share of the items that a budget pays for.

    Args:
        budget: cost, as a share of the whole network's, in (0, 1].
        least: cost when no item is worked on, in the same unit.
        each: cost of all items.

    Returns:
        Share, in [0, 1]; 1 for a budget of 1, whatever routing itself costs.

    Raises:
        ValueError: a budget outside (0, 1], or less than `least`.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget}; 0.5 is half of the multiply-adds")
    if budget == 1:
        return 1.0
    if budget < least:
        raise ValueError(f"budget must be at least {least:.3f}, what every place of a picture costs, got {budget}")
    return min(1.0, (budget - least) / each)


def threshold_for(share: float, scores: Sequence[Tensor]) -> float | None:
    """Threshold that a share of some scores reaches.

    Args:
        share: share of the scores, in [0, 1].
        scores: scores of some pictures, of any shapes; they are pooled.

    Returns:
        Threshold: at least this is worked on. None for a share of 1, infinity for none.

    Raises:
        ValueError: no scores.
    """
    if share == 1:
        return None
    if not scores:
        raise ValueError("a budget below 1 is found on pictures, got none; give some that are typical")
    pooled = torch.cat([score.flatten() for score in scores])
    count = math.floor(round(share * len(pooled), 6))
    return float(pooled.kthvalue(len(pooled) - count + 1).values) if count else math.inf
