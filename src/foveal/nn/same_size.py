"""Which convolutions give maps of the size that they take; what stands in for one asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["keeps_size"]


def keeps_size(layer: nn.Conv2d) -> bool:
    """Whether a convolution has stride 1 and pads all that its kernel takes away.

    Args:
        layer: convolution.

    Returns:
        True if its output has the height and width of its input, whatever they are.
    """
    if layer.stride != (1, 1):
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same"
    sides = zip(layer.kernel_size, layer.padding, layer.dilation, strict=True)
    return all(2 * pad == step * (size - 1) for size, pad, step in sides)
