"""What the claims of this package time their layers against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ConvLSTM", "attention_step", "training_step"]


class ConvLSTM(nn.Module):
    """A convolution of input and state to four gates (arXiv:1506.04214), (B, T, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * dim, 4 * dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden, cell, outputs = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for frame in x.unbind(1):
            into, keep, out, new = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(into) * torch.tanh(new)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1)


def attention_step(tokens: int, history: int, dim: int) -> Callable[[], Tensor]:
    """Softmax attention of new tokens to kept keys and values, in heads of up to 64 channels, without projections.

    Args:
        tokens: new ones.
        history: kept ones.
        dim: C.

    Returns:
        The function to time.
    """
    heads = -(-dim // 64)
    keys, values = torch.randn(2, 1, heads, history, dim // heads).unbind(0)
    query = torch.randn(1, heads, tokens, dim // heads)

    def call() -> Tensor:
        with torch.inference_mode():
            return F.scaled_dot_product_attention(query, keys, values)

    return call


def training_step(build: Callable[[], nn.Module], *shape: int) -> Callable[[], Tensor]:
    """A forward and a backward pass.

    Args:
        build: makes the network; of several outputs the first counts.
        *shape: of its input.

    Returns:
        The function to time.
    """
    torch.manual_seed(0)
    model, x = build().train(), torch.randn(shape)

    def call() -> Tensor:
        out = model(x)
        loss = (out[0] if isinstance(out, tuple) else out).square().mean()
        model.zero_grad()
        loss.backward()
        return loss.detach()

    return call
