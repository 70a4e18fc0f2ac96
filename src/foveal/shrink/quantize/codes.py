"""Weights stored as integers: rounding, and codes of eight or four bits with their scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.shrink.quantize.qdq import dequantize_linear

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Codes", "levels", "per_tensor", "round_to"]


def levels(bits: int) -> int:
    """Largest code of a signed integer.

    Args:
        bits: number of bits, b.

    Returns:
        2^(b-1) - 1.
    """
    return 2 ** (bits - 1) - 1


def round_to(x: Tensor, scale: Tensor, *, bits: int = 8) -> Tensor:
    """Round a tensor to codes.

    Args:
        x: tensor of any shape.
        scale: value of one code, broadcast over `x`.
        bits: number of bits, b.

    Returns:
        Integers in floating point, the shape of `x`.
    """
    return torch.round(x / scale).clamp(-levels(bits) - 1, levels(bits))


def per_tensor(weight: Tensor, *, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Round a weight with a single scale, given by its largest value.

    Args:
        weight: tensor of any shape.
        bits: number of bits, b.

    Returns:
        Codes, int8, the shape of `weight`; scale, ().
    """
    scale = weight.abs().max().clamp(min=1e-8) / levels(bits)
    return round_to(weight, scale, bits=bits).to(torch.int8), scale


class Codes(nn.Module):
    """A weight stored as integers, also in an exported file: one byte per 8-bit code, one byte per two 4-bit codes.

    Args:
        codes: int8 codes, (rows, columns) with an even number of columns for 4 bits, any shape for 8.
        scale: value of one code, () or (rows, groups) with equal groups of columns, of which the last may be shorter.
        bits: bits per code, 4 or 8.
        group_size: number of columns that share a scale; 0 for all.

    Raises:
        ValueError: an odd number of columns with 4 bits.
    """

    packed: Tensor
    scale: Tensor
    group: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, *, bits: int = 8, group_size: int = 0) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size
        if bits == 4:
            if codes.ndim != 2 or codes.shape[1] % 2:
                raise ValueError(f"codes of 4 bits need an even number of columns, got shape {tuple(codes.shape)}")
            halves = (codes + 8).to(torch.uint8)
            codes = halves[:, ::2] | halves[:, 1::2] << 4
        self.register_buffer("packed", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("group", torch.tensor(group_size))  # so that a loader can read it from the state

    @classmethod
    def stored(cls, state_dict: Mapping[str, Tensor], prefix: str) -> Codes:
        """Create codes from a stored state.

        Args:
            state_dict: state of a model.
            prefix: name of the codes in it, with a trailing dot.

        Returns:
            Codes with the stored shape, number of bits, groups and values.
        """
        packed, scale = state_dict[f"{prefix}packed"], state_dict[f"{prefix}scale"]
        found = cls(packed.clone(), scale.clone(), group_size=int(state_dict[f"{prefix}group"]))
        found.bits = 4 if packed.dtype == torch.uint8 else 8
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.scale.nbytes

    def codes(self) -> Tensor:
        """Unpack the codes.

        Returns:
            Codes, int8, the shape of the weight.
        """
        if self.bits == 8:
            return self.packed
        # (rows, columns / 2, 2) to (rows, columns)
        return torch.stack([self.packed & 15, self.packed // 16], dim=-1).flatten(1).to(torch.int8) - 8

    def forward(self) -> Tensor:
        codes = self.codes()
        scale = self.scale.float()
        if torch.onnx.is_in_onnx_export():
            if not scale.ndim:
                return dequantize_linear(codes, scale)
            groups = codes.split(self.group_size or codes.shape[1], dim=1)
            return torch.cat([dequantize_linear(group, scale[:, i]) for i, group in enumerate(groups)], dim=1)
        if self.group_size:
            scale = scale.repeat_interleave(self.group_size, dim=1)[:, : codes.shape[1]]
        return codes * scale
