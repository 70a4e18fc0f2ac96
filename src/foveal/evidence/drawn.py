"""Networks whose parts all count: weights and statistics drawn, where initial values would hide half of a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["drawn_"]

ModelT = TypeVar("ModelT", bound="nn.Module")


@torch.no_grad()
def drawn_(model: ModelT) -> ModelT:
    """Draw all weights and statistics by torch's generator.

    Weights of norms and running variances lie about 1: with small ones, what a deep network gives would not depend on
    its input.

    Args:
        model: network or layer, changed in place.

    Returns:
        The model.
    """
    for name, value in sorted(model.state_dict().items()):
        if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 1.5)
        elif "num_batches" not in name:
            value.normal_(std=0.3 if value.ndim == 1 else value[0].numel() ** -0.5)
    return model
