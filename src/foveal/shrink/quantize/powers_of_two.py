"""Layers whose weights are 0 and powers of two: trained in floating point, computed in integers by shifts and sums.

    w ≈ sign(w)·2^p, p = round(log₂ |w|)         x·w = Σ ±(x << p)

The exponents of a layer lie in a window below its largest one, and what is below the window becomes 0. A weight of 4
bits is a sign and one of 8 values, 0 or 2^p with 7 exponents; in bytes, 0 or ±2^0 to ±2^6. Inputs are integers of 8
bits with a scale for each token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.shrink.quantize.fake import QuantizedLayer, straight_through

__all__ = [
    "IntegerShift",
    "PowersOfTwo",
    "TokenBytes",
    "integer_",
    "shift_add",
    "shift_add_reference",
    "shift_layer",
    "shifts",
]


def shifts(weight: Tensor, *, bits: int = 4) -> tuple[Tensor, Tensor]:
    """The exponents of the powers of two nearest to weights, on a logarithmic scale.

    Args:
        weight: weights.
        bits: bits of a weight, of which one is the sign.

    Returns:
        k in 0 to 2^(bits-1) - 1, whole, of the same shape, 0 for a weight that becomes 0; the exponent e of k = 1, a
        scalar: |w| ≈ 2^(e + k - 1).
    """
    levels = 2 ** (bits - 1) - 1
    p = weight.detach().abs().clamp(min=1e-30).log2().round()
    low = p.amax() - (levels - 1)
    return (p - low + 1).clamp(min=0) * (weight != 0), low


def shift_add(x: Tensor, weight: Tensor) -> Tensor:
    """Product of bytes with powers of two, Σ ±(x << p), as one product of integers.

    Args:
        x: integers, (M, K) int8.
        weight: 0 or ±2^p with p in 0 to 6, (N, K) int8.

    Returns:
        Sums, (M, N) int32.
    """
    return torch._int_mm(x, weight.T)


def shift_add_reference(x: Tensor, weight: Tensor) -> Tensor:
    """`shift_add` bit by bit: shift each input, negate where the weight is negative, add.

    Args:
        x: integers, (M, K) int8.
        weight: 0 or ±2^p with p in 0 to 6, (N, K) int8.

    Returns:
        Sums, (M, N) int32.
    """
    total = torch.zeros(len(x), len(weight), dtype=torch.int32, device=x.device)
    for p in range(7):
        shifted = x.to(torch.int32) << p
        for row, w in enumerate(weight.int()):
            total[:, row] += shifted[:, w == 1 << p].sum(-1, dtype=torch.int32)
            total[:, row] -= shifted[:, w == -(1 << p)].sum(-1, dtype=torch.int32)
    return total


class PowersOfTwo(nn.Module):
    """Weight quantiser to 0 and ±2^p, stored as signs and exponents.

    Args:
        bits: bits of a weight, 2 to 4.

    Raises:
        ValueError: bits outside their range.
    """

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        if not 2 <= bits <= 4:
            raise ValueError(f"bits must be in 2 to 4, a sign and a shift of at most 6, got {bits}")
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """Quantise.

        Args:
            weight: weights.

        Returns:
            0 or ±2^p, with the gradient of the weights.
        """
        return straight_through(weight, self.decode(*self.encode(weight)))

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode weights.

        Args:
            x: weights.

        Returns:
            Codes: k for a positive weight, k + 2^(bits-1) for a negative one, int64; `low`, the exponent of k = 1.
        """
        k, low = shifts(x, bits=self.bits)
        return (k + 2 ** (self.bits - 1) * ((x.detach() < 0) & (k > 0))).long(), {"low": low}

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode weights.

        Args:
            codes: codes.
            constants: `low`.

        Returns:
            0 or ±2^p.
        """
        k = codes % 2 ** (self.bits - 1)
        size = torch.ldexp(torch.ones_like(constants["low"]), constants["low"] + k - 1)
        return torch.where(codes >= 2 ** (self.bits - 1), -size, size) * (k > 0)


class TokenBytes(nn.Module):
    """Input quantiser to integers of 8 bits with a scale for each token."""

    def scale(self, x: Tensor) -> Tensor:
        """Scale of each token.

        Args:
            x: tokens, (…, K).

        Returns:
            max |x| / 127, (…, 1).
        """
        return (x.detach().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Quantise.

        Args:
            x: tokens, (…, K).

        Returns:
            Tokens on their levels, with the gradient of x.
        """
        scale = self.scale(x)
        return straight_through(x, (x.detach() / scale).round() * scale)


def shift_layer(layer: nn.Linear, *, bits: int = 4) -> QuantizedLayer:
    """A layer whose weights are powers of two, to be trained.

    Args:
        layer: linear layer.
        bits: bits of a weight.

    Returns:
        The layer with its quantisers.
    """
    return QuantizedLayer(layer, weight=PowersOfTwo(bits), inputs=TokenBytes())


class IntegerShift(nn.Module):
    """A trained shift layer in integers, for inference: tokens (…, K) to (…, N).

    Args:
        layer: layer of `shift_layer`.
    """

    weight: Tensor
    step: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        values = layer.quantized_weight().detach()
        low = shifts(values)[1]  # of the widest window, whatever the bits
        self.register_buffer("step", torch.ldexp(torch.ones_like(low), low))
        self.register_buffer("weight", (values / self.step).to(torch.int8))
        bias = layer.layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.tokens = TokenBytes()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: tokens, (…, K).

        Returns:
            Outputs, (…, N).
        """
        scale = self.tokens.scale(x)
        codes = (x / scale).round_().to(torch.int8).flatten(0, -2)
        sums = shift_add(codes, self.weight).to(x.dtype).view(*x.shape[:-1], len(self.weight))
        factor = scale * self.step
        return sums * factor if self.bias is None else torch.addcmul(self.bias, sums, factor)


def integer_(model: nn.Module) -> nn.Module:
    """Convert trained shift layers to integers, in place, for inference.

    Args:
        model: network with layers of `shift_layer`.

    Returns:
        The same model in eval mode.

    Raises:
        ValueError: no shift layer.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, QuantizedLayer) and isinstance(child.input_quantizer, TokenBytes)
    ]
    if not places:
        raise ValueError(f"{type(model).__name__} has no shift layer; put some in with shift_layer")
    for parent, name, child in places:
        setattr(parent, name, IntegerShift(child))
    return model.eval()
