"""A cache of keys and values in which some tokens have more bits than others.

Integers of b bits with an offset and a step, for each channel of the keys, because some channels are large throughout,
and for each token and head of the values:

    code = round((x - low) / step),  step = (max x - low) / (2^b - 1);   x is about code · step + low

Shapes: B batch, N tokens of a prompt, n of one kind in one sequence, G heads of keys, D channels of a head.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WHOLE", "Coded", "cache_bytes", "decode", "encode", "mixed_layer"]

WHOLE = 16  # bits from which tokens are stored as they are


class Coded(NamedTuple):
    """Some tokens of one sequence as integers.

    Args:
        codes: integers, packed, (bytes,) uint8; the tokens themselves, (G, n, D), when they are stored whole.
        low: offsets, (G, 1, D) or (G, n, 1); None for whole tokens.
        step: steps, of the same shape.
        shape: G, n and D.
        bits: bits of an integer.
    """

    codes: Tensor
    low: Tensor | None
    step: Tensor | None
    shape: tuple[int, int, int]
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(x.numel() * x.element_size() for x in (self.codes, self.low, self.step) if x is not None)


def encode(x: Tensor, bits: int, *, by_channel: bool) -> Coded:
    """Store tokens in few bits.

    Args:
        x: keys or values, (G, n, D).
        bits: bits of an integer: 1, 2, 4 or 8; 16 stores the tokens as they are.
        by_channel: whether each channel has a step, as keys need it, rather than each token.

    Returns:
        The tokens.
    """
    shape = (x.shape[0], x.shape[1], x.shape[2])
    if bits >= WHOLE or not x.numel():
        return Coded(x.contiguous(), None, None, shape, WHOLE)
    axis = 1 if by_channel else 2
    low = x.amin(axis, keepdim=True)
    step = ((x.amax(axis, keepdim=True) - low) / (2**bits - 1)).clamp(min=torch.finfo(x.dtype).tiny)
    codes = ((x - low) / step).round().clamp(0, 2**bits - 1).to(torch.uint8).flatten()
    several = F.pad(codes, (0, -codes.numel() % (8 // bits))).view(-1, 8 // bits)
    places = torch.arange(8 // bits, dtype=torch.uint8, device=x.device) * bits
    return Coded((several << places).sum(1, dtype=torch.uint8), low, step, shape, bits)


def decode(coded: Coded) -> Tensor:
    """The inverse of `encode`, up to rounding.

    Args:
        coded: the tokens.

    Returns:
        Keys or values, (G, n, D).
    """
    if coded.low is None or coded.step is None:
        return coded.codes
    bits, count = coded.bits, torch.Size(coded.shape).numel()
    places = torch.arange(8 // bits, dtype=torch.uint8, device=coded.codes.device) * bits
    codes = (coded.codes[:, None] >> places & 2**bits - 1).flatten()[:count].view(coded.shape)
    return codes.to(coded.low.dtype) * coded.step + coded.low


def cache_bytes(tokens: int, others: int, *, heads: int, dim: int, bits: tuple[int, int], size: int) -> int:
    """Bytes of one layer's keys and values by the bit allocation.

    Args:
        tokens: number of important tokens.
        others: number of the others.
        heads: heads of keys, G.
        dim: channels of a head, D.
        bits: b_h and b_l.
        size: bytes of a number in the model's type, which constants have.

    Returns:
        Bytes.
    """
    total = 0
    for count, width in zip((tokens, others), bits, strict=True):
        if width >= WHOLE:
            total += 2 * count * heads * dim * size
        elif count:
            total += 2 * -(-count * heads * dim * width // 8) + 2 * heads * (dim + count) * size
    return total


@cache
def mixed_layer() -> type:
    """The layer of a cache whose prompt is stored in few bits; what follows is stored as it comes.

    Defined when it is first used, because transformers is slow to import.
    """
    from transformers.cache_utils import DynamicLayer

    class MixedLayer(DynamicLayer):
        keys: Tensor
        values: Tensor

        def __init__(self, keys: Tensor, values: Tensor, chosen: Tensor, real: Tensor, bits: tuple[int, int]) -> None:
            super().__init__()
            self.lazy_initialization(keys, values)
            self.length, self.rows = keys.shape[2], list(range(keys.shape[0]))
            # padding is not stored
            self.masks = [(row, ~row & held) for row, held in zip(chosen, real, strict=True)]
            self.coded = [
                [
                    [
                        encode(x[row][:, mask], width, by_channel=x is keys)
                        for mask, width in zip(masks, bits, strict=True)
                    ]
                    for row, masks in enumerate(self.masks)
                ]
                for x in (keys, values)
            ]

        def whole(self, which: int) -> Tensor:
            """Keys (0) or values (1) of the prompt, (B, G, N, D)."""
            found = []
            for row in self.rows:
                parts = [decode(part) for part in self.coded[which][row]]
                filled = parts[0].new_zeros(parts[0].shape[0], self.length, parts[0].shape[2])
                for part, mask in zip(parts, self.masks[row], strict=True):
                    filled[:, mask] = part
                found.append(filled)
            return torch.stack(found)

        @property
        def nbytes(self) -> int:
            prompt = sum(part.nbytes for row in self.coded for parts in row for part in parts)
            return prompt + sum(x.numel() * x.element_size() for x in (self.keys, self.values))

        def _recent(self) -> int:
            return self.keys.shape[-2] if self.keys.numel() else 0

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            recent = super().update(key_states, value_states, *args, **kwargs)
            keys, values = (torch.cat((self.whole(which), x), 2) for which, x in enumerate(recent))
            return keys, values

        def get_seq_length(self) -> int:
            return self.length + self._recent()

        def crop(self, tokens_to_remove: int) -> None:
            if abs(tokens_to_remove) > self._recent():
                raise VlmError(
                    f"the prompt is stored in few bits and cannot be shortened: {abs(tokens_to_remove)} tokens are to "
                    f"go, and {self._recent()} follow it; keep the prompt"
                )
            super().crop(tokens_to_remove)

        def _take(self, rows: Tensor) -> None:
            self.rows = [self.rows[row] for row in rows.tolist()]
            if self._recent():
                index = rows.to(self.keys.device)
                self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)

        def reorder_cache(self, beam_idx: Tensor) -> None:
            self._take(beam_idx)

        def batch_select_indices(self, indices: Tensor) -> None:
            self._take(indices)

        def batch_repeat_interleave(self, repeats: int) -> None:
            self._take(torch.arange(len(self.rows)).repeat_interleave(repeats))

    return MixedLayer
