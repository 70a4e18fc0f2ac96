"""Fake quantisation: a layer computes in floating point with values that have few levels, and can be trained so.

A quantiser is a module: values in, values on its levels out, gradients straight through. One that can also be stored
has `encode` and `decode`; `foveal.shrink.quantize.packed` writes those. Quantisers sit in layers by `quantized_`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "MinMax",
    "QuantizedLayer",
    "Quantizer",
    "grid",
    "quantized_",
    "quantized_layers",
    "round_through",
    "straight_through",
]

Layer = nn.Linear | nn.Conv2d
Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class Quantizer(Protocol):
    """A quantiser whose values can be stored as small integers and a few constants, such as scales or a codebook.

    Args:
        bits: bits of a code.
    """

    bits: int

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode values.

        Args:
            x: values of any shape.

        Returns:
            Codes, integers in [0, 2^bits), int64, of the same shape; the constants that decode them.
        """
        ...

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode values; `decode(*encode(x))` equals the forward pass to the bit.

        Args:
            codes: integers in [0, 2^bits).
            constants: constants that `encode` returned with them.

        Returns:
            Values of the shape of the codes.
        """
        ...


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another (the straight-through estimator, arXiv:1308.3432).

    Args:
        x: values that receive the gradient.
        quantized: values that the result equals, of the same shape.

    Returns:
        `quantized` in value, to the bit; the identity on `x` in gradient.
    """

    class _Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor, quantized: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
            return quantized.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - torch's signature
            return gradient, None

    return _Through.apply(x, quantized.detach())


def round_through(x: Tensor) -> Tensor:
    """Round to the nearest integer, ties to even, with the gradient of the identity.

    Args:
        x: values.

    Returns:
        Rounded values.
    """
    return straight_through(x, x.detach().round())


def grid(x: Tensor, *, scale: Tensor, zero: Tensor | float = 0.0, low: int, high: int) -> Tensor:
    """Round values to a uniform grid: scale · (clamp(round(x / scale + zero), low, high) − zero).

    Gradients reach `x` inside the range and, through the division and the product, `scale` and `zero`
    (arXiv:1902.08153, equations 1 to 3).

    Args:
        x: values.
        scale: distance of two levels, above 0, broadcastable to `x`.
        zero: code of the value 0, broadcastable to `x`.
        low: lowest code.
        high: highest code.

    Returns:
        Values on the grid.
    """
    return (round_through((x / scale + zero).clamp(low, high)) - zero) * scale


