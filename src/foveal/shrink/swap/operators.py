"""The operators that can stand in for a layer, and which layers those are.

An operator's own file has a function that builds it for one layer:

    def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module

with the shape of the layer's input, batch first. The result takes what the layer takes and gives what it gives; where
the operator can, it starts with the layer's own function. A layer that it cannot stand in for is refused with a
ValueError that says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from torch import nn

from foveal.shrink.step import ShrinkError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LAYERS", "OPERATORS", "Operator", "operator"]


def _spatial(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1


def _is_conv(layer: nn.Module) -> bool:
    return _spatial(layer) and isinstance(layer, nn.Conv2d) and layer.groups == 1


def _is_depthwise(layer: nn.Module) -> bool:
    return (
        _spatial(layer)
        and isinstance(layer, nn.Conv2d)
        and layer.groups == layer.in_channels == layer.out_channels
        and layer.groups > 1
    )


def _is_attention(layer: nn.Module) -> bool:
    from timm.layers import Attention

    return isinstance(layer, Attention)


LAYERS: dict[str, Callable[[nn.Module], bool]] = {
    "conv": _is_conv,  # a dense convolution of more than one pixel
    "depthwise": _is_depthwise,  # one kernel of more than one pixel per channel
    "attention": _is_attention,  # timm's softmax attention over tokens, (B, N, C)
}


@dataclass(frozen=True)
class Operator:
    """An operator that can stand in for a kind of layer.

    Args:
        of: kind of layer, one of `LAYERS`.
        home: module and function that build it, "module:function".
        says: what it is, a few words.
    """

    of: str
    home: str
    says: str

    def stand_in(self, layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """Build the operator for one layer.

        Args:
            layer: layer to replace.
            shape: shape of its input, batch first.

        Returns:
            The operator.

        Raises:
            ValueError: a layer that it cannot stand in for; the text says why.
        """
        module, _, word = self.home.partition(":")
        built: nn.Module = getattr(import_module(module), word)(layer, shape)
        return built


OPERATORS: dict[str, Operator] = {
    "pconv": Operator("conv", "foveal.nn.fasternet:stand_in", "partial convolution, then a pointwise one"),
    "lambda": Operator("conv", "foveal.nn.lambda_networks:stand_in", "lambda layer with a window of 7×7"),
    "fftnet": Operator("attention", "foveal.nn.fftnet:stand_in", "filter of token frequencies, then a linear layer"),
    "dsm": Operator("depthwise", "foveal.nn.dsm:stand_in", "weights of the cosine spectrum, selected by each picture"),
    "lka": Operator("conv", "foveal.models.backbone.van:stand_in", "gate with a large kernel, then a pointwise one"),
    "ls": Operator(
        "conv", "foveal.models.backbone.lsnet:stand_in", "kernels predicted for each pixel, then a pointwise"
    ),
    "inception": Operator(
        "depthwise",
        "foveal.nn.inception_next:stand_in",
        "small square, row and column for some channels, then a factor",
    ),
    "sic": Operator("conv", "foveal.nn.sic_layer:stand_in", "filter per channel, then a pointwise convolution"),
    "fdconv": Operator("conv", "foveal.nn.fdconv:stand_in", "groups of frequencies, weighted by each picture"),
    "tvconv": Operator("depthwise", "foveal.nn.tvconv:stand_in", "kernels that differ from place to place"),
}


def operator(name: str) -> Operator:
    """An operator by its name.

    Args:
        name: one of `OPERATORS`.

    Returns:
        The operator.

    Raises:
        ShrinkError: no such operator.
    """
    if name not in OPERATORS:
        close = get_close_matches(name, OPERATORS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ShrinkError(f"no operator is called {name!r}; {hint}operators are {', '.join(OPERATORS)}")
    return OPERATORS[name]
