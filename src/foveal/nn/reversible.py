"""Reversible blocks: inputs are computed again from outputs, so that training keeps one output of many blocks.

*Source*: A. N. Gomez et al., "The Reversible Residual Network: Backpropagation Without Storing Activations", NeurIPS
2017 (arXiv:1707.04585), section 3, equations 6 and 7 and algorithm 1. The channels of x, (B, C, …), are two halves:

    y₁ = x₁ + F(x₂)        x₂ = y₂ - G(y₁)
    y₂ = x₂ + G(y₁)        x₁ = y₁ - F(x₂)

Backward goes through the blocks from the last to the first. It recovers a block's input and runs F and G once more, so
that only their own activations are alive, one at a time; a step takes about a third more time.

F and G must give the same each time: no dropout, and no batch norm that is in training. Gradients of gradients are not
there. Under autocast, F and G run in backward as they ran in forward.

*Differs from the paper*: nothing.
*Provenance*: written from the paper.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]

__all__ = ["Reversible", "forward_stored", "inverse", "reversible"]


def forward_stored(x: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The blocks one after another, as autograd runs them: all activations are kept.

    Args:
        x: input, (B, C, …), C even.
        pairs: F and G of each block, (B, C / 2, …) to the same.

    Returns:
        Output, (B, C, …).
    """
    first, second = x.chunk(2, 1)
    for f, g in pairs:
        first = first + f(second)
        second = second + g(first)
    return torch.cat([first, second], 1)


def inverse(y: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The input of the blocks from their output.

    Args:
        y: output, (B, C, …).
        pairs: F and G of each block.

    Returns:
        Input, (B, C, …).
    """
    first, second = y.chunk(2, 1)
    for f, g in reversed(pairs):
        second = second - g(first)
        first = first - f(second)
    return torch.cat([first, second], 1)


def _again(
    branch: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, weights: list[Tensor], found: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """A branch's output, and the gradient of its input; those of the weights are added to `found`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = branch(x)
    if not out.requires_grad:  # a branch of constants
        return out, torch.zeros_like(x)
    of_x, *of_weights = torch.autograd.grad(out, [x, *weights], gradient.to(out.dtype), allow_unused=True)
    for weight, value in zip(weights, of_weights, strict=True):
        if value is not None:
            found[id(weight)] = found[id(weight)] + value if id(weight) in found else value
    return out.detach(), torch.zeros_like(x) if of_x is None else of_x


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: Sequence[Pair], *weights: Tensor) -> Tensor:
        ctx.pairs, ctx.weights = pairs, weights
        device = x.device.type
        on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        ctx.autocast = (device, torch.get_autocast_dtype(device)) if on else None
        y = forward_stored(x, pairs)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        first, second = y.chunk(2, 1)
        of_first, of_second = gradient.chunk(2, 1)
        weights = list(ctx.weights)
        found: dict[int, Tensor] = {}
        with ExitStack() as stack:
            if ctx.autocast is not None:
                stack.enter_context(torch.autocast(ctx.autocast[0], ctx.autocast[1]))
            for f, g in reversed(ctx.pairs):
                out, more = _again(g, first, of_second, weights, found)
                second, of_first = second - out, of_first + more
                out, more = _again(f, second, of_first, weights, found)
                first, of_second = first - out, of_second + more
        return torch.cat([of_first, of_second], 1), None, *(found.get(id(weight)) for weight in weights)


def reversible(x: Tensor, pairs: Sequence[Pair], weights: Sequence[Tensor]) -> Tensor:
    """The blocks one after another; of all their activations the output alone is kept.

    Args:
        x: input, (B, C, …), C even.
        pairs: F and G of each block, (B, C / 2, …) to the same.
        weights: parameters of F and G that gradients are to reach.

    Returns:
        Output, (B, C, …).

    Raises:
        ValueError: an odd number of channels.
    """
    if x.shape[1] % 2:
        raise ValueError(f"the channels must be two halves, got {x.shape[1]}; take an even number")
    y: Tensor = _Reversible.apply(x, tuple(pairs), *weights)  # type: ignore[no-untyped-call]
    return y


class Reversible(nn.Module):
    """Reversible blocks, (B, C, …) to the same.

    Args:
        pairs: F and G of each block, modules of (B, C / 2, …) to the same.
        store: whether to keep all activations, which takes more memory and less time.
    """

    def __init__(self, pairs: Sequence[tuple[nn.Module, nn.Module]], *, store: bool = False) -> None:
        super().__init__()
        self.f, self.g = nn.ModuleList(f for f, _ in pairs), nn.ModuleList(g for _, g in pairs)
        self.store = store

    @property
    def pairs(self) -> list[Pair]:
        """F and G of each block."""
        return list(zip(self.f, self.g, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.store or not torch.is_grad_enabled():
            return forward_stored(x, self.pairs)
        return reversible(x, self.pairs, [value for value in self.parameters() if value.requires_grad])
