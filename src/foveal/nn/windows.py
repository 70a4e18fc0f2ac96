"""Attention in windows: a token attends to the tokens of its window; shifted windows join what unshifted ones part.

*Source*: Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021
(arXiv:2103.14030), sections 3.2 and 3.3. A map (B, H, W, C) is cut into windows of h × w tokens, N = h·w; for each
window and head of width d:

    softmax(q kᵀ / √d + bias + mask) v        q: (N, d), k and v: (M, d), bias: a learnt number for each offset i - j

Windows shifted by (dy, dx) are those of the map rolled by (-dy, -dx). A rolled window at the far border holds tokens
of both ends of the map: `regions` tells them apart, and mask is -∞ between different regions, else 0.

*Differs from the paper*: a map that the windows do not divide is padded, and nothing attends to the padding; the paper
lets it take part. Windows may be oblong.

*Provenance*: written from the paper; cutting, joining and the table of offsets are timm's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import RelPosBias
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

__all__ = ["WindowAttention", "attention", "hidden", "joined", "regions", "to_multiple", "window_attention", "windowed"]


def to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend a picture at the bottom and on the right, reflected; repeated at the edge where it is too small for that.

    Args:
        x: (B, C, H, W).
        multiple: number of pixels that both sides become a multiple of.

    Returns:
        (B, C, H', W'), with less than `multiple` pixels added to each side.
    """
    height, width = x.shape[2:]
    down, right = -height % multiple, -width % multiple
    if down:
        x = F.pad(x, (0, 0, 0, down), mode="reflect" if down < height else "replicate")
    if right:
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return x


def windowed(x: Tensor, window: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Cut a map into windows.

    Args:
        x: map, (B, H, W, C), padded with zeros at the bottom and on the right.
        window: h and w.
        shift: rows and columns by which the windows are shifted.

    Returns:
        Tokens of each window, (B · windows, h·w, C).
    """
    height, width = x.shape[1:3]
    if height % window[0] or width % window[1]:
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    if any(shift):
        x = x.roll((-shift[0], -shift[1]), (1, 2))
    return window_partition(x, window).flatten(1, 2)


def joined(x: Tensor, window: tuple[int, int], height: int, width: int, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Inverse of `windowed`.

    Args:
        x: tokens of each window, (B · windows, h·w, C).
        window: h and w.
        height: H.
        width: W.
        shift: rows and columns by which the windows are shifted.

    Returns:
        (B, H, W, C).
    """
    whole = window_reverse(x.unflatten(1, window), window, height + -height % window[0], width + -width % window[1])
    if any(shift):
        whole = whole.roll(shift, (1, 2))
    return whole[:, :height, :width]


def _side(length: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    """Region of each row or column of the rolled map: 1 more if rolled around the border, 2 more if it is padding."""
    place = torch.arange(length + -length % window, device=device)
    return (place >= place.shape[0] - shift).int() + 2 * (place.roll(-shift) >= length).int()


def regions(
    height: int,
    width: int,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Region of each token of the rolled and padded map; tokens of one window may attend to their own region.

    Args:
        height: H.
        width: W.
        window: h and w.
        shift: rows and columns by which the windows are shifted.
        device: device of the result.

    Returns:
        (windows, h·w), integers.
    """
    rows, columns = (_side(*of, device) for of in zip((height, width), window, shift, strict=True))
    return window_partition((4 * rows[:, None] + columns)[None, :, :, None], window).flatten(1)


def hidden(queries: Tensor, keys: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mask between different regions.

    Args:
        queries: region of each query, (windows, N).
        keys: region of each key, (windows, M).
        dtype: dtype of the result.

    Returns:
        (windows, N, M), -∞ between different regions, else 0.
    """
    apart = queries[:, :, None] != keys[:, None]
    return torch.zeros(apart.shape, dtype=dtype, device=apart.device).masked_fill_(apart, float("-inf"))


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention inside each window.

    Args:
        query: queries, (B · windows, N, C).
        key: keys, (B · windows, M, C).
        value: values, (B · windows, M, C).
        num_heads: number of heads, a divisor of C.
        bias: what is added to the scores, (heads, N, M).
        mask: what is added in each window, (windows, N, M).

    Returns:
        (B · windows, N, C).
    """
    if mask is not None:
        # (B · windows, heads, N, M)
        bias = mask[:, None] if bias is None else bias + mask[:, None]
        bias = bias.repeat(query.shape[0] // mask.shape[0], 1, 1, 1)
    # (B · windows, heads, N or M, C / heads)
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: tuple[int, int],
    num_heads: int,
    shift: tuple[int, int] = (0, 0),
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of a map in windows.

    Args:
        query: queries, (B, H, W, C).
        key: keys, (B, H, W, C).
        value: values, (B, H, W, C).
        window: h and w.
        num_heads: number of heads, a divisor of C.
        shift: rows and columns by which the windows are shifted, less than h and w.
        bias: what is added to the scores, (heads, h·w, h·w).

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: a width that the heads do not divide, or a shift that is not inside a window.
    """
    height, width, dim = query.shape[1:]
    if dim % num_heads:
        raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
    if not all(0 <= by < side for by, side in zip(shift, window, strict=True)):
        raise ValueError(f"shift must be at least 0 and less than window = {window}, got {shift}; take half the window")
    mask = None
    if any(shift) or height % window[0] or width % window[1]:
        region = regions(height, width, window, shift, device=query.device)
        mask = hidden(region, region, dtype=query.dtype)
    tokens = (windowed(x, window, shift) for x in (query, key, value))
    return joined(attention(*tokens, num_heads=num_heads, bias=bias, mask=mask), window, height, width, shift)


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows with a bias for each offset; (B, H, W, C) to the same.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: number of heads.
        window: h and w.
        shift: rows and columns by which the windows are shifted, less than h and w.
    """

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = RelPosBias(window, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        bias = self.bias.get_bias()[0]
        out = window_attention(
            query, key, value, window=self.window, num_heads=self.num_heads, shift=self.shift, bias=bias
        )
        return self.proj(out)
