"""Plain training on the data's own loss: what a network needs after parts of it were removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.shrink.data import Data
from foveal.train.loop import fit

if TYPE_CHECKING:
    from torch import nn

    from foveal.shrink.step import Inputs

__all__ = ["Tune"]


@dataclass(frozen=True)
class Tune:
    """Step: train the model on labelled data, with AdamW and half a cosine.

    Args:
        steps: number of training steps, at least 1.
        lr: peak learning rate, above 0.
        weight_decay: weight decay of parameters with two or more axes.
        clip: largest norm of the gradient.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> from foveal.shrink.tune import Tune
        >>> Tune(steps=200, lr=5e-4)
        Tune(steps=200, lr=0.0005, weight_decay=0.05, clip=1.0)
    """

    steps: int = 500
    lr: float = 1e-3
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not (self.lr > 0 and self.clip > 0 and self.weight_decay >= 0):
            raise ValueError(
                f"lr and clip must be above 0 and weight_decay at least 0, got {self.lr}, {self.clip} and "
                f"{self.weight_decay}"
            )

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Train the model.

        Args:
            model: network.
            data: `Data` with `batches` and `loss`.

        Returns:
            The same network, in eval mode.

        Raises:
            ValueError: data without labelled batches.
        """
        if not isinstance(data, Data) or data.batches is None or data.loss is None:
            raise ValueError("Tune trains and needs Data with batches and loss; give both")
        loss = data.loss
        learnt = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
        ]
        return fit(
            model,
            lambda network, batch: loss(network(batch[0]), batch[1]),
            data.batches,
            [torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr)],
            steps=self.steps,
            warmup=min(20, self.steps),
            clip=self.clip,
        )
