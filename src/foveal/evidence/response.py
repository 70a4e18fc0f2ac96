"""What a layer makes of an input, in one tensor, so that two layers with the same weights can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.evidence.drawn import drawn_

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["response"]


def response(layer: nn.Module, *shape: int, backward: bool = False) -> Tensor:
    """Output in use of a layer with drawn weights, or all its gradients of the sum of squares in training.

    Args:
        layer: its weights are replaced by drawn ones, the same for equal names and shapes.
        *shape: shape of the input, which is drawn too.
        backward: whether gradients are wanted.

    Returns:
        Output; or the gradients of the input and of the parameters, by name, flattened.
    """
    torch.manual_seed(0)
    drawn_(layer).train(backward)
    x = torch.randn(shape, requires_grad=True)
    out: Tensor = layer(x)
    if not backward:
        return out.detach()
    named = dict(layer.named_parameters())
    wanted = [x, *(named[name] for name in sorted(named))]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(out.square().sum(), wanted)])
