"""XNOR-Net: layers whose weights, and whose inputs, are signs with a few real scales.

*Source*: M. Rastegari et al., "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", ECCV 2016
(arXiv:1603.05279): equation 6 and algorithm 1 (BWN), equations 11 and 12 and section 3.2 (XNOR-Net).

    BWN:  W ≈ α sign(W),  α = ‖W‖₁ / n for each filter of n weights
    XNOR: I ∗ W ≈ (sign(I) ⊛ sign(W)) ⊙ K α,   K = A ∗ k,  A = Σ_c |I_c| / C,  k = 1 / (w·h)
    ∂C/∂W_i = ∂C/∂W̃_i (1/n + α 1[|W_i| ≤ 1]),  W̃ = α sign(W)
    ∂C/∂I   = ∂C/∂sign(I) 1[|I| ≤ 1], and the gradient of K

I (B, C, H, W), W (O, C, h, w), K (B, 1, H', W'), α (O, 1, 1, 1); ⊛ is `foveal.ops.xnor`, exact in bits. For linear
layers K is the mean of |I| over the inputs of a token. A block is normalisation, sign and convolution, then pooling:
pooling signs would make nearly all of them 1. First and last layer stay real. A packed file (`save_packed`) holds one
bit for each weight and one scale for each filter, and so does `packed_` in memory.

*Differs from the paper*: border pixels of K are means over the whole kernel, zeros included, as a zero-padded
convolution with k gives. The paper does not say whether the gradient flows through K; here it does.
*Provenance*: written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.ops.xnor import pack_signs, sign, xnor_conv2d, xnor_matmul
from foveal.record import Method, Paper
from foveal.shrink.quantize.fake import QuantizedLayer, quantized_, quantized_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = [
    "BinaryWeight",
    "PackedXnorLayer",
    "XNORNet",
    "XnorLayer",
    "filter_scales",
    "input_scales",
    "packed_",
    "speed_up",
    "weight_signs",
    "xnor_block",
]

Layer = nn.Linear | nn.Conv2d


def filter_scales(weight: Tensor) -> Tensor:
    """α, the mean magnitude of each filter's weights (equation 6).

    Args:
        weight: weight, (O, …).

    Returns:
        Scales, (O, 1, …), without gradient.
    """
    return weight.detach().abs().mean(tuple(range(1, weight.ndim)), keepdim=True)


def weight_signs(weight: Tensor) -> Tensor:
    """Signs of weights with the gradient of equation 12, divided by α.

    Args:
        weight: weight, (O, …).

    Returns:
        1 or −1. A gradient g reaches the weight as g · (1/‖W‖₁ + 1[|W| ≤ 1]), so that α · `weight_signs` has the
        paper's gradient.
    """
    magnitude = weight.detach().abs()
    norm = magnitude.sum(tuple(range(1, weight.ndim)), keepdim=True).clamp(min=1e-12)
    through = weight * (1 / norm + (magnitude <= 1))
    return sign(weight.detach()) + (through - through.detach())  # a difference of equals: the value stays exact


def input_scales(x: Tensor, kernel_size: tuple[int, int], stride: int, padding: int) -> Tensor:
    """K, the mean magnitude of the inputs under each position of the kernel (section 3.2).

    Args:
        x: inputs, (B, C, H, W).
        kernel_size: height and width of the kernel.
        stride: step of the kernel.
        padding: width of the border of zeros.

    Returns:
        Scales, (B, 1, H', W').
    """
    return F.avg_pool2d(x.abs().mean(1, keepdim=True), kernel_size, stride, padding)


def speed_up(channels: int, taps: int = 9, *, word: int = 64) -> float:
    """Theoretical gain of a convolution of signs, with a word's operations at the cost of one (section 4.1).

    Args:
        channels: input channels, c.
        taps: weights of the kernel for each channel.
        word: bits of a word.

    Returns:
        word·c·taps / (c·taps + word).
    """
    return word * channels * taps / (channels * taps + word)


class BinaryWeight(nn.Module):
    """Weight quantiser of BWN: α sign(W), stored as one bit for each weight and one α for each filter."""

    bits = 1

    def forward(self, weight: Tensor) -> Tensor:
        """Quantise.

        Args:
            weight: weight, (O, …).

        Returns:
            α sign(W), with the gradient of equation 12.
        """
        return filter_scales(weight) * weight_signs(weight)

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode weights.

        Args:
            x: weight, (O, …).

        Returns:
            Codes, 1 for weights of at least 0, int64; `scale`.
        """
        return (x.detach() >= 0).long(), {"scale": filter_scales(x)}

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode weights.

        Args:
            codes: 0 or 1, (O, …).
            constants: `scale`.

        Returns:
            Weights, ±scale.
        """
        return constants["scale"] * (2 * codes - 1)


def _product(x: Tensor, signs: Tensor, scale: Tensor, layer: Any, *, scale_inputs: bool) -> Tensor:
    """(sign(x) ⊛ signs) ⊙ K α + bias; `layer` has the bias and, for a convolution, its geometry."""
    if signs.ndim == 2:
        y = xnor_matmul(x, signs) * scale.flatten()
        y = y * x.abs().mean(-1, keepdim=True) if scale_inputs else y
        return y if layer.bias is None else y + layer.bias
    stride, padding = layer.stride[0], layer.padding[0]
    y = xnor_conv2d(x, signs, stride=stride, padding=padding) * scale.flatten()[:, None, None]
    y = y * input_scales(x, layer.kernel_size, stride, padding) if scale_inputs else y
    return y if layer.bias is None else y + layer.bias[:, None, None]


class XnorLayer(QuantizedLayer):
    """A layer of binary weights and inputs, ready to train: (sign(x) ⊛ sign(W)) ⊙ K α.

    Args:
        layer: linear layer, or convolution with one group, equal strides and zero padding.
        scale_inputs: whether K is applied; without it the layer is faster and, in the paper, slightly less accurate.

    Raises:
        ValueError: another convolution.
    """

    def __init__(self, layer: Layer, *, scale_inputs: bool = True) -> None:
        super().__init__(layer, weight=BinaryWeight())
        self.scale_inputs = scale_inputs
        if isinstance(layer, nn.Conv2d):
            plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
            square = not isinstance(layer.padding, str) and len({*layer.padding}) == len({*layer.stride}) == 1
            if not (plain and square):
                raise ValueError(
                    f"an xnor convolution has one group, no dilation, zero padding and the same stride and padding "
                    f"both ways, got {layer}; leave it real by choose"
                )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: inputs, (B, C, H, W), or (…, C) for a linear layer.

        Returns:
            Outputs.
        """
        weight = self.layer.weight
        # A layer loaded from a packed file holds ±α already, and the mean of equal numbers may be rounded.
        packed = self.weight_quantizer is None
        scale = weight.detach().abs().flatten(1).amax(1) if packed else filter_scales(weight)
        return _product(x, weight_signs(weight), scale, self.layer, scale_inputs=self.scale_inputs)


