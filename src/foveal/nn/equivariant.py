"""Convolution kernels that are equivariant to rotating a picture by 90° and to mirroring it.

*Source*: T. Cohen, M. Welling, "Group Equivariant Convolutional Networks", ICML 2016 (arXiv:1602.07576), for their
group p4m; every convolution has the translations, which leaves eight moves g: four rotations, each mirrored or not.

A hidden layer's channels come in fields of eight, one for each move. If the input is moved by g, every channel c is
moved by g too, and becomes channel g·c of its field. A convolution preserves this if its kernel (C', C, k, k) obeys

    W[g·c', g·c] = g W[c', c]    for all eight g

and averaging any kernel over the eight moves makes it do so. The average is a self-adjoint projection, so gradients are
projected by the same sum. The result is an ordinary kernel, with no extra cost at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MOVES", "Alike", "back", "fields", "moved", "phases", "still"]

MOVES = range(8)


def moved(x: Tensor, move: int) -> Tensor:
    """Rotate or mirror a picture.

    Args:
        x: pictures, (..., H, W).
        move: 0 to 7: bit 0 transposes, then bit 1 flips vertically, then bit 2 flips horizontally.

    Returns:
        (..., H, W), or (..., W, H) for an odd move; a view.
    """
    x = x.mT if move & 1 else x
    flipped = [axis for axis, bit in ((-2, 2), (-1, 4)) if move & bit]
    return x.flip(flipped) if flipped else x


def back(move: int) -> int:
    """The inverse of a move.

    Args:
        move: 0 to 7.

    Returns:
        0 to 7.
    """
    return _table()[move].index(0)


def _table() -> list[list[int]]:
    """At [a][b], the move that equals move b followed by move a."""
    grid = torch.arange(4, device="cpu").view(2, 2)  # real values, even if the network is built on "meta"
    seen = {tuple(moved(grid, move).flatten().tolist()): move for move in MOVES}
    return [[seen[tuple(moved(moved(grid, b), a).flatten().tolist())] for b in MOVES] for a in MOVES]


def still(channels: int) -> Tensor:
    """Permutations for channels that no move permutes (the colours of a picture): (8, C)."""
    return torch.arange(channels).expand(len(MOVES), -1)


def fields(channels: int) -> Tensor:
    """The permutation of hidden channels under each move.

    Args:
        channels: C, a multiple of 8.

    Returns:
        Channel indices, (8, C).

    Raises:
        ValueError: if the number of channels is not a multiple of 8.
    """
    if channels % len(MOVES):
        raise ValueError(
            f"an equivariant layer needs a multiple of {len(MOVES)} channels, got {channels}; "
            f"take {channels + -channels % len(MOVES)}"
        )
    places = torch.arange(0, channels, len(MOVES))[:, None] + torch.tensor(_table())[:, None]
    return places.flatten(1)


def phases(scale: int) -> Tensor:
    """The permutation under each move of the s² channels that `pixel_shuffle` turns into an s×s block: (8, s²)."""
    block = torch.arange(scale**2).view(scale, scale)
    return torch.stack([moved(block, move).flatten().argsort() for move in MOVES])


class Alike(nn.Module):
    """Projects kernels onto the equivariant ones, (C', C, k, k) to the same shape.

    Args:
        outputs: permutation of the output channels under each move, (8, C'), from `fields`, `phases` or `still`.
        inputs: the same for the input channels, (8, C).
        kernel_size: k.
    """

    orbits: Tensor

    def __init__(self, outputs: Tensor, inputs: Tensor, kernel_size: int) -> None:
        super().__init__()
        shape = (outputs.shape[1], inputs.shape[1], kernel_size, kernel_size)
        places = torch.arange(shape[0] * shape[1] * kernel_size**2).view(shape)
        # At [g, n]: index of the weight that move g takes to place n.
        orbits = [moved(places, g)[outputs[g].argsort()[:, None], inputs[g].argsort()[None]].flatten() for g in MOVES]
        self.register_buffer("orbits", torch.stack(orbits), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return _Mean.apply(weight, self.orbits)  # type: ignore[no-any-return, no-untyped-call]


class _Mean(torch.autograd.Function):
    """Mean over the orbit of each weight; orbits partition the weights, so the mean is its own adjoint."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, orbits: Tensor) -> Tensor:
        ctx.save_for_backward(orbits)
        return weight.reshape(-1)[orbits].mean(0).view(weight.shape)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (orbits,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0].reshape(-1)[orbits].mean(0).view(grads[0].shape), None
