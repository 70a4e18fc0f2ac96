"""Convolution kernels that are alike for a picture and for the picture turned or mirrored.

*Source*: T. Cohen, M. Welling, "Group Equivariant Convolutional Networks", ICML 2016 (arXiv:1602.07576), for their
group p4m; the translations are in every convolution, which leaves eight moves g: four turns, each mirrored or not.

A hidden layer's channels come in fields of eight, one for each move. Where the input is moved by g, every channel is
moved by g too, and goes to the place g·c in its field. A convolution keeps to that if its kernel (C', C, k, k) obeys

    W[g·c', g·c] = g W[c', c]    for all eight g

and any kernel becomes one that does by its mean over them: a projection, which is its own adjoint, so a gradient is
projected by the same sum. The kernel is an ordinary one afterwards: nothing is left to do at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MOVES", "Alike", "back", "fields", "moved", "phases", "still"]

MOVES = range(8)


def moved(x: Tensor, move: int) -> Tensor:
    """A picture turned or mirrored.

    Args:
        x: (..., H, W).
        move: 0 to 7: with bit 0 rows become columns, then with bit 1 it is put upside down, with bit 2 left to right.

    Returns:
        (..., H, W), or (..., W, H) for an odd move; a view.
    """
    x = x.mT if move & 1 else x
    flipped = [axis for axis, bit in ((-2, 2), (-1, 4)) if move & bit]
    return x.flip(flipped) if flipped else x


def back(move: int) -> int:
    """The move that undoes a move.

    Args:
        move: 0 to 7.

    Returns:
        0 to 7.
    """
    return _table()[move].index(0)


def _table() -> list[list[int]]:
    """The move that does the same as move b and then move a, at [a][b]."""
    grid = torch.arange(4, device="cpu").view(2, 2)  # read here, also where the network is built on "meta"
    seen = {tuple(moved(grid, move).flatten().tolist()): move for move in MOVES}
    return [[seen[tuple(moved(moved(grid, b), a).flatten().tolist())] for b in MOVES] for a in MOVES]


def still(channels: int) -> Tensor:
    """Where channels go that stay where they are (the colours of a picture): (8, C)."""
    return torch.arange(channels).expand(len(MOVES), -1)


def fields(channels: int) -> Tensor:
    """Where each hidden channel goes by each move: (8, C).

    Args:
        channels: C, a multiple of 8.

    Returns:
        Channel numbers.

    Raises:
        ValueError: another number of channels.
    """
    if channels % len(MOVES):
        raise ValueError(
            f"an equivariant layer has channels in fields of {len(MOVES)}: take a multiple, not {channels}"
        )
    places = torch.arange(0, channels, len(MOVES))[:, None] + torch.tensor(_table())[:, None]
    return places.flatten(1)


def phases(scale: int) -> Tensor:
    """Where the channels that `pixel_shuffle` makes a block of s×s pixels of go by each move: (8, s²)."""
    block = torch.arange(scale**2).view(scale, scale)
    return torch.stack([moved(block, move).flatten().argsort() for move in MOVES])


class Alike(nn.Module):
    """Projects kernels onto those that are alike for all moves, (C', C, k, k) to the same shape.

    Args:
        outputs: where each output channel goes by each move, (8, C'), from `fields`, `phases` or `still`.
        inputs: the same for the input channels, (8, C).
        kernel_size: k.
    """

    orbits: Tensor

    def __init__(self, outputs: Tensor, inputs: Tensor, kernel_size: int) -> None:
        super().__init__()
        shape = (outputs.shape[1], inputs.shape[1], kernel_size, kernel_size)
        places = torch.arange(shape[0] * shape[1] * kernel_size**2).view(shape)
        # At [g, n]: the weight that move g takes to place n.
        orbits = [moved(places, g)[outputs[g].argsort()[:, None], inputs[g].argsort()[None]].flatten() for g in MOVES]
        self.register_buffer("orbits", torch.stack(orbits), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return _Mean.apply(weight, self.orbits)  # type: ignore[no-any-return, no-untyped-call]


class _Mean(torch.autograd.Function):
    """Mean over the orbit of each weight; the orbits of all moves are the same sets, so its adjoint is itself."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, orbits: Tensor) -> Tensor:
        ctx.save_for_backward(orbits)
        return weight.reshape(-1)[orbits].mean(0).view(weight.shape)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (orbits,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0].reshape(-1)[orbits].mean(0).view(grads[0].shape), None
