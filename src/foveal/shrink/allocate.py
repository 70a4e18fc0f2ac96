"""Allocation: how much each layer gets of a budget, from what each choice costs and harms.

`sensitivity` measures a table of harms, one layer changed at a time; `allocate` picks one choice for each layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

__all__ = ["allocate", "sensitivity", "squared_distance"]

Choice = TypeVar("Choice")


def squared_distance(changed: Tensor, original: Tensor) -> float:
    """Mean squared difference of two outputs.

    Args:
        changed: output of the changed model.
        original: output of the original model.

    Returns:
        Mean squared difference.
    """
    return float((changed - original).square().mean())


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    layers: Sequence[str],
    choices: Sequence[Choice],
    change: Callable[[nn.Module, Choice], AbstractContextManager[object]],
    inputs: Tensor,
    *,
    distance: Callable[[Tensor, Tensor], float] = squared_distance,
) -> np.ndarray:
    """Harm of each choice for each layer: the distance of the model's output when only that layer is changed.

    Args:
        model: network in eval mode.
        layers: names of the layers.
        choices: choices, such as ratios or bits.
        change: function from a layer and a choice to a context inside which the layer is changed.
        inputs: calibration inputs, (n, …).
        distance: distance of two outputs.

    Returns:
        Harms, (layers, choices), float64.
    """
    original = model(inputs)
    table = np.zeros((len(layers), len(choices)))
    for i, name in enumerate(layers):
        layer = model.get_submodule(name)
        for j, choice in enumerate(choices):
            with change(layer, choice):
                table[i, j] = distance(model(inputs), original)
    return table


def allocate(harm: np.ndarray, cost: np.ndarray, budget: float, *, resolution: int = 1000) -> list[int]:
    """Pick one choice for each layer: least total harm under a total cost, by dynamic programming.

    Costs are rounded up to multiples of budget/resolution, so the budget is never exceeded; with integer costs and
    `resolution` equal to the budget the result is optimal.

    Args:
        harm: harm of each choice, (layers, choices); infinite for a forbidden one.
        cost: cost of each choice, (layers, choices), at least 0.
        budget: largest total cost, above 0.
        resolution: number of steps that the budget is divided into.

    Returns:
        Index of each layer's choice.

    Raises:
        ValueError: shapes that differ, or a budget below the cheapest choices together.
    """
    harm, cost = np.asarray(harm, np.float64), np.asarray(cost, np.float64)
    if harm.shape != cost.shape or harm.ndim != 2:
        raise ValueError(f"harm and cost must be two tables of one shape, got {harm.shape} and {cost.shape}")
    units = np.ceil(cost / budget * resolution - 1e-9).astype(np.int64)
    least = int(np.where(np.isfinite(harm), units, np.iinfo(np.int32).max).min(1).sum())
    if least > resolution:
        cheapest = float(np.where(np.isfinite(harm), cost, np.inf).min(1).sum())
        raise ValueError(f"the cheapest choices cost {cheapest:.6g} together, above the budget of {budget:.6g}")
    best = np.zeros(resolution + 1)  # least harm of the layers so far, by the units that they may use
    picks = []
    for layer in range(len(harm)):
        table = np.full((harm.shape[1], resolution + 1), np.inf)
        for choice, unit in enumerate(units[layer]):
            if unit <= resolution:
                table[choice, unit:] = best[: resolution + 1 - unit] + harm[layer, choice]
        picks.append(table.argmin(0))
        best = table.min(0)
    left, chosen = resolution, []
    for layer in reversed(range(len(harm))):
        choice = int(picks[layer][left])
        chosen.append(choice)
        left -= int(units[layer, choice])
    return chosen[::-1]
