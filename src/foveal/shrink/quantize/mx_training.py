"""Training in MX: weights, activations and gradients of linear layers and convolutions are quantised, as in MX's paper.

Products quantise both factors along the axis that is summed over, forward and backward, so that a tensor is quantised
anew for each axis (arXiv:2310.10537, section 4):

    Y = Q(X) Q(W)ᵀ;   dX = Q(dY) Q(W);   dW = Q(dY)ᵀ Q(X)

Convolutions sum over channels in Y and dX and over the batch in dW, as axes 1 and 0; the places of a kernel and of a
picture are no part of a block. Matrix products of two activations, as in attention, are left as they are.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.shrink.quantize.fake import Layer
from foveal.shrink.quantize.mx import every_layer, known, mx

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MXLayer", "train_in_mx_"]


class _Product(torch.autograd.Function):
    """A linear layer on (N, inputs) or a convolution, all of whose factors are quantised along what is summed over."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, element_format: str, conv: nn.Conv2d | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.element_format, ctx.conv = element_format, conv
        x, weight = mx(x, element_format, axis=1), mx(weight, element_format, axis=1)
        return x @ weight.T if conv is None else conv._conv_forward(x, weight, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, weight), conv = ctx.saved_tensors, ctx.conv
        of, by = (partial(mx, element_format=ctx.element_format, axis=axis) for axis in (1, 0))
        if conv is None:
            return of(gradient) @ by(weight), by(gradient).T @ by(x), None, None
        words = (conv.stride, conv.padding, conv.dilation, False, (0, 0), 1)
        back = torch.ops.aten.convolution_backward
        dx = (
            back(of(gradient), x, by(weight), None, *words, (True, False, False))[0]
            if ctx.needs_input_grad[0]
            else None
        )
        return dx, back(by(gradient), by(x), weight, None, *words, (False, True, False))[1], None, None


class MXLayer(nn.Module):
    """A linear layer or convolution trained with weights, activations and gradients in an MX format.

    Args:
        layer: the layer; a convolution without groups, zeros around the picture.
        element_format: name in `FORMATS`.

    Raises:
        ValueError: an unknown format, or another convolution.
    """

    def __init__(self, layer: Layer, element_format: str = "mxfp6_e3m2") -> None:
        super().__init__()
        known(element_format)
        if isinstance(layer, nn.Conv2d) and (
            layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
        ):
            raise ValueError(
                f"training in MX takes convolutions without groups and with padding in numbers, got {layer}; leave it "
                "out by choose"
            )
        self.layer, self.element_format = layer, element_format

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: inputs of the layer.

        Returns:
            Outputs of the layer.
        """
        if isinstance(self.layer, nn.Linear):
            y = _Product.apply(x.reshape(-1, x.shape[-1]), self.layer.weight, self.element_format, None)
            y = y.view(*x.shape[:-1], -1)
            return y if self.layer.bias is None else y + self.layer.bias
        y = _Product.apply(x, self.layer.weight, self.element_format, self.layer)
        return y if self.layer.bias is None else y + self.layer.bias.view(-1, 1, 1)


def train_in_mx_(
    model: nn.Module, element_format: str = "mxfp6_e3m2", *, choose: Callable[[str, Layer], bool] = every_layer
) -> nn.Module:
    """Replace linear layers and convolutions by ones that train in an MX format, in place.

    Args:
        model: network.
        element_format: name in `FORMATS`.
        choose: whether to replace a layer, by name and layer.

    Returns:
        The same model, with the same parameters.

    Raises:
        ValueError: nothing to replace, or a convolution that cannot be.
    """
    places = [
        (parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent._modules.items()
        if isinstance(child, Layer) and choose(f"{path}.{name}".lstrip("."), child)
    ]
    if not places:
        raise ValueError(f"{type(model).__name__} has no linear layer or convolution to train in {element_format}")
    made = {id(child): MXLayer(child, element_format) for _, _, child in places}
    for parent, name, child in places:
        parent._modules[name] = made[id(child)]
    return model