class MinMax(nn.Module):
    """Uniform quantiser between the least and the largest value: of each output channel, or running ones of a tensor.

    Args:
        bits: bits of a code, 2 to 16.
        axis: axis whose entries have a range each (0 for weights); None for one range, which in training mode follows
            the inputs with a decay of 0.9 and in eval mode stays fixed.
        symmetric: whether the range is symmetric about 0.

    Raises:
        ValueError: bits outside their range.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self, bits: int = 8, *, axis: int | None = None, symmetric: bool = False) -> None:
        super().__init__()
        if not 2 <= bits <= 16:
            raise ValueError(f"bits must be in 2 to 16, got {bits}")
        self.bits, self.axis, self.symmetric = bits, axis, symmetric
        self.register_buffer("lowest", torch.tensor(float("nan")), persistent=axis is None)
        self.register_buffer("highest", torch.tensor(float("nan")), persistent=axis is None)

    def extra_repr(self) -> str:
        """Settings.

        Returns:
            Settings as text.
        """
        return f"bits={self.bits}, axis={self.axis}, symmetric={self.symmetric}"

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.axis is not None:
            others = [a for a in range(x.ndim) if a != self.axis]
            return x.amin(others, keepdim=True), x.amax(others, keepdim=True)
        if self.training or bool(self.lowest.isnan()):
            low, high = x.detach().amin(), x.detach().amax()
            if bool(self.lowest.isnan()):
                self.lowest, self.highest = low, high
            else:
                self.lowest, self.highest = self.lowest.lerp(low, 0.1), self.highest.lerp(high, 0.1)
        return self.lowest, self.highest

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._range(x)
        if self.symmetric:
            most = torch.maximum(-low, high)
            scale = (2 * most / (2**self.bits - 2)).clamp(min=1e-12).detach()
            return scale, torch.full_like(scale, 2 ** (self.bits - 1))
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / (2**self.bits - 1)).clamp(min=1e-12).detach()
        return scale, (-low / scale).round().detach()

    def forward(self, x: Tensor) -> Tensor:
        """Quantise.

        Args:
            x: values.

        Returns:
            Values on the grid.
        """
        scale, zero = self._grid(x)
        return grid(x, scale=scale, zero=zero, low=0, high=2**self.bits - 1)

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode values.

        Args:
            x: values.

        Returns:
            Codes, int64, of the same shape; `scale` and `zero`.
        """
        scale, zero = self._grid(x.detach())
        codes = (x.detach() / scale + zero).clamp(0, 2**self.bits - 1).round()
        return codes.long(), {"scale": scale, "zero": zero}

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode values.

        Args:
            codes: integers in [0, 2^bits).
            constants: `scale` and `zero`.

        Returns:
            Values.
        """
        return (codes - constants["zero"]) * constants["scale"]


class QuantizedLayer(nn.Module):
    """A linear layer or convolution with quantised weights and inputs.

    Args:
        layer: the layer; its bias stays in floating point.
        weight: quantiser of the weights, or None.
        inputs: quantiser of the inputs, or None.
    """

    def __init__(self, layer: Layer, *, weight: nn.Module | None = None, inputs: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.weight_quantizer, self.input_quantizer = layer, weight, inputs

    def quantized_weight(self) -> Tensor:
        """The weights on their levels.

        Returns:
            Weights, of the layer's shape, with gradients.
        """
        weight = self.layer.weight
        return weight if self.weight_quantizer is None else self.weight_quantizer(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: inputs of the layer.

        Returns:
            Outputs of the layer.
        """
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.quantized_weight(), self.layer.bias)
        return self.layer._conv_forward(x, self.quantized_weight(), self.layer.bias)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """The quantised layers of a model.

    Args:
        model: network.

    Yields:
        Names and layers, in order.
    """
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            yield name, module


def quantized_(
    model: Module,
    *,
    weight: Callable[[Layer], nn.Module | None],
    inputs: Callable[[Layer], nn.Module | None] | None = None,
    choose: Callable[[str, Layer], bool] | None = None,
) -> Module:
    """Replace linear layers and convolutions by quantised ones, in place.

    Args:
        model: network; a layer that is used in two places stays one layer.
        weight: builder of a layer's weight quantiser.
        inputs: builder of a layer's input quantiser; None leaves inputs as they are.
        choose: whether to quantise a layer, by name and layer; None takes all but the first and the last, as is usual.

    Returns:
        The same model.

    Raises:
        ValueError: nothing to quantise, or layers that are quantised already.
    """
    if found := next((name for name, _ in quantized_layers(model)), None):
        raise ValueError(f"the model is quantised already ({found}); quantise the original")
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Layer)]
    ends = {id(module) for _, module in (layers[:1] + layers[-1:] if len(layers) > 2 else [])}
    chosen = {
        id(module): (name, module)
        for name, module in layers
        if (choose(name, module) if choose is not None else id(module) not in ends)
    }
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear layer or convolution to quantise; got {len(layers)}")
    made = {
        key: QuantizedLayer(layer, weight=weight(layer), inputs=None if inputs is None else inputs(layer))
        for key, (_, layer) in chosen.items()
    }
    for parent in list(model.modules()):
        if isinstance(parent, QuantizedLayer):
            continue
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in made:
                parent._modules[name] = made[id(child)]
    return model
