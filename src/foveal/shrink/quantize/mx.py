"""MX: blocks of 32 values share a power of two, and each value keeps a few bits of its own.

*Source*: B. D. Rouhani et al., "Microscaling Data Formats for Deep Learning", 2023 (arXiv:2310.10537), sections 2 to 4,
and the OCP Microscaling Formats specification 1.0, sections 5 and 6.3. For the values x of one block and an element
format with largest exponent emax, smallest exponent emin, M bits of mantissa and largest value L

    s = floor(log2 max|x|) - emax, in [-127, 127];   y = clamp(x / 2^s, -L, L)
    e = max(floor(log2 |y|), emin);   Q(x) = 2^s · 2^(e - M) · round(y / 2^(e - M)), ties to even

s takes one byte (E8M0). Blocks lie along the axis that a product sums over: the inputs of a linear layer, the channels
of a convolution. Training in MX is in `foveal.shrink.quantize.mx_training`.

Shapes: x of any shape; scales have ⌈n/32⌉ entries along the axis of n values.

*Differs from the paper*: a last block may be shorter. Arithmetic is simulated in float32. A block with a NaN is NaN; an
infinity saturates. torchao 0.18 rounds alike, but halves blocks whose scale has the code 0, those of values near 1e-38.

*Provenance*: written from the paper and the specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.shrink.quantize.fake import Layer, quantized_, straight_through

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BLOCK",
    "FORMATS",
    "Format",
    "MXQuantizer",
    "decode",
    "direct_cast_",
    "encode",
    "every_layer",
    "known",
    "mx",
    "mx_bytes",
    "mx_reference",
]

BLOCK = 32  # values that share a scale
NAN = 255  # E8M0 code of a block that holds a NaN


@dataclass(frozen=True)
class Format:
    """Element format: a sign, an exponent and a mantissa, or a two's complement integer with 6 fractional bits.

    Args:
        bits: bits of an element.
        mantissa: bits of the mantissa, M.
        emin: exponent of the smallest normal value.
        emax: exponent of the largest value.
        largest: largest value, L.
    """

    bits: int
    mantissa: int
    emin: int
    emax: int
    largest: float

    @property
    def integer(self) -> bool:
        """Whether elements are integers."""
        return self.bits == self.mantissa + 2

    def values(self) -> Tensor:
        """Value of each code.

        Returns:
            Values, (2^bits,), float32; codes of infinities and NaN have values that are never used.
        """
        codes = torch.arange(2**self.bits)
        if self.integer:
            return torch.where(codes < 128, codes, codes - 256) / 2.0**self.mantissa
        magnitude = codes % 2 ** (self.bits - 1)
        field, rest = magnitude >> self.mantissa, magnitude % 2**self.mantissa
        fraction = rest / 2.0**self.mantissa + (field > 0)
        sign = torch.where(codes < 2 ** (self.bits - 1), 1.0, -1.0)
        return sign * torch.ldexp(fraction, (field - 1).clamp(min=0) + self.emin)


FORMATS = {
    "mxfp8_e5m2": Format(8, 2, -14, 15, 57344.0),
    "mxfp8_e4m3": Format(8, 3, -6, 8, 448.0),
    "mxfp6_e3m2": Format(6, 2, -2, 4, 28.0),
    "mxfp6_e2m3": Format(6, 3, 0, 2, 7.5),
    "mxfp4_e2m1": Format(4, 1, 0, 2, 6.0),
    "mxint8": Format(8, 6, 0, 0, 127 / 64),
}


def known(name: str) -> Format:
    """Look up a format.

    Args:
        name: name in `FORMATS`.

    Returns:
        The format.

    Raises:
        ValueError: an unknown format.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def _blocked(x: Tensor, axis: int) -> tuple[Tensor, int]:
    """Blocks along an axis, zeros in the last one's free places: (…, blocks, size, …), and the axis of the blocks."""
    axis %= x.ndim
    size = min(BLOCK, max(1, x.shape[axis]))
    if free := -x.shape[axis] % size:
        x = F.pad(x, [0, 0] * (x.ndim - axis - 1) + [0, free])
    return x.unflatten(axis, (-1, size)), axis