class PackedXnorLayer(nn.Module):
    """A trained `XnorLayer` for inference, with its weights in bits.

    Args:
        trained: the layer.
    """

    words: Tensor
    scale: Tensor

    def __init__(self, trained: XnorLayer) -> None:
        super().__init__()
        layer, weight = trained.layer, trained.quantized_weight().detach()
        self.register_buffer("words", pack_signs(weight))
        self.register_buffer("scale", weight.abs().flatten(1).amax(1))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.scale_inputs = trained.scale_inputs
        if isinstance(layer, nn.Conv2d):
            self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: inputs, (B, C, H, W), or (…, C) for a linear layer.

        Returns:
            Outputs, equal to those of the trained layer.
        """
        return _product(x, self.words, self.scale, self, scale_inputs=self.scale_inputs)


def _replace_(model: nn.Module, made: Callable[[QuantizedLayer], nn.Module]) -> nn.Module:
    """Put another module in the place of every quantised layer."""
    found = {id(layer): made(layer) for _, layer in quantized_layers(model)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in found and not isinstance(parent, QuantizedLayer):
                setattr(parent, name, found[id(child)])
    return model


def packed_(model: nn.Module) -> nn.Module:
    """Replace trained xnor layers by packed ones, in place; the model then computes the same and cannot be trained.

    Args:
        model: network with xnor layers.

    Returns:
        The same model in eval mode.

    Raises:
        ValueError: no xnor layer.
    """
    if not any(isinstance(layer, XnorLayer) for _, layer in quantized_layers(model)):
        raise ValueError(f"{type(model).__name__} has no xnor layer to pack; apply XNORNet() and train it first")
    return _replace_(model, lambda x: PackedXnorLayer(x) if isinstance(x, XnorLayer) else x).eval()


def xnor_block(conv: nn.Conv2d, pool: nn.Module | None = None, *, activation: nn.Module | None = None) -> nn.Sequential:
    """The paper's block, before `XNORNet` makes it binary: normalisation, activation, convolution, pooling.

    Args:
        conv: the convolution.
        pool: pooling of its outputs, None for none.
        activation: activation of a real network or BWN; None where the convolution will take the signs itself.

    Returns:
        The block.
    """
    parts = (nn.BatchNorm2d(conv.in_channels), activation, conv, pool)
    return nn.Sequential(*(part for part in parts if part is not None))


@dataclass(frozen=True)
class XNORNet:
    """Step: binary weights, and with `inputs` binary inputs, in all layers but the first and the last; train it then.

    Args:
        inputs: whether inputs are binary too (XNOR-Net); False is BWN.
        scale_inputs: whether K is applied to binary inputs.
    """

    inputs: bool = True
    scale_inputs: bool = True

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:  # noqa: ARG002 - the protocol
        """Replace layers, in place.

        Args:
            model: network; for binary inputs built of `xnor_block`s.
            data: not used.

        Returns:
            The same model, to be trained.

        Raises:
            ValueError: nothing to quantise, or layers that are quantised already.
        """
        quantized_(model, weight=lambda _: BinaryWeight())
        if self.inputs:
            _replace_(model, lambda x: XnorLayer(x.layer, scale_inputs=self.scale_inputs))  # type: ignore[arg-type]
        return model


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            xnor_block(nn.Conv2d(6, 5, 3, padding=1), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(45, 7),
            nn.Linear(7, 2),
        )


def _case(step: XNORNet) -> Transform:
    return Transform(
        step.apply,
        _tiny,
        lambda seed: torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(seed)),
        twice="the model is quantised already",
    )


METHOD = Method(
    id=255,
    name="XNOR-Net",
    kind="transform",
    summary="Convolutions of signs, counted in bits, with a real scale for each filter and each position.",
    paper=Paper(
        "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
        "M. Rastegari et al.",
        2016,
        "arXiv:1603.05279",
    ),
    cases={"xnor": _case(XNORNet()), "bwn": _case(XNORNet(inputs=False))},
)
