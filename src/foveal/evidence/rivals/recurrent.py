"""Rivals of recurrences: a convolutional LSTM, attention to all previous frames, attention alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    Pair = tuple[Tensor, Tensor]

__all__ = ["ConvLSTM", "FrameAttention", "attention_step"]


class ConvLSTM(nn.Module):
    """ConvLSTM: a convolution of input and state to four gates (arXiv:1506.04214).

    (B, T, C, H, W) to the same and the state.

    Args:
        dim: number of channels, C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * dim, 4 * dim, 3, padding=1)

    def forward(self, x: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        hidden, cell = (torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])) if state is None else state
        outputs = []
        for frame in x.unbind(1):
            into, keep, out, new = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(into) * torch.tanh(new)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1), (hidden, cell)


class FrameAttention(nn.Module):
    """Attention of one frame's positions to all frames so far, (B, 1, C, H, W) to the same and keys and values.

    Args:
        dim: number of channels, C; one head.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        # (B, 1, C, H, W) to (B, H·W, C)
        query, *new = self.qkv(x[:, 0].flatten(2).transpose(1, 2)).chunk(3, -1)
        keys, values = new if state is None else (torch.cat(pair, 1) for pair in zip(state, new, strict=True))
        y = self.out(F.scaled_dot_product_attention(query, keys, values))
        return y.transpose(1, 2).reshape(x.shape), (keys, values)


def attention_step(tokens: int, history: int, dim: int) -> Callable[[], Tensor]:
    """Softmax attention of new tokens to cached keys and values, in heads of up to 64 channels, without projections.

    Args:
        tokens: number of new tokens.
        history: number of cached tokens.
        dim: number of channels, C.

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