def _scale(code: Tensor) -> Tensor:
    """2^(code - 127), exact also where it is subnormal; NaN for the code of a NaN."""
    bits = torch.where(code == 0, 1 << 22, code.int() << 23)
    return bits.view(torch.float32).masked_fill(code == NAN, torch.nan)


def _parts(x: Tensor, element: Format, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled and clamped values, their quanta 2^(e - M), and the scales' codes, all in blocks."""
    blocks, axis = _blocked(x.detach().float(), axis)
    largest = blocks.abs().amax(axis + 1, keepdim=True)
    field = largest.view(torch.int32) >> 23  # biased exponent, 0 for zeros and 255 for infinities
    code = (field - element.emax).clamp(0, 254)
    y = (blocks * _scale(254 - code)).clamp_(-element.largest, element.largest)
    power = (y.view(torch.int32) & 0x7F800000).view(torch.float32)  # 2^floor(log2 |y|)
    quantum = power.clamp_(min=2.0**element.emin).mul_(2.0**-element.mantissa)
    return y, quantum, code.masked_fill_(largest.isnan(), NAN).to(torch.uint8)


def mx(x: Tensor, element_format: str = "mxfp8_e4m3", *, axis: int = -1) -> Tensor:
    """Quantise and dequantise.

    Args:
        x: values; computed in float32.
        element_format: name in `FORMATS`.
        axis: axis along which 32 values share a scale.

    Returns:
        Values of the format, of the shape and type of `x`, with the gradient of the identity.

    Raises:
        ValueError: an unknown format.
    """
    element = known(element_format)
    y, quantum, scale = _parts(x, element, axis)
    axis %= x.ndim
    whole = y.div_(quantum).round_()
    if element.integer:
        whole += 0.0  # integers have one zero
    quantized = whole.mul_(quantum).mul_(_scale(scale)).flatten(axis, axis + 1)
    return straight_through(x, quantized.narrow(axis, 0, x.shape[axis]).to(x.dtype))


def encode(x: Tensor, element_format: str = "mxfp8_e4m3", *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Encode values.

    Args:
        x: values; computed in float32.
        element_format: name in `FORMATS`.
        axis: axis along which 32 values share a scale.

    Returns:
        Codes of the elements, int64, of the shape of `x`; codes of the scales, uint8, ⌈n/32⌉ along the axis.

    Raises:
        ValueError: an unknown format.
    """
    element = known(element_format)
    y, quantum, scale = _parts(x, element, axis)
    axis %= x.ndim
    whole = (y / quantum).round()
    if element.integer:
        codes = whole.long() % 256
    else:
        # The exponent field counts quanta above the smallest; a mantissa rounded up to 2^(M+1) carries into it.
        steps = (quantum.view(torch.int32) >> 23) - 127 - element.emin + element.mantissa
        codes = (steps << element.mantissa) + whole.abs().int()
        codes = codes.long() + (y.signbit().long() << (element.bits - 1))
    codes = codes.masked_fill(scale == NAN, 0)
    return codes.flatten(axis, axis + 1).narrow(axis, 0, x.shape[axis]), scale.squeeze(axis + 1)


def decode(codes: Tensor, scale: Tensor, element_format: str = "mxfp8_e4m3", *, axis: int = -1) -> Tensor:
    """Decode values; `decode(*encode(x))` equals `mx(x)` to the bit in float32.

    Args:
        codes: codes of the elements.
        scale: codes of the scales.
        element_format: name in `FORMATS`.
        axis: axis along which 32 values share a scale.

    Returns:
        Values, float32, of the shape of the codes.

    Raises:
        ValueError: an unknown format.
    """
    elements, axis = _blocked(known(element_format).values()[codes], axis)
    return (elements * _scale(scale.unsqueeze(axis + 1))).flatten(axis, axis + 1).narrow(axis, 0, codes.shape[axis])


def mx_bytes(shape: tuple[int, ...], element_format: str, *, axis: int = -1) -> int:
    """Bytes of a tensor: its elements, packed, and one byte a block.

    Args:
        shape: shape of the tensor.
        element_format: name in `FORMATS`.
        axis: axis along which 32 values share a scale.

    Returns:
        Bytes.

    Raises:
        ValueError: an unknown format.
    """
    count = int(torch.Size(shape).numel())
    return -(-count * known(element_format).bits // 8) + count // shape[axis] * -(-shape[axis] // BLOCK)


def mx_reference(x: Tensor, element_format: str = "mxfp8_e4m3", *, axis: int = -1) -> Tensor:
    """The same, plainly: block after block, the nearest of all values, of two the one of even code.

    Args:
        x: finite values, not all subnormal in a block.
        element_format: name in `FORMATS`.
        axis: axis along which 32 values share a scale.

    Returns:
        Values of the format.
    """
    element = known(element_format)
    table = element.values()[: 2 ** (element.bits - 1)].double()  # ascending and not negative; its index is the code
    table = table[table <= element.largest]
    rows = []
    for block in x.detach().float().double().movedim(axis, -1).split(BLOCK, -1):
        scale = torch.exp2(torch.floor(torch.log2(block.abs().amax(-1, keepdim=True))) - element.emax)
        scale = scale.clamp(2.0**-127, 2.0**127)
        gap = (block.abs() / scale)[..., None] - table
        gap = gap.abs() + 1e-12 * (torch.arange(len(table)) % 2)
        rows.append(table[gap.argmin(-1)] * scale * block.sign())
    return straight_through(x, torch.cat(rows, -1).movedim(-1, axis).to(x.dtype))


class MXQuantizer(nn.Module):
    """`mx` as a quantiser of a layer, which can be packed.

    Args:
        element_format: name in `FORMATS`.
        axis: axis along which 32 values share a scale.

    Raises:
        ValueError: an unknown format.
    """

    def __init__(self, element_format: str = "mxfp8_e4m3", *, axis: int = -1) -> None:
        super().__init__()
        self.bits, self.element_format, self.axis = known(element_format).bits, element_format, axis

    def forward(self, x: Tensor) -> Tensor:
        """Quantise.

        Args:
            x: values.

        Returns:
            Values of the format.
        """
        return mx(x, self.element_format, axis=self.axis)

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode values.

        Args:
            x: values.

        Returns:
            Codes of the elements; `scale`, the codes of the scales.
        """
        codes, scale = encode(x, self.element_format, axis=self.axis)
        return codes, {"scale": scale}

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode values.

        Args:
            codes: codes of the elements.
            constants: `scale`.

        Returns:
            Values.
        """
        return decode(codes, constants["scale"], self.element_format, axis=self.axis)


def every_layer(name: str, layer: Layer) -> bool:  # noqa: ARG001 - the signature of `choose`
    """Choose all layers."""
    return True


def direct_cast_(
    model: nn.Module, element_format: str = "mxfp8_e4m3", *, choose: Callable[[str, Layer], bool] = every_layer
) -> nn.Module:
    """Quantise weights and inputs of linear layers and convolutions without training, in place.

    Args:
        model: network.
        element_format: name in `FORMATS`.
        choose: whether to quantise a layer, by name and layer.

    Returns:
        The same model, with layers that `foveal.shrink.quantize.packed` can store.
    """
    return quantized_(
        model,
        weight=lambda _: MXQuantizer(element_format, axis=1),
        inputs=lambda layer: MXQuantizer(element_format, axis=-1 if isinstance(layer, nn.Linear) else 1),
        choose=choose,
    )


def _values(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(5, 70, generator=generator) * torch.logspace(-3, 3, 5)[:, None]}


METHOD = Method(
    id=264,
    name="MX",
    kind="operator",
    summary="Blocks of 32 values share a power of two, and each value keeps 4 to 8 bits of its own.",
    cases={
        name: Operator(partial(mx, element_format=name), partial(mx_reference, element_format=name), _values)
        for name in FORMATS
    },
    paper=Paper("Microscaling Data Formats for Deep Learning", "B. D. Rouhani et al.", 2023, "arXiv:2310.10537"),
)
