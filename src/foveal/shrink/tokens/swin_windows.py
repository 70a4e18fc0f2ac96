"""Some windows of a timm Swin's map: which tokens they hold, their norms, and a block that works on no others.

    y = put(x, rows, block(take(x, rows)))        rows: numbers of the chosen windows' tokens, (B, K·N)

Windows are gathered and put back by their tokens' numbers, so the map is neither rolled nor cut.

Shapes: B batch, K chosen windows, N tokens of a window, H W height and width of the map, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.nn.gather import put, take

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["on_windows", "places", "window_norms"]


def places(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], *, device: torch.device | None = None
) -> Tensor:
    """Numbers of the tokens in each window, as timm cuts them: shifted first, then padded.

    Args:
        height: H.
        width: W.
        window: height and width of a window.
        shift: rows and columns by which the windows are shifted.
        device: device of the result.

    Returns:
        Numbers, (windows, N) int64; from H·W on they are padding, each its own.
    """
    from timm.models.swin_transformer import window_partition

    number = torch.arange(height * width, device=device).view(height, width).roll((-shift[0], -shift[1]), (0, 1))
    number = F.pad(number, (0, -width % window[1], 0, -height % window[0]), value=-1)
    extra = height * width - 1 + (number < 0).flatten().cumsum(0).view_as(number)
    number = torch.where(number < 0, extra, number)
    return window_partition(number[None, :, :, None], window).flatten(1)


def window_norms(x: Tensor, numbers: Tensor) -> Tensor:
    """L2 norm of the features of each window.

    Args:
        x: tokens, (B, H·W, C).
        numbers: result of `places`, (windows, N).

    Returns:
        Norms, (B, windows); padding adds nothing.
    """
    energy = x.square().sum(-1)
    energy = F.pad(energy, (0, numbers.numel() - energy.shape[1]))
    return energy[:, numbers].sum(-1).sqrt()


def on_windows(block: Any, x: Tensor, numbers: Tensor, index: Tensor) -> Tensor:
    """A block of timm's Swin on some windows; the others stay as they are.

    Args:
        block: `SwinTransformerBlock`.
        x: map, (B, H, W, C).
        numbers: result of `places` for the block's windows, (windows, N).
        index: numbers of the windows, each at most once in a picture, (B, K) int64.

    Returns:
        Map, (B, H, W, C).
    """
    batch, height, width, channels = x.shape
    count, mask = height * width, block.attn_mask
    if block.dynamic_mask:
        sides = (side + -side % of for side, of in zip((height, width), block.window_size, strict=True))
        mask = block.get_attn_mask(x.new_empty(1, *sides, 1))
    if mask is not None:
        mask = mask.index_select(0, index.flatten())  # (B·K, N, N)
    rows = numbers.index_select(0, index.flatten()).view(batch, -1)  # (B, K·N)
    tokens = x.flatten(1, 2)
    if padded := numbers.numel() > count:
        tokens = F.pad(tokens, (0, 0, 0, numbers.numel() - count))
    y = take(tokens, rows)
    normed = block.norm1(y)
    if padded:
        normed = normed * (rows < count)[..., None]
    # (B·K, N, C) and back
    attended = block.attn(normed.view(-1, numbers.shape[1], channels), mask=mask).view_as(y)
    y = y + block.drop_path1(attended)
    y = y + block.drop_path2(block.mlp(block.norm2(y)))
    return put(tokens, rows, y)[:, :count].view_as(x)
