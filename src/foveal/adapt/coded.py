"""Matrices in 2^b levels: the levels that suit normal values best, codes as packed bits, and learning through them.

Source and departures: see `foveal.adapt.bi_adaptformer`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

__all__ = ["CodedMatrix", "codes_of", "gaussian_levels", "pack", "unpack", "unpacked"]

BITS = (1, 2, 4)
EPS = 1e-5  # of σ, as in the authors' code


@lru_cache(maxsize=16)
def gaussian_levels(bits: int = 1, *, error: str = "squared") -> Tensor:
    """The 2^b numbers that represent a standard normal variable with the least error.

    Args:
        bits: b, one of 1, 2, 4.
        error: "squared" (each level is the mean of its cell) or "absolute" (the median).

    Returns:
        Levels in ascending order, (2^b,), float32; do not modify them.

    Raises:
        ValueError: another number of bits or error.
    """
    if bits not in BITS or error not in ("squared", "absolute"):
        raise ValueError(f"bits must be 1, 2 or 4 and error squared or absolute, got {bits} and {error!r}")
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    count = 2**bits
    levels = normal.icdf((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    while True:
        former, edges = levels, torch.cat([ends[:1], (levels[1:] + levels[:-1]) / 2, ends[1:]])
        below = normal.cdf(edges)
        if error == "absolute":
            levels = normal.icdf((below[1:] + below[:-1]) / 2)
        else:
            density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
            levels = (density[:-1] - density[1:]) / (below[1:] - below[:-1])
        if (levels - former).abs().max() < 1e-9:
            return levels.float()


def codes_of(weight: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix in the nearest levels.

    Args:
        weight: W, at least two values.
        levels: ascending, (2^b,).

    Returns:
        Number of the level of each weight, int64; μ and σ.
    """
    mean, deviation = weight.mean(), weight.std()
    z = (weight.detach() - mean.detach()) / (deviation.detach() + EPS)
    return torch.bucketize(z, (levels[1:] + levels[:-1]) / 2), mean, deviation


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as bytes, the first one in the lowest bits.

    Args:
        codes: in 0…2^b - 1, any shape.
        bits: b, 1, 2 or 4.

    Returns:
        ⌈n·b/8⌉ bytes, uint8.
    """
    every = 8 // bits
    flat = nn.functional.pad(codes.flatten(), (0, -codes.numel() % every)).view(-1, every)
    return (flat << (bits * torch.arange(every, device=codes.device))).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Codes from bytes.

    Args:
        packed: uint8.
        bits: b, 1, 2 or 4.
        count: n, number of codes.

    Returns:
        (n,), int64.
    """
    shifts = bits * torch.arange(8 // bits, device=packed.device)
    return ((packed.long()[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]


class CodedMatrix(nn.Module):
    """A matrix that is used in its 2^b levels and learns as if it were not.

    Args:
        rows: number of rows.
        columns: number of columns.
        bits: b.
        deviation: of the values at first, cut at twice that.
    """

    levels: Tensor

    def __init__(self, rows: int, columns: int, *, bits: int = 1, deviation: float) -> None:
        super().__init__()
        self.bits = bits
        self.weight = nn.Parameter(torch.empty(rows, columns))
        nn.init.trunc_normal_(self.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        self.register_buffer("levels", gaussian_levels(bits), persistent=False)

    def forward(self) -> Tensor:
        """The matrix in its levels.

        Returns:
            Ŵ, (rows, columns).
        """
        codes, mean, deviation = codes_of(self.weight, self.levels)
        z = (self.weight - mean) / (deviation + EPS)
        coded = self.levels[codes] + (z - z.detach())  # adds an exact zero that has a gradient
        return coded * deviation + mean

    @torch.no_grad()
    def packed(self) -> tuple[Tensor, Tensor]:
        """What is stored.

        Returns:
            Bytes, uint8; μ and σ, (2,).
        """
        codes, mean, deviation = codes_of(self.weight, self.levels)
        return pack(codes, self.bits), torch.stack([mean, deviation])


def unpacked(packed: Tensor, scalars: Tensor, shape: tuple[int, int], bits: int) -> Tensor:
    """The matrix that was stored.

    Args:
        packed: bytes, uint8.
        scalars: μ and σ, (2,).
        shape: rows and columns.
        bits: b.

    Returns:
        Ŵ, bit for bit as it was used in training.
    """
    codes = unpack(packed, bits, shape[0] * shape[1]).view(shape)
    return gaussian_levels(bits).to(scalars)[codes] * scalars[1] + scalars[0]
